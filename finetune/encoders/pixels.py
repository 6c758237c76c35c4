"""Pictures to what an encoder takes: resize, centre crop, normalise, as the encoders' own code does it.

Written with Pillow and NumPy alone. Sizes are rounded as in torchvision, with which CLIP, DINO and DINOv2
were published: the longer side is cut down to whole pixels, and a crop's corner between two pixels goes to
the even one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

RGB = tuple[float, float, float]

CLIP_MEAN: RGB = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: RGB = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training pictures (Radford et al. 2021, github.com/openai/CLIP, clip/clip.py)."""
IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)

MASKED = 128
"""Grey that stands where the backdrop was."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side (bicubic), crop the middle, normalise the colours."""

    shorter_side: int
    """Pixels."""
    crop: int
    """Side of the square in pixels; at most `shorter_side`."""
    mean: RGB
    """Of channels in 0 … 1."""
    std: RGB

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 crop crop"]:
        """Normalised pixels of a picture, float32."""
        width, height = image.size
        short, long = (
            min(width, height),
            int(self.shorter_side * max(width, height) / min(width, height)),
        )
        size_wh = (self.shorter_side, long) if width == short else (long, self.shorter_side)
        resized = image.convert("RGB").resize(size_wh, Image.Resampling.BICUBIC)
        left, top = (round((side - self.crop) / 2) for side in resized.size)
        cropped = resized.crop((left, top, left + self.crop, top + self.crop))
        values = torch.from_numpy(np.asarray(cropped, np.float32) / 255).permute(2, 0, 1)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return ((values - mean) / std).contiguous()

    def in_words(self) -> str:
        """For the record that goes with every number."""
        return (
            f"shorter side to {self.shorter_side} px (bicubic), middle {self.crop} x {self.crop} px, "
            f"channels in 0 … 1 minus {_listed(self.mean)}, divided by {_listed(self.std)}"
        )


def _listed(values: RGB) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def hide_background(photo: Image.Image, mask: Image.Image) -> Image.Image:
    """`photo` with mid-grey where `mask` (mode L, 255 subject, same size) says backdrop.

    Whole-picture encoders reward a copied backdrop; photos without theirs ask for the subject alone.
    """
    if mask.size != photo.size:
        raise ValueError(f"a mask of {mask.size} does not fit a photo of {photo.size}")
    grey = Image.new("RGB", photo.size, (MASKED, MASKED, MASKED))
    return Image.composite(photo.convert("RGB"), grey, mask.convert("L"))
