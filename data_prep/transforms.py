"""Photos as they come, to square RGB pixels in [-1, 1]: orientation, alpha, depth, size, crop, flip."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from data_prep.errors import DataError
from data_prep.sources import Record

MAX_PIXELS = 100_000_000
"""Pictures with more pixels than this are refused before they are decoded."""


@dataclass(frozen=True)
class Photo:
    """A decoded picture: RGB, upright, at its own size."""

    name: str
    image: Image.Image
    caption: str | None
    notes: tuple[str, ...]
    """What had to be done to it, for the inspection."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.height, self.image.width


def _to_srgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """`image` with its embedded colour profile applied; a profile that cannot be read is left out."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "CMYK", "L"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        notes.append(f"colour profile not usable ({error})")
        return image
    if converted is None:
        return image
    notes.append("colour profile converted to sRGB")
    return converted


def to_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """`image` as 8-bit RGB: transparency over white, 16-bit grey scaled down."""
    if image.mode.startswith("I;16") or image.mode == "I":
        notes.append(f"mode {image.mode}: scaled from 16 to 8 bits")
        values = np.asarray(image, np.float32)
        return Image.fromarray((values / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        notes.append("floating-point picture: stretched to its own range")
        values = np.asarray(image, np.float32)
        span = max(float(values.max() - values.min()), 1e-9)
        scaled = ((values - values.min()) / span * 255).astype(np.uint8)
        return Image.fromarray(scaled).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        notes.append("transparent: laid over white")
        layer = image.convert("RGBA")
        backdrop = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(backdrop, layer).convert("RGB")
    return _to_srgb(image, notes).convert("RGB")


def decode(record: Record) -> Photo:
    """The picture of `record`. Raises `DataError`, naming it, if it cannot be read."""
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with record.open() as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(
                        f"{record.name} has {image.width} × {image.height} pixels, more than "
                        f"{MAX_PIXELS // 1_000_000} million. Make it smaller."
                    )
                image.load()
                num_frames = getattr(image, "n_frames", 1)
                if num_frames > 1:
                    notes.append(f"animated ({num_frames} frames): the first is used")
                if image.getexif().get(0x0112, 1) != 1:
                    notes.append("turned upright (EXIF)")
                rgb = to_rgb(ImageOps.exif_transpose(image), notes)
    # Damaged files make Pillow raise the middle three as well (AVIF, TIFF, EXIF).
    except (
        OSError,
        SyntaxError,
        ValueError,
        RuntimeError,
        TypeError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(
            f"{record.name} cannot be read as a picture ({error}). Mend or remove the file."
        ) from error
    return Photo(record.name, rgb, record.caption, tuple(notes))


def decode_all(records: list[Record]) -> list[Photo]:
    """Every picture. Raises one `DataError` that names all that cannot be read."""
    photos, problems = [], []
    for record in records:
        try:
            photos.append(decode(record))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return photos


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
