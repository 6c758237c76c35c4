"""Masks: where a photo's subject is, as the user says, and what that makes of the loss's weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from data_prep.errors import DataError

MASK_FOLDER = "mask"
"""Beside the photos; a mask has the name of its photo, whatever its ending."""
_MAX_SKEW = 0.02
"""Relative difference of the ratios of sides of a photo and its mask."""


def masks_beside(pictures: list[Path], suffixes: tuple[str, ...]) -> dict[Path, Path]:
    """Picture -> its mask. Raises `DataError` for a mask that has no photo, or shares its name."""
    found: dict[Path, Path] = {}
    for folder in sorted({picture.parent for picture in pictures}):
        by_stem: dict[str, Path] = {}
        if not (folder / MASK_FOLDER).is_dir():
            continue
        for mask in sorted((folder / MASK_FOLDER).iterdir()):
            if mask.name.startswith(".") or mask.suffix.lower() not in suffixes:
                continue
            if mask.stem in by_stem:
                raise DataError(
                    f"{by_stem[mask.stem]} and {mask} are masks of one photo. Keep one."
                )
            by_stem[mask.stem] = mask
        here = [picture for picture in pictures if picture.parent == folder]
        if lonely := sorted(by_stem.keys() - {picture.stem for picture in here}):
            raise DataError(
                f"{by_stem[lonely[0]]} is the mask of no photo in {folder}. Give it the name of its photo."
            )
        found |= {path: by_stem[path.stem] for path in here if path.stem in by_stem}
    return found


def fitted_mask(
    mask: Image.Image, opacity: Image.Image | None, size_wh: tuple[int, int], name: str
) -> Image.Image:
    """A mask file's picture as grey levels (255 subject) of the size of the photo `name`.

    Where the file is transparent in part its `opacity` is the mask. Raises `DataError` if it has another
    shape than the photo or shows no subject.
    """
    levels = mask.convert("L") if opacity is None else opacity
    width, height = levels.size
    skew = width * size_wh[1] / (height * size_wh[0])
    if not 1 - _MAX_SKEW <= skew <= 1 + _MAX_SKEW:
        raise DataError(
            f"The mask of {name} has {width} × {height} pixels, the photo {size_wh[0]} × {size_wh[1]} "
            "as it is shown upright. Give the mask the same shape."
        )
    if not shows_subject(levels):
        raise DataError(
            f"The mask of {name} is dark throughout. Make it light where the subject is."
        )
    return levels if levels.size == size_wh else levels.resize(size_wh, Image.Resampling.BILINEAR)


def shows_subject(mask: Image.Image) -> bool:
    """Whether a mask is light anywhere."""
    return bool(np.asarray(mask).max() >= 128)


def latent_weights(
    mask: Image.Image, latent_hw: tuple[int, int], unmasked_weight: float
) -> Float[Tensor, "1 1 height width"]:
    """Weights of latents in the loss, of mean 1, from the crop of a mask that shows some subject.

    A latent's share m of subject is the mask's mean over its area; its weight is m + unmasked_weight ·
    (1 - m), divided by the mean. So a mask that is light everywhere weighs as none.
    """
    levels = torch.from_numpy(np.asarray(mask, np.float32) / 255)[None, None]
    share = F.adaptive_avg_pool2d(levels, latent_hw)
    weights = share + unmasked_weight * (1 - share)
    return weights / weights.mean()
