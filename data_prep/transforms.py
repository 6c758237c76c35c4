"""Decoded pictures to square pixels in [-1, 1] and back: size and crop. Decoding is in `decode`."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

NUM_CROPS = 9
"""Positions of a random crop: from one end of the longer side to the other; the middle is number 4."""


def resized_wh(size_wh: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height of a picture whose shorter side has become `size`."""
    scale = size / min(size_wh)
    width, height = (max(size, round(side * scale)) for side in size_wh)
    return width, height


def crop_square(
    image: Image.Image, size: int, *, position: int = NUM_CROPS // 2
) -> tuple[Image.Image, tuple[int, int]]:
    """A `size` × `size` picture and the (top, left) corner of the crop in the resized one.

    The shorter side is resized to `size` (Lanczos); `position` in 0 … 8 chooses along the longer one.
    """
    width, height = resized_wh(image.size, size)
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    share = position / (NUM_CROPS - 1)
    top, left = round((height - size) * share), round((width - size) * share)
    return resized.crop((left, top, left + size, top + size)), (top, left)


def to_pixel_values(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """RGB bytes as floats in [-1, 1]."""
    array = np.asarray(image, np.uint8).copy()
    return torch.from_numpy(array).permute(2, 0, 1).float().div_(127.5).sub_(1)


def to_image(pixel_values: Float[Tensor, "3 height width"]) -> Image.Image:
    """The nearest 8-bit picture of values in [-1, 1]."""
    scaled = pixel_values.detach().float().cpu().clamp(-1, 1).add(1).mul(127.5).round()
    return Image.fromarray(scaled.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
