"""Noise processes: how a clean latent is noised, what the network is asked for, and at what weight.

torch only. Notation of Ho et al. 2020 (DDPM): x_t = alpha_t x_0 + sigma_t eps with alpha_t² + sigma_t² = 1,
alpha_t² = `alphas_cumprod[t]` and timesteps 0 … T-1 for the paper's 1 … T; of rectified flow: x_t =
(1 - sigma_t) x_0 + sigma_t eps. Shapes: `batch` samples of any trailing shape; timesteps are what the network
is told, [batch]: int64 for DDPM, floats T sigma_t for rectified flow.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "flow"]
Density = Literal["uniform", "logit_normal"]
BetaSchedule = Literal["linear", "scaled_linear", "cosine"]


def betas_for(
    schedule: BetaSchedule,
    *,
    num_timesteps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
) -> Float[Tensor, " timesteps"]:
    """Variances beta_t of the forward steps, float32.

    "linear" (Ho et al. 2020, §4), "scaled_linear" (linear in sqrt(beta); Rombach et al. 2022) and
    "cosine" (Nichol & Dhariwal 2021, eq. 17, betas clipped at 0.999; start and end are not used).
    """
    if schedule == "linear":
        return torch.linspace(beta_start, beta_end, num_timesteps)
    if schedule == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps) ** 2

    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = range(num_timesteps)
    ratios = [alpha_bar((t + 1) / num_timesteps) / alpha_bar(t / num_timesteps) for t in steps]
    return torch.tensor([min(1 - ratio, 0.999) for ratio in ratios])


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


class NoiseProcess(ABC):
    """What the loss asks of a forward process."""

    prediction_type: PredictionType

    @abstractmethod
    def timesteps_from_uniform(self, uniform: Float[Tensor, " batch"]) -> Real[Tensor, " batch"]:
        """Timesteps to train on, from numbers in [0, 1)."""

    @abstractmethod
    def add_noise(
        self, latents: Float[Tensor, "batch ..."], noise: Tensor, timesteps: Tensor
    ) -> Float[Tensor, "batch ..."]:
        """The noisy latents x_t."""

    @abstractmethod
    def target(
        self, latents: Float[Tensor, "batch ..."], noise: Tensor, timesteps: Tensor
    ) -> Float[Tensor, "batch ..."]:
        """What the network should say."""

    @abstractmethod
    def loss_weight(
        self, timesteps: Real[Tensor, " batch"], snr_gamma: float | None
    ) -> Float[Tensor, " batch"]:
        """Weight of each sample's squared error."""


class DiscreteDiffusion(NoiseProcess):
    """The DDPM process over a table of `alphas_cumprod`, predicting epsilon or v."""

    def __init__(
        self, alphas_cumprod: Float[Tensor, " timesteps"], prediction_type: PredictionType
    ) -> None:
        self.alphas_cumprod = alphas_cumprod.float()
        self.prediction_type = prediction_type

    @staticmethod
    def from_schedule(
        schedule: BetaSchedule, prediction_type: PredictionType, *, num_timesteps: int = 1000
    ) -> DiscreteDiffusion:
        """The process of a named beta schedule."""
        betas = betas_for(schedule, num_timesteps=num_timesteps)
        return DiscreteDiffusion(torch.cumprod(1 - betas, 0), prediction_type)

    @property
    def num_timesteps(self) -> int:
        """T, the length of the chain."""
        return len(self.alphas_cumprod)

    @property
    def alphas(self) -> Float[Tensor, " timesteps"]:
        """alpha_t of single steps, 1 - beta_t in Ho et al.; their running product is the table."""
        previous = torch.cat([torch.ones(1), self.alphas_cumprod[:-1]])
        return self.alphas_cumprod / previous

    def timesteps_from_uniform(self, uniform: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Equally likely timesteps from numbers in [0, 1)."""
        return (uniform * self.num_timesteps).long().clamp(max=self.num_timesteps - 1)

    def alpha_sigma(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, shaped to multiply `like` [batch, ...]."""
        alphas_cumprod = self.alphas_cumprod.to(like.device)[timesteps]
        return (
            _per_sample(alphas_cumprod.sqrt(), like),
            _per_sample((1 - alphas_cumprod).sqrt(), like),
        )

    def add_noise(
        self, latents: Float[Tensor, "batch ..."], noise: Tensor, timesteps: Tensor
    ) -> Float[Tensor, "batch ..."]:
        """x_t = alpha_t x_0 + sigma_t eps (Ho et al. 2020, eq. 4)."""
        alpha, sigma = self.alpha_sigma(timesteps, latents)
        return alpha * latents + sigma * noise

    def target(
        self, latents: Float[Tensor, "batch ..."], noise: Tensor, timesteps: Tensor
    ) -> Float[Tensor, "batch ..."]:
        """What the network should say: eps, or v = alpha_t eps - sigma_t x_0 (Salimans & Ho 2022)."""
        if self.prediction_type == "epsilon":
            return noise
        alpha, sigma = self.alpha_sigma(timesteps, latents)
        return alpha * noise - sigma * latents

    def predicted_latents(
        self, noisy_latents: Float[Tensor, "batch ..."], model_output: Tensor, timesteps: Tensor
    ) -> Float[Tensor, "batch ..."]:
        """The x_0 that a network output stands for."""
        alpha, sigma = self.alpha_sigma(timesteps, noisy_latents)
        if self.prediction_type == "epsilon":
            return (noisy_latents - sigma * model_output) / alpha
        return alpha * noisy_latents - sigma * model_output

    def predicted_noise(
        self, noisy_latents: Float[Tensor, "batch ..."], model_output: Tensor, timesteps: Tensor
    ) -> Float[Tensor, "batch ..."]:
        """The eps that a network output stands for."""
        if self.prediction_type == "epsilon":
            return model_output
        alpha, sigma = self.alpha_sigma(timesteps, noisy_latents)
        return alpha * model_output + sigma * noisy_latents

    def snr(self, timesteps: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Signal-to-noise ratio alpha_t² / sigma_t²."""
        alphas_cumprod = self.alphas_cumprod.to(timesteps.device)[timesteps]
        return alphas_cumprod / (1 - alphas_cumprod)

    def loss_weight(
        self, timesteps: Int[Tensor, " batch"], snr_gamma: float | None
    ) -> Float[Tensor, " batch"]:
        """Weight of each sample's squared error: 1, or min-SNR (Hang et al. 2023, eq. 8).

        The paper weights the error of x_0 by min(snr, gamma). An error of eps is snr times, one of v
        is snr + 1 times as large, hence the two denominators.
        """
        snr = self.snr(timesteps)
        if snr_gamma is None:
            return torch.ones_like(snr)
        clipped = snr.clamp(max=snr_gamma)
        return clipped / snr if self.prediction_type == "epsilon" else clipped / (snr + 1)

    def posterior(
        self, latents: Float[Tensor, "batch ..."], noisy_latents: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 6 and 7).

        At the first timestep x_{t-1} is x_0 itself: the mean is `latents`, the variance 0.
        """
        table = self.alphas_cumprod.to(latents.device)
        bar = _per_sample(table[timesteps], latents)
        before = torch.where(
            timesteps > 0, table[(timesteps - 1).clamp(min=0)], torch.ones(()).to(table)
        )
        before = _per_sample(before, latents)
        step = bar / before
        mean = (
            before.sqrt() * (1 - step) / (1 - bar) * latents
            + step.sqrt() * (1 - before) / (1 - bar) * noisy_latents
        )
        return mean, ((1 - before) / (1 - bar) * (1 - step)).expand_as(mean)


class RectifiedFlow(NoiseProcess):
    """Straight paths from latents to noise, over a table of sigmas from 1 downwards (Liu et al. 2023).

    `density` says how sigma's place in the table is drawn: all alike, or by a standard normal's sigmoid,
    which favours the middle (Esser et al. 2024, §3.1, logit-normal with m = 0, s = 1). A shift towards noise
    (§5.3.2) is in the table.
    """

    def __init__(self, sigmas: Float[Tensor, " timesteps"], density: Density) -> None:
        self.sigmas = sigmas.float()
        self.density = density
        self.prediction_type = "flow"

    @property
    def num_timesteps(self) -> int:
        """T, the length of the table."""
        return len(self.sigmas)

    def timesteps_from_uniform(self, uniform: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """T sigma of places in the table, drawn with the density from numbers in [0, 1)."""
        if self.density == "logit_normal":
            uniform = torch.special.ndtri(uniform).sigmoid()
        last = self.num_timesteps - 1
        return self.sigmas[(uniform * self.num_timesteps).long().clamp(max=last)] * (last + 1)

    def sigma(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """sigma_t, shaped to multiply `like` [batch, ...]."""
        return _per_sample(timesteps.to(like) / self.num_timesteps, like)

    def add_noise(
        self, latents: Float[Tensor, "batch ..."], noise: Tensor, timesteps: Tensor
    ) -> Float[Tensor, "batch ..."]:
        """x_t = (1 - sigma_t) x_0 + sigma_t eps (Esser et al. 2024, §3)."""
        sigma = self.sigma(timesteps, latents)
        return (1 - sigma) * latents + sigma * noise

    def target(
        self, latents: Float[Tensor, "batch ..."], noise: Tensor, timesteps: Tensor
    ) -> Float[Tensor, "batch ..."]:
        """The path's direction eps - x_0."""
        return noise - latents

    def loss_weight(
        self, timesteps: Float[Tensor, " batch"], snr_gamma: float | None
    ) -> Float[Tensor, " batch"]:
        """1: what is to count more is drawn more often. Raises `ValueError` for min-SNR weights."""
        if snr_gamma is not None:
            raise ValueError("min-SNR weights are for DDPM processes")
        return torch.ones_like(timesteps)


def gaussian_kl(mean_p: Tensor, var_p: Tensor, mean_q: Tensor, var_q: Tensor) -> Tensor:
    """KL(p || q) of diagonal Gaussians in nats, summed over all but the first dimension: [batch]."""
    kl = 0.5 * (var_q.log() - var_p.log() + (var_p + (mean_p - mean_q) ** 2) / var_q - 1)
    return kl.flatten(1).sum(1)


def variational_bound_terms(
    process: DiscreteDiffusion,
    latents: Float[Tensor, "batch ..."],
    noisy_latents: Tensor,
    model_output: Tensor,
    timesteps: Int[Tensor, " batch"],
) -> dict[str, Float[Tensor, " batch"]]:
    """The three terms of the variational bound on -log p(x_0), in nats per sample (Ho et al., eq. 5).

    "regularisation": KL(q(x_T | x_0) || N(0, 1)); "denoising": KL(q(x_{t-1} | x_t, x_0) ||
    p(x_{t-1} | x_t)) where t > 0, else 0; "reconstruction": -log p(x_0 | x_1) where t = 0, else 0. The
    model's reverse step has the posterior's mean at its predicted x_0 and the variance beta-tilde_t
    (at the first timestep, where that is 0, beta_1).
    """
    last = torch.full_like(timesteps, process.num_timesteps - 1)
    alpha, sigma = process.alpha_sigma(last, latents)
    zero = torch.zeros_like(latents)
    prior = gaussian_kl(alpha * latents, sigma**2 + zero, zero, zero + 1)
    predicted = process.predicted_latents(noisy_latents, model_output, timesteps)
    true_mean, variance = process.posterior(latents, noisy_latents, timesteps)
    mean, _ = process.posterior(predicted, noisy_latents, timesteps)
    first = timesteps == 0
    beta = 1 - process.alphas.to(latents.device)[0]
    safe = torch.where(_per_sample(first, latents), beta, variance)
    denoising = gaussian_kl(true_mean, safe, mean, safe)
    likelihood = 0.5 * (math.log(2 * math.pi) + beta.log() + (latents - mean) ** 2 / beta)
    return {
        "regularisation": prior,
        "denoising": torch.where(first, 0.0, denoising),
        "reconstruction": torch.where(first, likelihood.flatten(1).sum(1), 0.0),
    }
