"""The embedded encoder and two scores under the names that `compare` calls them by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from finetune.encoders import EMBEDDED_CLIP, Encoder, load_text_encoder

Embeddings = Float[Tensor, "count dimensions"]


@dataclass(frozen=True)
class ClipScorer:
    """An encoder that reads pictures and texts."""

    name: str
    encoder: Encoder

    @staticmethod
    def load(source: str = EMBEDDED_CLIP) -> ClipScorer:
        """See `load_text_encoder`."""
        return ClipScorer(source, load_text_encoder(source))

    def embed_images(self, images: Sequence[Image.Image]) -> Embeddings:
        """Unit embeddings of pictures."""
        return self.encoder.embed_images(images)

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Unit embeddings of captions."""
        return self.encoder.embed_texts(texts)


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


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (Efron & Tibshirani 1993, §13.3)."""
    array = np.asarray(values, float)
    rng = np.random.default_rng(seed)
    means = array[rng.integers(len(array), size=(num_resamples, len(array)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
