"""The one contract between loader and loop: what a training batch is, with shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Role = Literal["instance", "class"]
"""An example shows the subject, or its class as the frozen base draws it (the prior)."""


@dataclass(frozen=True)
class Moments:
    """A diagonal Gaussian over latents, already scaled for the denoiser. What caches hold."""

    mean: Float[Tensor, "batch channels height width"]
    std: Float[Tensor, "batch channels height width"]

    def sample(self, noise: Float[Tensor, "batch channels height width"]) -> Tensor:
        """mean + std · noise."""
        return self.mean + self.std * noise

    def __getitem__(self, rows: slice | Tensor | list[int]) -> Moments:
        """The moments of some samples."""
        return Moments(self.mean[rows], self.std[rows])

    @staticmethod
    def cat(parts: list[Moments]) -> Moments:
        """All samples of `parts`, one after the other."""
        return Moments(torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts]))


@dataclass(frozen=True)
class Batch:
    """Examples of one micro-step: instance examples first, then class examples.

    `sample_index` is each example's place in the global batch of its role, from which all of its
    randomness derives; two roles at the same place draw from different streams.
    """

    moments: Moments
    prompts: list[str]
    is_class: Bool[Tensor, " batch"]
    sample_index: list[int]
    step: int
    """Optimizer step, 0-based."""
    original_size_hw: list[tuple[int, int]]
    """Height and width of each picture's file before resizing."""
    crop_top_left_yx: list[tuple[int, int]]
    """Where the crop begins in the resized picture."""
    weights: Float[Tensor, "batch 1 height width"] | None = None
    """Weight of each place in its example's loss, of mean 1; None where all are alike."""

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: list[int]) -> Batch:
        """Some of the examples."""
        return Batch(
            self.moments[rows],
            [self.prompts[row] for row in rows],
            self.is_class[rows],
            [self.sample_index[row] for row in rows],
            self.step,
            [self.original_size_hw[row] for row in rows],
            [self.crop_top_left_yx[row] for row in rows],
            None if self.weights is None else self.weights[rows],
        )

    def roles(self) -> list[Role]:
        """The role of every example."""
        return ["class" if flag else "instance" for flag in self.is_class.tolist()]
