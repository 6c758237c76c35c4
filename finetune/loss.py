"""The denoising loss, once for every method: one value per sample, reduced in one place by role."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from data_prep.batch import Batch
from data_prep.config import Section
from finetune.base import BasePipeline
from finetune.seeding import generator_for, normal_like


class LossConfig(Section):
    """Weighting of the training loss."""

    prior_loss_weight: float = Field(1.0, ge=0)
    """λ, the weight of class examples against instance examples (Ruiz et al. 2023, eq. 2). Has an
    effect only where `prior.kind` is not `none`."""
    snr_gamma: float | None = Field(None, gt=0)
    """Min-SNR clipping value (Hang et al. 2023); 5 is usual, null weights all timesteps alike. Of no
    meaning for flow-matching bases (SD3, FLUX)."""
    guidance_scale: float = Field(1.0, ge=0)
    """What a guidance-distilled base (FLUX.1 dev) is told while it learns; 1 is the field's custom. Others
    are not told anything."""


@dataclass(frozen=True)
class LossOutput:
    """A scalar to minimise, and figures to log (floats are taken from detached tensors)."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Draws:
    """Random numbers for one batch, each a pure function of (seed, stream, role, step, sample)."""

    seed: int
    batch: Batch

    def _generators(self, stream: str) -> list[torch.Generator]:
        batch = self.batch
        return [
            generator_for(self.seed, f"{stream}/{role}", batch.step, index)
            for role, index in zip(batch.roles(), batch.sample_index, strict=True)
        ]

    def normal(self, stream: str) -> Tensor:
        """Standard normal noise in the shape of the batch's latents."""
        mean = self.batch.moments.mean
        return normal_like(mean.shape[1:], self._generators(stream)).to(mean)

    def uniform(self, stream: str) -> Float[Tensor, " batch"]:
        """One number in [0, 1) per sample."""
        return torch.stack([torch.rand((), generator=g) for g in self._generators(stream)])


def reduce_by_role(
    per_sample: Float[Tensor, " batch"], is_class: Bool[Tensor, " batch"], prior_loss_weight: float
) -> LossOutput:
    """mean(instance) + λ · mean(class) (Ruiz et al. 2023, eq. 2); a role without samples adds nothing.

    With `is_class` in main memory an accelerator need not be waited for.
    """
    metrics, total = {}, per_sample.new_zeros(())
    for name, rows, weight in (
        ("instance", ~is_class, 1.0),
        ("class", is_class, prior_loss_weight),
    ):
        places = rows.nonzero()[:, 0]
        if len(places):
            mean = per_sample[places.to(per_sample.device)].mean()
            metrics[f"loss_{name}"] = mean.detach()
            total = total + weight * mean
    return LossOutput(total, {"loss": total.detach(), **metrics})


FrozenContext = Callable[[BasePipeline], AbstractContextManager[None]]
"""Within the context the base answers as it did before anything was learnt."""


@dataclass(frozen=True)
class Objective:
    """The loss of a run. A method calls it with its own `frozen`, or builds on `per_sample`."""

    config: LossConfig
    seed: int
    match_base: bool = False
    """Class examples are asked for the frozen base's answer instead of for the true noise."""

    def per_sample(
        self, base: BasePipeline, batch: Batch, *, frozen: FrozenContext | None = None
    ) -> Float[Tensor, " batch"]:
        """Weighted mean squared error of each sample (Ho et al. 2020, eq. 14; Hang et al. 2023).

        The mean over a masked example is weighted by `batch.weights`.
        """
        draws, process = Draws(self.seed, batch), base.noise_process
        guidance = self.config.guidance_scale
        latents = batch.moments.sample(draws.normal("posterior")).to(base.device)
        noise = draws.normal("noise").to(base.device)
        timesteps = process.timesteps_from_uniform(draws.uniform("timesteps")).to(latents.device)
        noisy_latents = process.add_noise(latents, noise, timesteps)
        target = process.target(latents, noise, timesteps)
        if self.match_base and frozen is not None and bool(batch.is_class.any()):
            places = batch.is_class.nonzero()[:, 0]
            rows, part = places.to(base.device), batch[places.tolist()]
            with torch.no_grad(), frozen(base):
                conditioning = base.encode_prompts(part.prompts)
                answer = base.denoise(
                    noisy_latents[rows],
                    timesteps[rows],
                    conditioning,
                    part,
                    guidance_scale=guidance,
                )
            target = target.index_copy(0, rows, answer.float())
        conditioning = base.encode_prompts(batch.prompts)
        model_output = base.denoise(
            noisy_latents, timesteps, conditioning, batch, guidance_scale=guidance
        )
        error = F.mse_loss(model_output.float(), target.float(), reduction="none")
        if batch.weights is not None:
            error = error * batch.weights.to(error)
        weight = process.loss_weight(timesteps, self.config.snr_gamma)
        return weight * error.flatten(1).mean(1)

    def __call__(
        self, base: BasePipeline, batch: Batch, *, frozen: FrozenContext | None = None
    ) -> LossOutput:
        """The batch's loss, reduced by role."""
        per_sample = self.per_sample(base, batch, frozen=frozen)
        return reduce_by_role(per_sample, batch.is_class, self.config.prior_loss_weight)
