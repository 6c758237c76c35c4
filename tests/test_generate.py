"""Sampling: a picture is its own affair, and the schedulers say what diffusers says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from finetune.errors import ConfigError
from finetune.generate import SamplingConfig, generate, generate_latents, sampler_of
from finetune.seeding import generator_for

PROMPTS = ["a photo of a dog", "a red cat in the snow", "a photo of a car", "a blue duck"]


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpm-solver++", "sde-dpm-solver++"])
def test_a_picture_in_a_batch_equals_the_same_picture_alone(tiny_base: Any, scheduler: str) -> None:
    sampling = SamplingConfig(scheduler=scheduler, num_steps=5, size=16, guidance_scale=3.0)
    together = generate_latents(tiny_base, PROMPTS, [3, 4, 5, 6], sampling)
    for index, prompt in enumerate(PROMPTS):
        alone = generate_latents(tiny_base, [prompt], [3 + index], sampling)
        torch.testing.assert_close(together[index], alone[0], atol=1e-4, rtol=0)
    split = SamplingConfig(**{**sampling.model_dump(), "batch_size": 3})
    parts = generate_latents(tiny_base, PROMPTS, [3, 4, 5, 6], split)
    torch.testing.assert_close(parts, together, atol=1e-4, rtol=0)


def test_seed_prompt_guidance_and_negative_prompt_matter(tiny_base: Any) -> None:
    def latents(prompt: str = PROMPTS[0], seed: int = 0, **changes: Any) -> torch.Tensor:
        sampling = SamplingConfig(num_steps=3, size=16, **changes)
        return generate_latents(tiny_base, [prompt], [seed], sampling)

    reference = latents()
    assert torch.equal(latents(), reference)
    for other in (
        latents(seed=1),
        latents(prompt=PROMPTS[1]),
        latents(guidance_scale=2.0),
        latents(negative_prompt="a red cat"),
        latents(scheduler="ddim"),
    ):
        assert not torch.allclose(other, reference, atol=1e-5)


def test_ddim_with_guidance_equals_the_formula_by_hand(tiny_base: Any) -> None:
    """Song et al. 2021, eq. 12 with eta 0, and eps = eps_0 + s (eps_c - eps_0), for v-prediction."""
    sampling = SamplingConfig(scheduler="ddim", num_steps=4, size=16, guidance_scale=2.5)
    ours = generate_latents(tiny_base, [PROMPTS[0]], [9], sampling)
    table = tiny_base.components.scheduler.alphas_cumprod
    shape = tiny_base.family.latent_shape(tiny_base.components, 16)
    x = torch.randn(shape, generator=generator_for(9, "picture"))[None]
    embeds = tiny_base.encode_prompts(["", PROMPTS[0]]).tensors["prompt_embeds"]
    for t in (751, 501, 251, 1):
        with torch.no_grad():
            empty, prompted = tiny_base.denoiser(torch.cat([x, x]), torch.tensor(t), embeds).sample
        v = (empty + 2.5 * (prompted - empty))[None]
        bar = table[t]
        before = table[t - 250] if t >= 250 else torch.tensor(1.0)
        clean = bar.sqrt() * x - (1 - bar).sqrt() * v
        noise = bar.sqrt() * v + (1 - bar).sqrt() * x
        x = before.sqrt() * clean + (1 - before).sqrt() * noise
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpm-solver++"])
def test_every_number_of_steps_has_as_many_falling_timesteps(
    tiny_base: Any, monkeypatch: pytest.MonkeyPatch, scheduler: str, spacing: str
) -> None:
    config = tiny_base.components.scheduler.config
    spaced = DDPMScheduler.from_config(config, timestep_spacing=spacing, steps_offset=1)
    monkeypatch.setattr(tiny_base.components, "scheduler", spaced)
    # 61 is one of those that "trailing" leads below 0, 999 and 1000 what "leading" leads above 999.
    for num_steps in (1, 20, 61, 999, 1000):
        sampling = SamplingConfig(scheduler=scheduler, num_steps=num_steps)
        if (scheduler, num_steps) == ("dpm-solver++", 1000) and spacing != "trailing":
            with pytest.raises(ConfigError, match="cannot make 1000 steps of the 1000 timesteps"):
                sampler_of(sampling, tiny_base)
            continue
        timesteps = sampler_of(sampling, tiny_base).timesteps.tolist()
        assert len(timesteps) == num_steps
        assert sorted(set(timesteps), reverse=True) == timesteps
        assert 0 <= timesteps[-1] <= timesteps[0] <= 999


def test_a_thousand_steps_of_ddpm_end_at_the_first_timestep(tiny_base: Any) -> None:
    sampler = sampler_of(SamplingConfig(scheduler="ddpm", num_steps=1000), tiny_base)
    assert sampler.timesteps.tolist() == list(range(999, -1, -1))


def test_pictures_have_the_size_asked_for(tiny_base: Any) -> None:
    images = generate(tiny_base, PROMPTS[:2], [0, 1], SamplingConfig(num_steps=2, size=24))
    assert [image.size for image in images] == [(24, 24), (24, 24)]


def test_modes_are_restored_after_generating(tiny_base: Any) -> None:
    tiny_base.denoiser.train()
    generate_latents(tiny_base, PROMPTS[:1], [0], SamplingConfig(num_steps=1, size=16))
    assert tiny_base.denoiser.training
    assert all(module.training for module in tiny_base.denoiser.modules())
    assert not tiny_base.components.vae.training
