"""Decoded pictures to pixels in [-1, 1] and back: size, crop and colour. Decoding is in `decode`."""

from __future__ import annotations

import random

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageEnhance
from torch import Tensor

NUM_CROPS = 9
"""Positions of a random crop: from one end of the longer side to the other; the middle is number 4."""
NUM_COLORS = 4
"""Versions of a photo whose colours are changed; the first is as it is."""


def resized_wh(size_wh: tuple[int, int], size: int | tuple[int, int]) -> tuple[int, int]:
    """Width and height of a picture that has just come to cover `size` (a side, or height and width)."""
    height, width = (size, size) if isinstance(size, int) else size
    scale = max(width / size_wh[0], height / size_wh[1])
    return max(width, round(size_wh[0] * scale)), max(height, round(size_wh[1] * scale))


def crop_to(
    image: Image.Image, size_hw: tuple[int, int], *, share: float = 0.5
) -> tuple[Image.Image, tuple[int, int]]:
    """A picture of `size_hw` and the (top, left) corner of the crop in the resized one.

    The picture is resized (Lanczos) to just cover `size_hw`; `share`, 0 … 1, is how far along the side
    that is too long the crop lies.
    """
    width, height = resized_wh(image.size, size_hw)
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    top, left = round((height - size_hw[0]) * share), round((width - size_hw[1]) * share)
    return resized.crop((left, top, left + size_hw[1], top + size_hw[0])), (top, left)


def crop_square(
    image: Image.Image, size: int, *, position: int = NUM_CROPS // 2
) -> tuple[Image.Image, tuple[int, int]]:
    """`crop_to` a square; `position` in 0 … 8 chooses along the longer side."""
    return crop_to(image, (size, size), share=position / (NUM_CROPS - 1))


def color_factors(version: int, strength: float) -> tuple[float, float, float]:
    """Factors of brightness, contrast and saturation, within `strength` of 1; version 0 has none."""
    if version == 0:
        return 1.0, 1.0, 1.0
    rng = random.Random(f"color {version}")
    factors = [1 + strength * rng.uniform(-1, 1) for _ in range(3)]
    return factors[0], factors[1], factors[2]


def jittered(image: Image.Image, version: int, strength: float) -> Image.Image:
    """`image` with the colours of a version; its hues stay."""
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for kind, factor in zip(kinds, color_factors(version, strength), strict=True):
        if factor != 1:
            image = kind(image).enhance(factor)
    return image


def to_pixel_values(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """RGB bytes as floats in [-1, 1]."""
    array = np.asarray(image, np.uint8).copy()
    return torch.from_numpy(array).permute(2, 0, 1).float().div_(127.5).sub_(1)


def to_image(pixel_values: Float[Tensor, "3 height width"]) -> Image.Image:
    """The nearest 8-bit picture of values in [-1, 1]."""
    scaled = pixel_values.detach().float().cpu().clamp(-1, 1).add(1).mul(127.5).round()
    return Image.fromarray(scaled.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
