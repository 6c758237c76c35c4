"""Scores of pictures: pure functions on embeddings, and the CLIP encoder that makes them.

Definitions follow Ruiz et al. 2023, §4.1: CLIP-I is the mean cosine over all pairs of a generated and
a real picture, CLIP-T that of pictures and their prompts (the identifier replaced by the class noun).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTokenizer

from data_prep.transforms import crop_square, to_pixel_values
from finetune.bases import EMBEDDED, SCORER
from finetune.dual_encoder import DualEncoder
from finetune.errors import ArtifactError

Embeddings = Float[Tensor, "count dimensions"]


@dataclass(frozen=True)
class ClipScorer:
    """A dual encoder trained as CLIP (Radford et al. 2021) with its tokenizer.

    Pictures are resized and cropped to the encoder's square and scaled to [-1, 1].
    """

    name: str
    model: DualEncoder
    tokenizer: Any

    @staticmethod
    def load(source: str = SCORER) -> ClipScorer:
        """The embedded CLIP (`clay-clip`), or a folder of the same kind. Raises `ArtifactError`."""
        folder = EMBEDDED / source if (EMBEDDED / source).is_dir() else Path(source)
        try:
            model = DualEncoder.from_pretrained(folder)
            return ClipScorer(source, model, CLIPTokenizer.from_pretrained(folder))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(f"The scorer '{source}' cannot be read: {error}") from error

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image], *, batch_size: int = 64) -> Embeddings:
        """Unit embeddings of pictures."""
        size = self.model.image_size
        pixels = [to_pixel_values(crop_square(image.convert("RGB"), size)[0]) for image in images]
        parts = [
            self.model.get_image_features(torch.stack(pixels[start : start + batch_size]))
            for start in range(0, len(pixels), batch_size)
        ]
        return F.normalize(torch.cat(parts), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Unit embeddings of captions."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, return_tensors="pt"
        )
        return F.normalize(self.model.get_text_features(tokens.input_ids), dim=-1)


def subject_similarity(generated: Embeddings, real: Embeddings) -> Float[Tensor, " count"]:
    """CLIP-I of each generated picture: its mean cosine to all real ones, in [-1, 1]."""
    return (generated @ real.T).mean(1)


def real_similarity(real: Embeddings) -> float | None:
    """Mean cosine over pairs of different real pictures: the ceiling of `subject_similarity`.

    None where there are no two pictures.
    """
    if len(real) < 2:
        return None
    similarity = real @ real.T
    count = len(real)
    return float((similarity.sum() - similarity.diagonal().sum()) / (count * (count - 1)))


def prompt_similarity(generated: Embeddings, prompts: Embeddings) -> Float[Tensor, " count"]:
    """CLIP-T of each picture and its own prompt, in [-1, 1]."""
    return (generated * prompts).sum(1)


def zero_shot(generated: Embeddings, choices: Embeddings) -> Tensor:
    """Index of the caption among `choices` that is nearest to each picture, [count]."""
    return (generated @ choices.T).argmax(1)


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (Efron & Tibshirani 1993, §13.3)."""
    array = np.asarray(values, float)
    rng = np.random.default_rng(seed)
    means = array[rng.integers(len(array), size=(num_resamples, len(array)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
