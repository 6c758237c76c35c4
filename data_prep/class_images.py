"""Class pictures for the prior: made by the frozen base once, kept as latents, shared between runs.

Each picture is addressed by everything that shapes it (base, prompt, sampler, size, seed), so it can never
be mistaken for one of another base or prompt, what is missing or damaged is made alone, and several runs
may make pictures at the same time. Being latents already, they are never decoded and encoded again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data_prep.batch import Moments
from data_prep.cache import TensorCache, cache_key, digest_of
from data_prep.config import DataConfig, PriorConfig
from data_prep.decode import decode_each
from data_prep.instances import EncodeImages, View, encode_photos
from data_prep.sources import read_records

GenerateLatents = Callable[[list[str], list[int]], Tensor]
"""(prompts, seeds) -> scaled latents [batch, channels, height, width], one seed per picture."""


@dataclass(frozen=True)
class ClassPictures:
    """Pictures of the class, all of one shape."""

    moments: Moments
    original_size_hw: list[tuple[int, int]]
    corners: list[tuple[int, int]]
    """Top and left of each crop in the resized picture."""
    manifest: dict[str, Any]
    """Where they come from: for the run folder."""

    def __len__(self) -> int:
        return len(self.corners)

    def view(self, index: int) -> View:
        """One picture, as photos are told of."""
        return View(self.moments[[index]], (), self.corners[index], None)

    def size_hw(self, index: int) -> tuple[int, int]:
        """Height and width of the file, or of the picture as it was made."""
        return self.original_size_hw[index]


def made_pictures(
    config: PriorConfig,
    *,
    prompt: str,
    base_fingerprint: str,
    sampler: str,
    size: int,
    generate: GenerateLatents,
    cache: TensorCache,
) -> ClassPictures:
    """`config.num_images` class pictures as latents (their deviation is zero); missing ones are made."""
    provenance = {
        "base": base_fingerprint,
        "prompt": prompt,
        "sampler": sampler,
        "num_steps": config.num_steps,
        "guidance_scale": config.guidance_scale,
        "size": size,
    }
    seeds = [config.seed * 1_000_003 + index for index in range(config.num_images)]
    keys = {seed: cache_key(kind="class picture", seed=seed, **provenance) for seed in seeds}
    found = {seed: tensors["latents"] for seed in seeds if (tensors := cache.get(keys[seed]))}
    missing = [seed for seed in seeds if seed not in found]
    starts = range(0, len(missing), config.batch_size)
    description = f"class pictures ({prompt})"
    for start in tqdm(starts, desc=description, unit="batch", leave=False, disable=not starts):
        batch = missing[start : start + config.batch_size]
        latents = generate([prompt] * len(batch), batch).float().cpu()
        for seed, picture in zip(batch, latents.split(1), strict=True):
            found[seed] = picture
            told = {name: str(value) for name, value in {**provenance, "seed": seed}.items()}
            # Kept after every batch: an interrupted job goes on where it was.
            cache.put(keys[seed], {"latents": picture}, told)
    latents = torch.cat([found[seed] for seed in seeds])
    digests = [digest_of({"latents": found[seed]}) for seed in seeds]
    pictures = [
        {"seed": seed, "key": keys[seed], "latents": digest}
        for seed, digest in zip(seeds, digests, strict=True)
    ]
    return ClassPictures(
        Moments(latents, torch.zeros_like(latents)),
        [(size, size)] * len(seeds),
        [(0, 0)] * len(seeds),
        {"made_by": provenance, "num_made_now": len(missing), "pictures": pictures},
    )


def own_pictures(
    folder: str,
    data: DataConfig,
    *,
    prompt: str,
    size: int,
    encode_images: EncodeImages,
    encoder_key: str,
    cache: TensorCache | None,
) -> ClassPictures:
    """The user's own photos of the class: square crops of their middles, never mirrored or recoloured."""
    plain = DataConfig(photos=folder, background=data.background)
    photos = decode_each(read_records(plain, field="prior.photos"), background=data.background)
    encoded = encode_photos(
        (replace(photo, caption=None, prompt=None) for photo in photos),
        plain,
        size=size,
        subject=prompt,
        encode_images=encode_images,
        encoder_key=encoder_key,
        cache=cache,
    )
    views = list(encoded.views.values())
    pictures = [
        {"file": name, "latents": digest_of({"mean": view.moments.mean, "std": view.moments.std})}
        for name, view in zip(encoded.names, views, strict=True)
    ]
    return ClassPictures(
        Moments.cat([view.moments for view in views]),
        encoded.original_size_hw,
        [view.corner for view in views],
        {"photos": folder, "prompt": prompt, "encoder": encoder_key, "pictures": pictures},
    )
