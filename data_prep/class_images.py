"""Class pictures for the prior: made by the frozen base once, kept as latents, shared between runs.

The pictures are addressed by everything that shapes them (base, prompt, sampler, seed, size), so they
can be topped up but never be mistaken for those of another base or prompt. Being latents already, they
are never decoded and encoded again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from data_prep.batch import Moments
from data_prep.cache import TensorCache, cache_key
from data_prep.config import PriorConfig

GenerateLatents = Callable[[list[str], list[int]], Tensor]
"""(prompts, seeds) -> scaled latents [batch, channels, height, width], one seed per picture."""


def class_latents(
    config: PriorConfig,
    *,
    prompt: str,
    base_fingerprint: str,
    size: int,
    generate: GenerateLatents,
    cache: TensorCache,
) -> Moments:
    """`config.num_images` class pictures as latents (their deviation is zero); missing ones are made."""
    shapes_them = {
        "kind": "class latents",
        "base": base_fingerprint,
        "prompt": prompt,
        "size": size,
        "num_steps": config.num_steps,
        "guidance_scale": config.guidance_scale,
        "seed": config.seed,
    }
    key = cache_key(**shapes_them)
    found = cache.get(key)
    parts = [] if found is None else [found["latents"]]
    have = sum(len(part) for part in parts)
    starts = range(have, config.num_images, config.batch_size)
    description = f"class pictures ({prompt})"
    for start in tqdm(starts, desc=description, unit="batch", leave=False, disable=not starts):
        count = min(config.batch_size, config.num_images - start)
        seeds = [config.seed * 1_000_003 + start + index for index in range(count)]
        parts.append(generate([prompt] * count, seeds).float().cpu())
        # Kept after every batch: an interrupted job goes on where it was.
        metadata = {name: str(value) for name, value in shapes_them.items()}
        cache.put(key, {"latents": torch.cat(parts)}, metadata)
    latents = torch.cat(parts)[: config.num_images]
    return Moments(latents, torch.zeros_like(latents))
