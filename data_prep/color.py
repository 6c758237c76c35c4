"""Pixels of every mode to 8-bit RGB in sRGB, with the transparency set aside.

Nothing is resized or turned here, and what lies under full transparency never shows.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

from data_prep.kinds import Unreadable

_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
"""Mode -> the colour space that a profile for it has to name."""
_LOW_DEPTHS = {"L;2": 85, "L;4": 17}
"""Pillow's raw mode -> what it multiplies a low-depth grey value by."""


def is_deep(image: Image.Image) -> bool:
    """Whether a picture has more than 8 bits a channel in one channel."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _raw_mode(image: Image.Image) -> str:
    """How the pixels are stored in the file, in Pillow's words, or the empty string."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw if isinstance(raw, str) else ""


def fit_transparent_color(image: Image.Image) -> None:
    """Bring the transparent colour of a PNG to the depth that Pillow decodes to. Before `load`."""
    key = image.info.get("transparency")
    raw = _raw_mode(image)
    if isinstance(key, int) and raw in _LOW_DEPTHS:
        image.info["transparency"] = key * _LOW_DEPTHS[raw]
    elif isinstance(key, tuple) and "16" in raw:
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _scaled(image: Image.Image, notes: list[str]) -> Image.Image:
    """A deep picture as 8-bit grey."""
    values = np.asarray(image)
    if image.mode == "F":
        finite = np.isfinite(values)
        if not finite.all():
            notes.append("numbers that are not finite: set to black")
            values = np.where(finite, values, values[finite].min() if finite.any() else 0)
        low, high = float(values.min()), float(values.max())
        if low >= 0 and high <= 1:
            notes.append("floating-point picture: 0 to 1 taken as black to white")
            low, high = 0.0, 1.0
        else:
            notes.append("floating-point picture: stretched to its own range")
        scale = 255 / (high - low) if high > low else 0.0
        # Subtracted before the range is taken to single precision: numbers may be large.
        levels = (values.astype(np.float64) - low) * scale
    elif image.mode == "I" and int(values.max(initial=0)) > 65535:
        notes.append("mode I: scaled from 32 to 8 bits")
        levels = values / (2**31 - 1) * 255
    else:
        notes.append(f"mode {image.mode}: scaled from 16 to 8 bits")
        levels = values.astype(np.float32) / 257
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def _split(image: Image.Image, notes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """Colours without transparency, in mode L, RGB or CMYK, and the alpha channel or None."""
    key = image.info.get("transparency")
    if is_deep(image):
        alpha = None
        if isinstance(key, int):
            alpha = Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8))
        return _scaled(image, notes), alpha
    if image.mode in _ALPHA_MODES or key is not None:
        grey = image.mode in ("LA", "La", "L", "1")
        layer = image.convert("RGBA")
        alpha = layer.getchannel("A")
        return (layer.getchannel("R") if grey else layer.convert("RGB")), alpha
    if image.mode in ("L", "CMYK"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _to_srgb(colors: Image.Image, profile: bytes, notes: list[str]) -> Image.Image:
    """`colors` with the embedded colour profile applied; a profile that cannot be used is left out."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return colors
        space = source.profile.xcolor_space.strip()
        if space != _SPACES[colors.mode]:
            raise ValueError(f"it is for {space}, the picture is {colors.mode}")
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(colors, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        notes.append(f"colour profile not usable, left out ({error})")
        return colors
    notes.append("colour profile converted to sRGB")
    return converted if converted is not None else colors


def to_rgb(
    image: Image.Image, background: str, notes: list[str]
) -> tuple[Image.Image, Image.Image | None]:
    """A loaded picture as 8-bit RGB over `background`, and its alpha (L) unless it is opaque.

    Adds what was done to `notes`. Raises `Unreadable` if all of it is transparent.
    """
    profile = image.info.get("icc_profile")
    colors, alpha = _split(image, notes)
    if isinstance(profile, bytes) and profile and image.mode != "LAB":
        colors = _to_srgb(colors, profile, notes)
    if colors.mode != "RGB":
        colors = colors.convert("RGB")
    if alpha is None or alpha.getextrema() == (255, 255):
        return colors, None
    if alpha.getextrema() == (0, 0):
        raise Unreadable("all of it is transparent", "Save it without transparency or remove it.")
    notes.append(f"transparent: laid over {background}")
    laid = Image.new("RGB", colors.size, background)
    laid.paste(colors, mask=alpha)
    return laid, alpha
