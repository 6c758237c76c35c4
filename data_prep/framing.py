"""Which part of a photo is trained on: its shape, and where the crop lies along the side that is too long.

The subject is found by its mask. Where there is none it is taken for what has colours that the photo's
edges have not: explainable, and silent (the middle is kept) where nothing stands out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image

from data_prep.buckets import Shape, bucket_shapes, nearest_shape
from data_prep.config import DataConfig
from data_prep.decode import Photo
from data_prep.measures import standing_out, to_lab
from data_prep.transforms import NUM_CROPS, resized_wh

_NUM_OFFSETS = 257
"""Places along a side that are compared."""
_MIN_GAIN = 1.05
"""How much more than the middle another place has to hold of what stands out."""
_MIN_AREA = 0.005
"""Share of the picture that has to stand out; less is taken for specks."""


@dataclass(frozen=True)
class Frame:
    """One way to crop a photo, for `transforms.crop_to`."""

    size_hw: Shape
    share: float


def shape_of(photo: Photo, config: DataConfig, size: int) -> Shape:
    """Height and width that a photo is trained at."""
    if not config.buckets:
        return size, size
    return nearest_shape(photo.size_hw, bucket_shapes(size))


def frames_of(photo: Photo, config: DataConfig, size: int) -> list[Frame]:
    """The frames that training can draw of a photo; one, unless crops are random."""
    shape = shape_of(photo, config, size)
    if resized_wh(photo.image.size, shape) == shape[::-1]:
        return [Frame(shape, 0.5)]
    if config.crop == "random":
        return [Frame(shape, position / (NUM_CROPS - 1)) for position in range(NUM_CROPS)]
    return [Frame(shape, subject_share(photo, shape) if config.crop == "subject" else 0.5)]


def subject_share(photo: Photo, shape: Shape) -> float:
    """Where along the longer side a crop of `shape` holds most of the subject, 0 … 1."""
    width, height = resized_wh(photo.image.size, shape)
    axis = 0 if height > shape[0] else 1  # the one that is too long
    kept = (shape[0] / height, shape[1] / width)[axis]
    if photo.mask is not None:
        small = photo.mask.resize((256, 256), Image.Resampling.BOX, reducing_gap=2.0)
        return _best_share(np.asarray(small, np.float64).sum(1 - axis), kept, min_gain=1.0)
    away = standing_out(to_lab(photo.image))
    if (away > 0).mean() < _MIN_AREA:
        return 0.5
    profile = away.sum(1 - axis)
    return _best_share(profile.astype(np.float64), kept, min_gain=_MIN_GAIN)


def _best_share(profile: Float[np.ndarray, " n"], kept: float, *, min_gain: float) -> float:
    """The place of a window of `kept` (a share of the length) that holds most of `profile`.

    Of places that hold nearly the same, the one whose middle is nearest to the centre of mass.
    """
    total = profile.sum()
    if total <= 0:
        return 0.5
    length = np.linspace(0, 1, len(profile) + 1)
    cumulative = np.concatenate([[0], profile.cumsum()]) / total
    offsets = np.linspace(0, 1 - kept, _NUM_OFFSETS)
    held = np.interp(offsets + kept, length, cumulative) - np.interp(offsets, length, cumulative)
    if held.max() < min_gain * held[_NUM_OFFSETS // 2]:
        return 0.5
    centre = float((profile * (length[:-1] + length[1:]) / 2).sum() / total)
    near = np.where(held >= held.max() - 1e-3, np.abs(offsets + kept / 2 - centre), np.inf)
    return float(offsets[int(near.argmin())] / (1 - kept))
