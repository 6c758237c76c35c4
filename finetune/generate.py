"""Pictures from a base as it stands (with or without something learnt): one seed per picture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
)
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from data_prep.config import Section
from data_prep.transforms import to_image
from finetune.base import BasePipeline
from finetune.errors import ConfigError
from finetune.families.parts import dtype_of
from finetune.seeding import generator_for, normal_like

SCHEDULERS: dict[str, tuple[Any, dict[str, str]]] = {
    "ddpm": (DDPMScheduler, {}),
    "ddim": (DDIMScheduler, {}),
    "dpm-solver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "sde-dpm-solver++": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
}
"""Name -> diffusers class and the settings that make it so."""


class SamplingConfig(Section):
    """How pictures are made from noise."""

    scheduler: Literal["ddpm", "ddim", "dpm-solver++", "sde-dpm-solver++"] = "sde-dpm-solver++"
    """Ancestral sampling (Ho et al. 2020), DDIM (Song et al. 2021), DPM-Solver++ (Lu et al. 2022), or
    the stochastic form of the latter, whose fresh noise in every step mends errors of a small base.
    Flow-matching bases (SD3, FLUX) are sampled by Euler steps along the flow, whatever stands here."""
    num_steps: int = Field(25, gt=0, le=1000)
    """Denoising steps; DDPM wants hundreds, the others 20 to 50."""
    guidance_scale: float = Field(3.0, ge=0)
    """Classifier-free guidance (Ho & Salimans 2022); 1 or less switches it off. FLUX.1 dev is told it."""
    negative_prompt: str = ""
    """What pictures are steered away from."""
    batch_size: int = Field(8, gt=0)
    """Pictures made at a time; it does not change them."""
    size: int | None = Field(None, ge=8, multiple_of=8)
    """Side in pixels; null takes the base's."""
    cpu_offload: bool = False
    """Keep only the network at work on the accelerator and the others in main memory (diffusers' model
    offload): bases larger than the accelerator make pictures too, slower."""


@contextlib.contextmanager
def evaluation_mode(base: BasePipeline) -> Iterator[None]:
    """All networks in eval mode (adapters' dropout off), as they were afterwards."""
    modes = {m: m.training for network in base.modules.values() for m in network.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def check_sampling(sampling: SamplingConfig, device: torch.device) -> None:
    """Raise `ConfigError` for what the device cannot do."""
    if sampling.cpu_offload and device.type == "cpu":
        raise ConfigError(
            "sampling.cpu_offload moves networks between main memory and an accelerator, and this machine "
            "has none. Set it to false."
        )


def sampler_of(sampling: SamplingConfig, base: BasePipeline) -> Any:
    """The sampler over the base's noise schedule, its timesteps spaced as the base says.

    Where that spacing leads beyond the schedule, as an offset does with a thousand steps of a thousand, they
    are spaced evenly. Raises `ConfigError` where that gives a timestep twice.
    """
    scheduler, settings = SCHEDULERS[sampling.scheduler]
    config = base.components.scheduler.config
    for spacing in (config.timestep_spacing, "linspace"):
        sampler = scheduler.from_config(config, **settings, timestep_spacing=spacing)
        sampler.set_timesteps(sampling.num_steps)
        timesteps = sampler.timesteps.tolist()
        falling = all(later < earlier for earlier, later in pairwise(timesteps))
        if falling and timesteps[-1] >= 0 and timesteps[0] < config.num_train_timesteps:
            return sampler
    raise ConfigError(
        f"sampling.num_steps: {sampling.scheduler} cannot make {sampling.num_steps} steps of the "
        f"{config.num_train_timesteps} timesteps of {base.source}. 20 to 50 are enough for it; ddpm "
        "takes them all."
    )


def check_pictures(sampling: SamplingConfig, base: BasePipeline) -> None:
    """Raise `ConfigError` for what the base's family cannot do; `base` may be without weights."""
    family = base.family
    if sampling.negative_prompt and not family.takes_negative_prompts:
        raise ConfigError(
            f"sampling.negative_prompt: {family.title} steers by a number that "
            "it is told, not away from another prompt. Leave it empty."
        )
    if not family.flow_matching:
        sampler_of(sampling, base)
    size, multiple = sampling.size, family.size_multiple(base.components)
    if size is not None and size % multiple:
        raise ConfigError(
            f"sampling.size {size} is not a multiple of {multiple}, as {base.source} needs it; "
            f"{size // multiple * multiple or multiple} is."
        )


@contextlib.contextmanager
def placed(base: BasePipeline, pipe: DiffusionPipeline, *, cpu_offload: bool) -> Iterator[None]:
    """Within the context the networks of `pipe` are where it needs them, if only in turns."""
    if not cpu_offload:
        with base.awake(base.modules):
            yield
        return
    resting = base.resting
    base.rest(base.modules)
    pipe.enable_model_cpu_offload(device=base.device)
    try:
        yield
    finally:
        pipe.remove_all_hooks()
        base.to(base.device, resting=resting)


@torch.no_grad()
def generate_latents(
    base: BasePipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    show_progress: bool = False,
) -> Tensor:
    """Scaled latents [N, channels, h, w] of N pictures.

    A picture is a function of its prompt, its seed and `sampling`, not of the pictures beside it.
    """
    pipe = base.pipeline()
    if not base.family.flow_matching:
        pipe.scheduler = sampler_of(sampling, base)
    size = sampling.size or base.family.default_size(base.components)
    shape = base.family.latent_shape(base.components, size)
    dtype = dtype_of(base.denoiser)
    finished = []
    starts = range(0, len(prompts), sampling.batch_size)
    check_sampling(sampling, base.device)
    check_pictures(sampling, base)
    with (
        evaluation_mode(base),
        base.mixed_precision(),
        placed(base, pipe, cpu_offload=sampling.cpu_offload),
    ):
        for start in tqdm(starts, desc="pictures", unit="batch", disable=not show_progress):
            chosen = list(prompts[start : start + sampling.batch_size])
            generators = [
                generator_for(seed, "picture")
                for seed in seeds[start : start + sampling.batch_size]
            ]
            noise = normal_like(shape, generators)
            finished.append(
                base.family.sample(
                    pipe,
                    noise.to(base.device, dtype),
                    prompts=chosen,
                    negative_prompt=sampling.negative_prompt,
                    size=size,
                    num_steps=sampling.num_steps,
                    guidance_scale=sampling.guidance_scale,
                    generators=generators,
                )
            )
    return torch.cat(finished)


def generate(
    base: BasePipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    show_progress: bool = False,
) -> list[Image.Image]:
    """One picture for each prompt and seed, in order."""
    latents = generate_latents(base, prompts, seeds, sampling, show_progress=show_progress)
    images: list[Image.Image] = []
    for part in latents.split(sampling.batch_size):
        images += [to_image(pixel_values) for pixel_values in base.decode_latents(part)]
    return images


def labelled_grid(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: Sequence[str], *, cell: int = 128
) -> Image.Image:
    """A table of pictures with row names at the left and column names on top."""
    font = ImageFont.load_default(size=13)
    left, top, gap = 130, 50, 4
    width = left + len(columns) * (cell + gap)
    grid = Image.new("RGB", (width, top + len(rows) * (cell + gap)), "white")
    draw = ImageDraw.Draw(grid)

    def write(text: str, x: int, y: int, room: int, lines: int) -> None:
        words, line, written = text.split(), "", 0
        for word in [*words, ""]:
            longer = f"{line} {word}".strip()
            if word and draw.textlength(longer, font=font) <= room:
                line = longer
                continue
            if line and written < lines:
                draw.text((x, y + 14 * written), line, fill="black", font=font)
                written += 1
            line = word

    for index, column in enumerate(columns):
        write(column, left + index * (cell + gap), 2, cell, 3)
    for row, (name, images) in enumerate(rows):
        y = top + row * (cell + gap)
        write(name, 4, y + cell // 2 - 14, left - 8, 3)
        for index, image in enumerate(images):
            resized = image.resize((cell, cell), Image.Resampling.LANCZOS)
            grid.paste(resized, (left + index * (cell + gap), y))
    return grid
