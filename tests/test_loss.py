"""The loss: reduction by role by hand, randomness by place, min-SNR inside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from data_prep.batch import Batch, Moments
from finetune.loss import Draws, LossConfig, Objective, reduce_by_role


def batch_of(*, roles: str, indices: list[int], step: int = 0) -> Batch:
    count = len(roles)
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(count, 4, 8, 8, generator=generator)
    return Batch(
        Moments(mean, torch.full_like(mean, 0.1)),
        ["a photo of a dog"] * count,
        torch.tensor([role == "c" for role in roles]),
        indices,
        step,
        [(16, 16)] * count,
        [(0, 0)] * count,
    )


@pytest.mark.parametrize(("weight", "expected"), [(0.0, 2.0), (1.0, 2.0 + 5.0), (0.5, 2.0 + 2.5)])
def test_prior_loss_by_role_by_hand(weight: float, expected: float) -> None:
    per_sample = torch.tensor([1.0, 3.0, 4.0, 4.0, 7.0])
    is_class = torch.tensor([False, False, True, True, True])
    output = reduce_by_role(per_sample, is_class, weight)
    assert float(output.loss) == pytest.approx(expected)
    assert float(output.metrics["loss_instance"]) == 2.0
    assert float(output.metrics["loss_class"]) == 5.0


def test_a_role_without_samples_adds_nothing() -> None:
    only = torch.tensor([1.0, 3.0])
    assert float(reduce_by_role(only, torch.tensor([False, False]), 9.0).loss) == 2.0
    assert float(reduce_by_role(only, torch.tensor([True, True]), 9.0).loss) == 18.0


def test_noise_depends_on_seed_step_role_and_place_only() -> None:
    pair = Draws(0, batch_of(roles="ii", indices=[0, 1])).normal("noise")
    alone = Draws(0, batch_of(roles="i", indices=[1])).normal("noise")
    assert torch.equal(pair[1], alone[0])
    for other in (
        Draws(1, batch_of(roles="i", indices=[1])),
        Draws(0, batch_of(roles="i", indices=[1], step=1)),
        Draws(0, batch_of(roles="c", indices=[1])),
        Draws(0, batch_of(roles="i", indices=[2])),
    ):
        assert not torch.equal(other.normal("noise"), alone)
    assert not torch.equal(Draws(0, batch_of(roles="i", indices=[1])).normal("posterior"), alone)


def test_uniform_draws_cover_the_unit_interval() -> None:
    draws = Draws(0, batch_of(roles="i" * 2000, indices=list(range(2000)))).uniform("timesteps")
    assert float(draws.min()) < 0.01
    assert float(draws.max()) > 0.99
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.02)


def test_per_sample_loss_does_not_depend_on_the_batch(tiny_base: Any) -> None:
    objective = Objective(LossConfig(snr_gamma=5.0), seed=3)
    both = objective.per_sample(tiny_base, batch_of(roles="ii", indices=[0, 1]))
    first = batch_of(roles="ii", indices=[0, 1])
    alone = Batch(
        first.moments[[1]], first.prompts[1:], first.is_class[1:], [1], 0,
        first.original_size_hw[1:], first.crop_top_left_yx[1:],
    )  # fmt: skip
    torch.testing.assert_close(objective.per_sample(tiny_base, alone)[0], both[1])


def test_min_snr_scales_each_sample_by_its_weight(tiny_base: Any) -> None:
    batch = batch_of(roles="iiii", indices=[0, 1, 2, 3])
    plain = Objective(LossConfig(), seed=3).per_sample(tiny_base, batch)
    weighted = Objective(LossConfig(snr_gamma=5.0), seed=3).per_sample(tiny_base, batch)
    timesteps = (Draws(3, batch).uniform("timesteps") * 1000).long()
    bar = tiny_base.noise_process.alphas_cumprod[timesteps]
    snr = bar / (1 - bar)
    torch.testing.assert_close(weighted / plain, snr.clamp(max=5) / (snr + 1))


def test_masked_loss_by_hand(tiny_base: Any) -> None:
    """The mean over places with weights, against a mean written out from the network's answer."""
    weights = torch.zeros(2, 1, 8, 8)
    weights[0, :, :4] = 2.0  # the upper half alone, mean 1
    weights[1] = 1.0
    batch = batch_of(roles="ii", indices=[0, 1])
    objective = Objective(LossConfig(), seed=3)
    plain = objective.per_sample(tiny_base, batch)
    masked = objective.per_sample(tiny_base, replace(batch, weights=weights))
    draws, process = Draws(3, batch), tiny_base.noise_process
    latents, noise = batch.moments.sample(draws.normal("posterior")), draws.normal("noise")
    timesteps = process.timesteps_from_uniform(draws.uniform("timesteps"))
    with torch.no_grad():
        answer = tiny_base.denoise(
            process.add_noise(latents, noise, timesteps),
            timesteps,
            tiny_base.encode_prompts(batch.prompts),
            batch,
        )
    error = (answer - process.target(latents, noise, timesteps)).square()
    torch.testing.assert_close(masked[0], error[0, :, :4].mean())
    torch.testing.assert_close(masked[1], plain[1])
    assert float((masked[0] - plain[0]).abs()) > 1e-3


def test_weights_of_one_change_no_bit(tiny_base: Any) -> None:
    batch = batch_of(roles="ic", indices=[0, 0])
    objective = Objective(LossConfig(), seed=3)
    full = replace(batch, weights=torch.ones(2, 1, 8, 8))
    assert torch.equal(
        objective.per_sample(tiny_base, full), objective.per_sample(tiny_base, batch)
    )
