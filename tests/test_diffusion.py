"""The noise process against hand-computed values, other implementations, and the chain itself."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from finetune.diffusion import (
    DiscreteDiffusion,
    RectifiedFlow,
    betas_for,
    gaussian_kl,
    variational_bound_terms,
)

PROCESSES = [
    (schedule, prediction)
    for schedule in ("linear", "scaled_linear", "cosine")
    for prediction in ("epsilon", "v_prediction")
]


@pytest.fixture(params=PROCESSES, ids=lambda pair: "-".join(pair))
def process(request: pytest.FixtureRequest) -> DiscreteDiffusion:
    schedule, prediction = request.param
    return DiscreteDiffusion.from_schedule(schedule, prediction)


def samples(count: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(count, 4, 3, 3, generator=generator)
    noise = torch.randn(count, 4, 3, 3, generator=generator)
    return latents, noise, torch.tensor([0, 1, 250, 700, 999][:count])


@pytest.mark.parametrize(
    ("schedule", "name"),
    [("linear", "linear"), ("scaled_linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")],
)
def test_schedules_equal_diffusers(schedule: str, name: str) -> None:
    theirs = DDPMScheduler(beta_schedule=name, beta_start=0.00085, beta_end=0.012)
    torch.testing.assert_close(betas_for(schedule), theirs.betas, atol=1e-6, rtol=1e-5)


def test_linear_schedule_by_hand() -> None:
    betas = betas_for("linear", num_timesteps=3, beta_start=0.1, beta_end=0.3)
    torch.testing.assert_close(betas, torch.tensor([0.1, 0.2, 0.3]))
    process = DiscreteDiffusion(torch.cumprod(1 - betas, 0), "epsilon")
    torch.testing.assert_close(process.alphas_cumprod, torch.tensor([0.9, 0.72, 0.504]))
    torch.testing.assert_close(process.alphas, torch.tensor([0.9, 0.8, 0.7]))
    torch.testing.assert_close(
        process.snr(torch.tensor([0, 2])), torch.tensor([9.0, 0.504 / 0.496])
    )


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
def test_closed_form_equals_the_step_by_step_chain(schedule: str) -> None:
    """Mean and variance of x_t by 1000 single steps x_t = sqrt(1 - beta) x + sqrt(beta) eps."""
    betas = betas_for(schedule).double()
    process = DiscreteDiffusion.from_schedule(schedule, "epsilon")
    scale, variance = 1.0, 0.0
    for t, beta in enumerate(betas.tolist()):
        scale *= math.sqrt(1 - beta)
        variance = (1 - beta) * variance + beta
        one, zero = torch.ones(1, 1), torch.zeros(1, 1)
        step = torch.tensor([t])
        assert float(process.add_noise(one, zero, step)) == pytest.approx(scale, abs=2e-6)
        assert float(process.add_noise(zero, one, step)) ** 2 == pytest.approx(variance, abs=1e-5)


def test_closed_form_has_the_chain_s_distribution() -> None:
    process = DiscreteDiffusion.from_schedule("linear", "epsilon")
    generator = torch.Generator().manual_seed(0)
    x = torch.full((20_000,), 1.7)
    for alpha in process.alphas[:300].tolist():
        x = math.sqrt(alpha) * x + math.sqrt(1 - alpha) * torch.randn(x.shape, generator=generator)
    start = torch.full((20_000, 1), 1.7)
    noise = torch.randn(20_000, 1, generator=generator)
    closed = process.add_noise(start, noise, torch.full((20_000,), 299))
    assert float(x.mean()) == pytest.approx(float(closed.mean()), abs=0.03)
    assert float(x.std()) == pytest.approx(float(closed.std()), abs=0.02)


def test_noise_and_target_equal_diffusers() -> None:
    latents, noise, timesteps = samples()
    for prediction in ("epsilon", "v_prediction"):
        theirs = DDPMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type=prediction,
        )
        ours = DiscreteDiffusion(theirs.alphas_cumprod, prediction)
        torch.testing.assert_close(
            ours.add_noise(latents, noise, timesteps), theirs.add_noise(latents, noise, timesteps)
        )
        expected = (
            noise if prediction == "epsilon" else theirs.get_velocity(latents, noise, timesteps)
        )
        torch.testing.assert_close(ours.target(latents, noise, timesteps), expected)
        torch.testing.assert_close(ours.snr(timesteps), compute_snr(theirs, timesteps))


def test_target_leads_back_to_latents_and_noise(process: DiscreteDiffusion) -> None:
    latents, noise, timesteps = samples(4)
    noisy = process.add_noise(latents, noise, timesteps)
    target = process.target(latents, noise, timesteps)
    torch.testing.assert_close(
        process.predicted_latents(noisy, target, timesteps), latents, atol=2e-3, rtol=1e-3
    )
    torch.testing.assert_close(
        process.predicted_noise(noisy, target, timesteps), noise, atol=2e-3, rtol=1e-3
    )


def test_velocity_identity() -> None:
    """v = alpha eps - sigma x_0; so alpha x_t - sigma v = x_0 and sigma x_t + alpha v = eps."""
    process = DiscreteDiffusion(torch.tensor([0.64]), "v_prediction")
    latents, noise = torch.tensor([[2.0]]), torch.tensor([[-1.0]])
    t = torch.tensor([0])
    assert float(process.add_noise(latents, noise, t)) == pytest.approx(0.8 * 2 - 0.6)
    assert float(process.target(latents, noise, t)) == pytest.approx(-0.8 - 0.6 * 2)


@pytest.mark.parametrize(
    ("alpha_bar", "prediction", "expected"),
    [
        (0.9, "epsilon", 5 / 9),  # snr 9, clipped at 5
        (0.9, "v_prediction", 5 / 10),
        (0.5, "epsilon", 1.0),  # snr 1
        (0.5, "v_prediction", 0.5),
        (1 / 11, "epsilon", 1.0),  # snr 0.1
        (1 / 11, "v_prediction", 0.1 / 1.1),
    ],
)
def test_min_snr_weight_by_hand(alpha_bar: float, prediction: str, expected: float) -> None:
    process = DiscreteDiffusion(torch.tensor([alpha_bar]), prediction)
    assert float(process.loss_weight(torch.tensor([0]), 5.0)) == pytest.approx(expected, rel=1e-5)
    assert float(process.loss_weight(torch.tensor([0]), None)) == 1.0


def test_min_snr_weighs_the_same_error_of_x0_alike() -> None:
    """An error in x_0 costs min(snr, gamma) times its square, in either parametrisation."""
    latents, noise, timesteps = samples(4)
    for prediction in ("epsilon", "v_prediction"):
        process = DiscreteDiffusion.from_schedule("scaled_linear", prediction)
        noisy = process.add_noise(latents, noise, timesteps)
        target = process.target(latents, noise, timesteps)
        output = target + 0.1
        wrong = process.predicted_latents(noisy, output, timesteps) - latents
        error = ((output - target) ** 2).flatten(1).mean(1)
        weighted = process.loss_weight(timesteps, 5.0) * error
        expected = process.snr(timesteps).clamp(max=5) * (wrong**2).flatten(1).mean(1)
        torch.testing.assert_close(weighted, expected, atol=1e-6, rtol=1e-2)


def test_posterior_equals_bayes_rule() -> None:
    """q(x_{t-1} | x_t, x_0) by multiplying q(x_t | x_{t-1}) and q(x_{t-1} | x_0) as Gaussians."""
    process = DiscreteDiffusion.from_schedule("linear", "epsilon")
    for t in (1, 2, 10, 500, 999):
        x0, xt = 0.7, -1.3
        alpha = float(process.alphas[t].double())
        before = float(process.alphas_cumprod[t - 1].double())
        precision = alpha / (1 - alpha) + 1 / (1 - before)
        mean = (
            math.sqrt(alpha) * xt / (1 - alpha) + math.sqrt(before) * x0 / (1 - before)
        ) / precision
        ours, variance = process.posterior(
            torch.tensor([[x0]]), torch.tensor([[xt]]), torch.tensor([t])
        )
        assert float(ours) == pytest.approx(mean, abs=2e-3)
        assert float(variance) == pytest.approx(1 / precision, rel=2e-3)


def test_posterior_at_the_first_step_is_the_latents() -> None:
    process = DiscreteDiffusion.from_schedule("linear", "epsilon")
    mean, variance = process.posterior(
        torch.tensor([[0.4]]), torch.tensor([[9.0]]), torch.tensor([0])
    )
    assert float(mean) == pytest.approx(0.4)
    assert float(variance) == 0.0


def test_gaussian_kl_equals_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    mean_p, mean_q = torch.randn(2, 3, 4, generator=generator)
    var_p, var_q = torch.rand(2, 3, 4, generator=generator) + 0.1
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean_p, var_p.sqrt()),
        torch.distributions.Normal(mean_q, var_q.sqrt()),
    ).sum(1)
    torch.testing.assert_close(gaussian_kl(mean_p, var_p, mean_q, var_q), expected)


def test_variational_bound_is_exact_for_the_true_denoiser_of_a_gaussian() -> None:
    """For x_0 ~ N(0, s²) and the optimal x_0 guess, the terms equal their direct computation.

    The direct computation uses scalars and torch.distributions, term by term.
    """
    betas = torch.linspace(0.05, 0.3, 8, dtype=torch.float64)
    table = torch.cumprod(1 - betas, 0)
    process = DiscreteDiffusion(table, "epsilon")
    x0, spread = 0.9, 0.5
    normal, kl = torch.distributions.Normal, torch.distributions.kl_divergence
    for t in range(8):
        bar = float(table[t])
        before = float(table[t - 1]) if t else 1.0
        xt = math.sqrt(bar) * x0 + math.sqrt(1 - bar) * 0.3
        guess = spread**2 * math.sqrt(bar) / (spread**2 * bar + 1 - bar) * xt
        eps = (xt - math.sqrt(bar) * guess) / math.sqrt(1 - bar)
        terms = variational_bound_terms(
            process,
            torch.tensor([[x0]]),
            torch.tensor([[xt]]),
            torch.tensor([[eps]]),
            torch.tensor([t]),
        )
        last = float(table[-1])
        prior = kl(normal(math.sqrt(last) * x0, math.sqrt(1 - last)), normal(0.0, 1.0))
        assert float(terms["regularisation"]) == pytest.approx(float(prior), abs=1e-5)

        def mean(clean: float, bar: float = bar, before: float = before, xt: float = xt) -> float:
            alpha = bar / before
            first = math.sqrt(before) * (1 - alpha) / (1 - bar) * clean
            return first + math.sqrt(alpha) * (1 - before) / (1 - bar) * xt

        if t:
            deviation = math.sqrt((1 - before) / (1 - bar) * (1 - bar / before))
            expected = kl(normal(mean(x0), deviation), normal(mean(guess), deviation))
            assert float(terms["denoising"]) == pytest.approx(float(expected), rel=1e-3, abs=1e-6)
            assert float(terms["reconstruction"]) == 0.0
        else:
            likelihood = normal(mean(guess), math.sqrt(float(betas[0]))).log_prob(torch.tensor(x0))
            assert float(terms["reconstruction"]) == pytest.approx(-float(likelihood), rel=1e-3)
            assert float(terms["denoising"]) == 0.0


def bound_of_optimal_denoiser(betas: torch.Tensor, *, spread: float, count: int) -> float:
    """The bound's Monte Carlo mean for x_0 ~ N(0, spread²) and the best possible x_0 guess."""
    process = DiscreteDiffusion(torch.cumprod(1 - betas, 0), "epsilon")
    generator = torch.Generator().manual_seed(0)
    latents = spread * torch.randn(count, 1, generator=generator)
    total = torch.zeros(count)
    for t in range(len(betas)):
        timesteps = torch.full((count,), t)
        noise = torch.randn(count, 1, generator=generator)
        noisy = process.add_noise(latents, noise, timesteps)
        bar = process.alphas_cumprod[t]
        guess = spread**2 * bar.sqrt() / (spread**2 * bar + 1 - bar) * noisy
        eps = (noisy - bar.sqrt() * guess) / (1 - bar).sqrt()
        terms = variational_bound_terms(process, latents, noisy, eps, timesteps)
        total += terms["denoising"] + terms["reconstruction"]
    return float((total + terms["regularisation"]).mean())


def test_bound_closes_in_on_the_entropy_from_above_as_steps_get_finer() -> None:
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.8**2)
    coarse = bound_of_optimal_denoiser(torch.linspace(0.02, 0.4, 12), spread=0.8, count=4000)
    fine = bound_of_optimal_denoiser(torch.linspace(0.01, 0.05, 200), spread=0.8, count=4000)
    assert entropy < fine < coarse
    assert fine - entropy < 0.5 * (coarse - entropy)


def test_timesteps_are_equally_likely() -> None:
    process = DiscreteDiffusion.from_schedule("linear", "epsilon")
    uniform = (torch.arange(1000) + 0.5) / 1000
    assert torch.equal(process.timesteps_from_uniform(uniform), torch.arange(1000))
    assert int(process.timesteps_from_uniform(torch.tensor([1 - 1e-8]))) == 999


# --- rectified flow -----------------------------------------------------------------------------------


def test_flow_identities_by_hand() -> None:
    """x_t = (1 - sigma) x_0 + sigma eps; x_t - sigma v = x_0 and x_t + (1 - sigma) v = eps."""
    process = RectifiedFlow(torch.tensor([1.0, 0.5, 0.25, 0.0]), "uniform")
    latents, noise = torch.tensor([[2.0], [2.0]]), torch.tensor([[-1.0], [-1.0]])
    timesteps = torch.tensor([2.0, 1.0])  # T sigma of sigma 0.5 and 0.25
    noisy = process.add_noise(latents, noise, timesteps)
    assert noisy.tolist() == [[0.5], [1.25]]
    velocity = process.target(latents, noise, timesteps)
    assert velocity.tolist() == [[-3.0], [-3.0]]
    sigma = torch.tensor([[0.5], [0.25]])
    assert torch.equal(noisy - sigma * velocity, latents)
    assert torch.equal(noisy + (1 - sigma) * velocity, noise)
    assert process.loss_weight(timesteps, None).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="min-SNR"):
        process.loss_weight(timesteps, 5.0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_timesteps_are_those_of_diffusers(shift: float) -> None:
    """Places in the table by a uniform or a logit-normal number, sigma shifted by the scheduler."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.training_utils import compute_density_for_timestep_sampling

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    uniform = torch.rand(4096, generator=torch.Generator().manual_seed(0))
    ours = RectifiedFlow(scheduler.sigmas, "uniform").timesteps_from_uniform(uniform)
    assert torch.equal(ours, scheduler.timesteps[(uniform * 1000).long()])
    by_hand = 1 - (uniform * 1000).floor() / 1000
    by_hand = 1000 * shift * by_hand / (1 + (shift - 1) * by_hand)
    torch.testing.assert_close(ours, by_hand, atol=1e-3, rtol=0)
    normal = RectifiedFlow(scheduler.sigmas, "logit_normal").timesteps_from_uniform(uniform)
    theirs = compute_density_for_timestep_sampling(
        "logit_normal", 4096, 0.0, 1.0, generator=torch.Generator().manual_seed(1)
    )
    theirs = scheduler.timesteps[(theirs * 1000).long()]
    shares = torch.linspace(0.05, 0.95, 19)
    torch.testing.assert_close(normal.quantile(shares), theirs.quantile(shares), atol=25, rtol=0)
    edges = torch.tensor([0.0, 1 - 2**-24])
    assert bool(
        RectifiedFlow(scheduler.sigmas, "logit_normal")
        .timesteps_from_uniform(edges)
        .isfinite()
        .all()
    )
