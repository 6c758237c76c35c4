"""Scores of pictures: what each one is, and pure functions from unit embeddings to a value per picture.

Knows no network and no file. Every value is a plain cosine of unit embeddings (or one minus it): never times
100 (CLIPScore in some libraries), never times 2.5 (Custom Diffusion's "textual alignment"). Cosines are
taken as 1 - |a - b|² / 2 in float64, so that equal embeddings give exactly 1, and drift exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from finetune.encoders import Encoder
from finetune.errors import ArtifactError
from finetune.results import Better, Role

Values = NDArray[np.float64]

DREAMBOOTH = "Ruiz et al. 2023, DreamBooth (arXiv 2208.12242)"
TEXTUAL_INVERSION = "Gal et al. 2023, Textual Inversion (arXiv 2208.01618)"
PEFT = "PEFT, method_comparison/image-gen (there halved)"
COPYING = "Somepalli et al. 2023, Diffusion Art or Digital Forgery? (arXiv 2212.03860)"


DISTANCE = (0.0, 2.0)
"""Bounds of 1 - cosine."""


@dataclass(frozen=True)
class ScoreInfo:
    """What a score is."""

    id: str
    title: str
    short_title: str
    better: Better
    roles: tuple[Role, ...]
    """Whose pictures it is about: those of test prompts, of class prompts, of prompts about neither."""
    encoder: Literal["subject", "prompt"]
    """Which encoder makes it."""
    definition: str
    papers: tuple[str, ...]
    bounds: tuple[float, float] = (-1.0, 1.0)
    """Least and largest value; intervals of its mean end there."""


SCORES = {
    info.id: info
    for info in (
        ScoreInfo(
            "subject_fidelity",
            "Subject fidelity",
            "subject",
            "higher",
            ("test",),
            "subject",
            "Mean cosine of a generated picture with every real photo of the subject: DINO or CLIP-I, "
            "after the encoder. Above the photos' own similarity it is a sign of copies.",
            (f"{DREAMBOOTH}, §4.1", f"{TEXTUAL_INVERSION}, §5"),
        ),
        ScoreInfo(
            "subject_fidelity_masked",
            "Subject fidelity, photos without backdrop",
            "subject, no backdrop",
            "higher",
            ("test",),
            "subject",
            "Subject fidelity against the photos with mid-grey for what their masks leave out, so that a "
            "copied backdrop earns nothing; generated pictures are whole.",
            (f"{DREAMBOOTH}, §4.1, with the photos masked",),
        ),
        ScoreInfo(
            "prompt_fidelity",
            "Prompt fidelity",
            "prompt",
            "higher",
            ("test",),
            "prompt",
            "CLIP-T: cosine of a picture with its prompt, the identifier replaced by the class noun.",
            (f"{DREAMBOOTH}, §4.1", f"{TEXTUAL_INVERSION}, §5"),
        ),
        ScoreInfo(
            "class_leak",
            "Class drawn to the subject",
            "class leak",
            "lower",
            ("class",),
            "subject",
            "PRES: mean cosine of a picture of the class prompt, without identifier, with every real photo "
            "of the subject. High where the whole class has become the subject. A ruined class scores low "
            "too: read it beside drift.",
            (f"{DREAMBOOTH}, §4.3",),
        ),
        ScoreInfo(
            "diversity",
            "Diversity within a prompt",
            "diversity",
            "higher",
            ("test",),
            "subject",
            "Mean of 1 - cosine over pairs of different pictures of one prompt: DIV with an encoder's "
            "distance in the place of LPIPS. One value per subject and prompt.",
            (f"{DREAMBOOTH}, §4.3",),
            DISTANCE,
        ),
        ScoreInfo(
            "class_drift",
            "Drift of the class",
            "class drift",
            "lower",
            ("class",),
            "subject",
            "1 - cosine of a picture of the class prompt, without identifier, with the frozen base's of the "
            "same noise: 0 where training left the class as it was.",
            (PEFT,),
            DISTANCE,
        ),
        ScoreInfo(
            "other_drift",
            "Drift of everything else",
            "other drift",
            "lower",
            ("unrelated",),
            "subject",
            "The same on prompts about neither the subject nor its class.",
            (PEFT,),
            DISTANCE,
        ),
        ScoreInfo(
            "copy",
            "Nearest training photo",
            "copy",
            "lower",
            ("test",),
            "subject",
            "Highest cosine of a picture with any one training photo; 1 for a copy.",
            (f"{COPYING}, §3",),
        ),
        ScoreInfo(
            "copy_share",
            "Pictures that pass for copies",
            "copies",
            "lower",
            ("test",),
            "subject",
            "Share of pictures whose nearest training photo is nearer than halfway from the most alike two "
            "photos of the subject to the very same picture.",
            (f"{COPYING}, §3",),
            (0.0, 1.0),
        ),
    )
}
"""Id -> score, in the order of tables and reports."""
DRIFT = ScoreInfo(
    "drift",
    "Drift from the frozen base",
    "drift",
    "lower",
    ("class", "unrelated"),
    "subject",
    "Along training both drifts are one number, over all validation prompts without the subject.",
    (PEFT,),
    DISTANCE,
)
CURVES = {
    info.id: info
    for info in (
        SCORES["subject_fidelity"],
        SCORES["prompt_fidelity"],
        DRIFT,
        SCORES["copy_share"],
    )
}
"""Id -> score, of those that the checkpoint rule follows along training, in the order of reports."""


def score_info(key: str) -> ScoreInfo:
    """The score of a key `id` or `id/encoder`, of a table or a curve."""
    return {**CURVES, **SCORES}[key.partition("/")[0]]


@dataclass(frozen=True)
class Views:
    """Unit embeddings of named pictures, or texts, known to be finite."""

    vectors: Tensor
    """[N, D], float64, unit."""
    names: tuple[str, ...]

    @staticmethod
    def of(vectors: Tensor, names: Sequence[str], *, encoder: str = "") -> Views:
        """Checked and made unit. Raises `ArtifactError` that names the first picture without direction."""
        if vectors.ndim != 2 or len(vectors) != len(names):
            raise ValueError(f"{len(names)} names for embeddings of shape {tuple(vectors.shape)}")
        exact = vectors.detach().cpu().double()
        lengths = exact.norm(dim=1, keepdim=True)
        good = torch.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)
        if not bool(good.all()):
            bad = int((~good).nonzero()[0])
            by = f" by the scorer {encoder}" if encoder else ""
            raise ArtifactError(
                f"The embedding of {names[bad]}{by} is not a finite vector other than 0, and neither would "
                "its scores be. Look at that picture, and whether the scorer's weights are whole."
            )
        return Views(exact / lengths, tuple(names))

    def __len__(self) -> int:
        return len(self.names)

    def part(self, start: int, end: int) -> Views:
        """Those from `start` to before `end`."""
        return Views(self.vectors[start:end], self.names[start:end])


def embed_images(encoder: Encoder, images: Sequence[Image.Image], names: Sequence[str]) -> Views:
    """Embeddings of pictures. Raises `ArtifactError` as `Views.of`."""
    return Views.of(encoder.embed_images(images), names, encoder=encoder.card.name)


def embed_texts(encoder: Encoder, texts: Sequence[str]) -> Views:
    """Embeddings of texts. Raises `ArtifactError` as `Views.of`, `ConfigError` where none can be read."""
    names = [f"the text '{text}'" for text in texts]
    return Views.of(encoder.embed_texts(texts), names, encoder=encoder.card.name)


def cosines(first: Views, second: Views) -> Values:
    """Cosine of each of `first` with each of `second`, [N, M]; exactly 1 for equal vectors."""
    chunks = [
        1 - (vectors[:, None] - second.vectors[None]).square().sum(-1) / 2
        for vectors in first.vectors.split(64)
    ]
    found: Values = torch.cat(chunks).numpy() if chunks else np.zeros((0, len(second)))
    return found


def _aligned(first: Views, second: Views) -> Values:
    """Cosine of each of `first` with its counterpart in `second`, [N]."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} embeddings have no counterparts among {len(second)}")
    found: Values = (1 - (first.vectors - second.vectors).square().sum(-1) / 2).numpy()
    return found


def subject_fidelity(generated: Views, photos: Views) -> Values:
    """Mean cosine of each generated picture with all real photos, [N] in [-1, 1].

    DINO or CLIP-I of Ruiz et al. 2023, §4.1, before the mean over pictures. For the masked variant give
    photos without backdrop (`encoders.hide_background`).
    """
    return cosines(generated, photos).mean(1)


def class_leak(class_pictures: Views, photos: Views) -> Values:
    """Mean cosine of each picture of the class prompt with all real photos, [N]: PRES, §4.3 there."""
    return cosines(class_pictures, photos).mean(1)


def prompt_fidelity(generated: Views, texts: Views) -> Values:
    """Cosine of each picture with its own text, [N] in [-1, 1]: CLIP-T.

    Texts are prompts with the identifier replaced by the class noun (Gal et al. leave it out, Ruiz et al. do
    not say), one per picture.
    """
    return _aligned(generated, texts)


def drift(tuned: Views, base: Views) -> Values:
    """1 - cosine of each picture with the frozen base's of the same prompt and noise, [N] in [0, 2]."""
    return 1 - _aligned(tuned, base)


def copy(generated: Views, photos: Views) -> Values:
    """Highest cosine of each picture with any photo, [N]; 1 for the very photo."""
    return cosines(generated, photos).max(1)


def diversity(generated: Views) -> float:
    """Mean of 1 - cosine over pairs of different pictures of one prompt; NaN where there is one picture.

    DIV of Ruiz et al. 2023, §4.3, with this distance for LPIPS.
    """
    pairs = np.triu_indices(len(generated), 1)
    return float((1 - cosines(generated, generated)[pairs]).mean()) if len(pairs[0]) else np.nan


@dataclass(frozen=True)
class RealPhotos:
    """How alike the real photos are: the ceiling of subject fidelity."""

    values: Values
    """[n]: each photo's mean cosine with the *others*; empty where there is one photo."""
    mean: float | None
    reason: str | None
    """Why there is no number."""


def real_similarity(photos: Views) -> RealPhotos:
    """Mean cosine over pairs of different photos; a photo is never compared with itself."""
    count = len(photos)
    if count < 2:
        reason = (
            f"There is {'one photo' if count else 'no photo'}; similarity among photos needs two."
        )
        return RealPhotos(np.zeros(0), None, reason)
    similarity = cosines(photos, photos)
    values = (similarity.sum(1) - similarity.diagonal()) / (count - 1)
    return RealPhotos(values, float(values.mean()), None)


HIGHEST_THRESHOLD = 0.97
"""Of a copy, where photos of the subject are all but the same picture, or there is one only."""


def copy_threshold(photos: Views) -> float:
    """The cosine from which on a picture passes for a copy of a photo.

    Halfway from the most alike two photos of the subject to 1, at most `HIGHEST_THRESHOLD`: a new picture of
    a subject may be as near to a photo as photos are to each other, and somewhat nearer if it shares the
    place.
    """
    if len(photos) < 2:
        return HIGHEST_THRESHOLD
    similarity = cosines(photos, photos)
    nearest = float(similarity[np.triu_indices(len(photos), 1)].max())
    return min((1 + nearest) / 2, HIGHEST_THRESHOLD)


def copies(similarity: Values, threshold: float) -> Values:
    """1 where a value of `copy` reaches the threshold, else 0; NaN stays."""
    return np.where(np.isnan(similarity), np.nan, (similarity >= threshold).astype(np.float64))
