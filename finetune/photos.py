"""A subject's photos as they are scored: decoded as for training, cropped to the pictures' square."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from PIL import Image

from data_prep.config import DataConfig
from data_prep.decode import decode_each
from data_prep.sources import read_records
from data_prep.transforms import crop_square


@dataclass(frozen=True)
class ScoredPhoto:
    """One photo, square, with its mask if it has one."""

    name: str
    image: Image.Image
    mask: Image.Image | None
    caption: str | None
    prompt: str | None = None
    """Caption of its folder, for want of its own."""
    repeats: int = 1
    """How often it comes in an epoch."""

    @property
    def sha256(self) -> str:
        """Of the pixels, 64 hex digits."""
        return _sha256(self.image)

    def identity(self) -> dict[str, str | int | None]:
        """What a comparison remembers of it: hashes, no caption and no place."""
        told = self.prompt if self.caption is None else self.caption
        return {
            "name": self.name,
            "pixels": self.sha256,
            "mask": None if self.mask is None else _sha256(self.mask),
            "caption": None if told is None else _text_hash(told),
            "repeats": self.repeats,
        }


def _sha256(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()


def _text_hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def scored_photos(data: DataConfig, *, size: int, field: str = "data.photos") -> list[ScoredPhoto]:
    """The photos of `data` at `size` × `size` pixels, cropped in the middle, in their order.

    Raises `DataError` for photos that are not there or cannot be read.
    """
    records = read_records(data, field=field)
    return [
        ScoredPhoto(
            photo.name,
            crop_square(photo.image, size)[0],
            None if photo.mask is None else crop_square(photo.mask, size)[0],
            photo.caption,
            photo.prompt,
            photo.repeats,
        )
        for photo in decode_each(records, background=data.background)
    ]
