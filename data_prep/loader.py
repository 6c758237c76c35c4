"""Training batches: photos as cached latent moments, in an order that is a pure function of (seed, step)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from data_prep.batch import Batch, Moments
from data_prep.cache import TensorCache, cache_key, pixels_key
from data_prep.captions import fill_template
from data_prep.config import DataConfig
from data_prep.decode import Photo
from data_prep.transforms import NUM_CROPS, crop_square, resized_wh, to_pixel_values

EncodeImages = Callable[[Tensor], Moments]
"""Pixels [batch, 3, height, width] in [-1, 1] -> scaled latent moments."""


@dataclass(frozen=True)
class Variant:
    """One way a photo is shown: crop position and mirroring."""

    crop: int
    mirrored: bool


@dataclass(frozen=True)
class InstanceSet:
    """All photos in all their variants, as moments; `rows[photo, variant]` is a row of `moments`."""

    moments: Moments
    rows: dict[tuple[int, Variant], int]
    captions: list[str]
    original_size_hw: list[tuple[int, int]]
    corners: dict[tuple[int, Variant], tuple[int, int]]
    """Top and left of each crop, in the resized picture as it is shown (mirrored or not)."""
    size: int
    """Side in pixels of the crops."""

    def __len__(self) -> int:
        return len(self.captions)


def variants_of(photo: Photo, config: DataConfig) -> list[Variant]:
    """The variants that training can draw of `photo`."""
    square = photo.image.width == photo.image.height
    crops = [NUM_CROPS // 2] if config.crop == "center" or square else list(range(NUM_CROPS))
    flips = {0.0: [False], 1.0: [True]}.get(config.flip_probability, [False, True])
    return [Variant(crop, mirrored) for crop in crops for mirrored in flips]


def encode_photos(
    photos: list[Photo],
    config: DataConfig,
    *,
    size: int,
    subject: str,
    encode_images: EncodeImages,
    encoder_key: str,
    cache: TensorCache,
) -> InstanceSet:
    """Latent moments of every photo and variant, from `cache` where it has them.

    `encoder_key` stands for the autoencoder and its precision.
    """
    means: list[Tensor] = []
    stds: list[Tensor] = []
    rows: dict[tuple[int, Variant], int] = {}
    corners: dict[tuple[int, Variant], tuple[int, int]] = {}
    for index, photo in enumerate(photos):
        for variant in variants_of(photo, config):
            cropped, corner = crop_square(photo.image, size, position=variant.crop)
            pixel_values = to_pixel_values(cropped)
            if variant.mirrored:
                pixel_values = pixel_values.flip(2)
                top, left = corner
                corner = top, resized_wh(photo.image.size, size)[0] - size - left

            def encode(pixel_values: Tensor = pixel_values) -> dict[str, Tensor]:
                moments = encode_images(pixel_values[None])
                return {"mean": moments.mean[0], "std": moments.std[0]}

            key = cache_key(kind="moments", encoder=encoder_key, pixels=pixels_key(pixel_values))
            stored = cache.get_or_make(key, encode)
            rows[index, variant] = len(means)
            corners[index, variant] = corner
            means.append(stored["mean"])
            stds.append(stored["std"])
    captions = [
        fill_template(
            photo.caption if photo.caption is not None else config.prompt,
            subject=subject,
            class_noun=config.class_noun,
            field=f"caption of {photo.name}" if photo.caption is not None else "data.prompt",
        )
        for photo in photos
    ]
    return InstanceSet(
        Moments(torch.stack(means), torch.stack(stds)),
        rows,
        captions,
        [photo.size_hw for photo in photos],
        corners,
        size,
    )


class TrainingData:
    """Batches of instance and class examples; `micro_batch` is the loop's only question."""

    def __init__(
        self,
        config: DataConfig,
        instances: InstanceSet,
        *,
        seed: int,
        batch_size: int,
        class_moments: Moments | None = None,
        class_prompt: str | None = None,
        instances_as_class: bool = False,
    ) -> None:
        """`class_moments`: class pictures. `instances_as_class`: photos under `class_prompt` instead."""
        self.config, self.instances, self.seed = config, instances, seed
        self.batch_size = batch_size
        self.class_moments, self.class_prompt = class_moments, class_prompt
        self.instances_as_class = instances_as_class

    @property
    def prompts(self) -> list[str]:
        """Every prompt that batches may hold, once each."""
        dropped = [""] if self.config.caption_dropout else []
        of_class = [] if self.class_prompt is None else [self.class_prompt]
        return list(dict.fromkeys([*self.instances.captions, *of_class, *dropped]))

    def order(self, sample: int, num: int, stream: str) -> int:
        """Which of `num` items the `sample`-th draw of a stream is: each once per epoch, shuffled."""
        epoch, position = divmod(sample, num)
        shuffled = list(range(num))
        random.Random(f"{self.seed} order {stream} {epoch}").shuffle(shuffled)
        return shuffled[position]

    def _instance(self, sample: int, stream: str) -> tuple[int, Variant, bool]:
        """Photo, variant and whether the caption is dropped, of one draw."""
        rng = random.Random(f"{self.seed} {stream} {sample}")
        photo = self.order(sample, len(self.instances), stream)
        crops = sorted({v.crop for p, v in self.instances.rows if p == photo})
        mirrored = rng.random() < self.config.flip_probability
        crop = crops[rng.randrange(len(crops))]
        return photo, Variant(crop, mirrored), rng.random() < self.config.caption_dropout

    def micro_batch(self, step: int, *, num_micro: int, micro: int) -> Batch:
        """Part `micro` of the `num_micro` equal parts of optimizer step `step`'s global batch."""
        per_micro = self.batch_size // num_micro
        places = range(micro * per_micro, (micro + 1) * per_micro)
        samples = [step * self.batch_size + place for place in places]
        parts, prompts, sizes, corners = [], [], [], []
        for sample in samples:
            photo, variant, dropped = self._instance(sample, "instance")
            parts.append(self.instances.moments[[self.instances.rows[photo, variant]]])
            prompts.append("" if dropped else self.instances.captions[photo])
            sizes.append(self.instances.original_size_hw[photo])
            corners.append(self.instances.corners[photo, variant])
        num_instances = len(samples)
        if self.class_prompt is not None:
            for sample in samples:
                if self.instances_as_class:
                    photo, variant, _ = self._instance(sample, "class")
                    parts.append(self.instances.moments[[self.instances.rows[photo, variant]]])
                    sizes.append(self.instances.original_size_hw[photo])
                    corners.append(self.instances.corners[photo, variant])
                elif self.class_moments is not None:
                    picture = self.order(sample, len(self.class_moments.mean), "class")
                    parts.append(self.class_moments[[picture]])
                    sizes.append((self.instances.size, self.instances.size))
                    corners.append((0, 0))
                prompts.append(self.class_prompt)
        is_class = torch.arange(len(prompts)) >= num_instances
        indices = [*places, *places][: len(prompts)]
        return Batch(Moments.cat(parts), prompts, is_class, indices, step, sizes, corners)
