"""The one decoder: a record to an upright RGB picture, or a refusal that names the file.

Training and inspection both come here, so what is inspected is what is trained on. Knows nothing of the
sizes to train at.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath

from PIL import Image

from data_prep.color import fit_transparent_color, is_deep, to_rgb
from data_prep.errors import DataError
from data_prep.kinds import ALL_SUFFIXES, MEND, SUFFIXES, Unreadable
from data_prep.masks import fitted_mask
from data_prep.sources import Record

MAX_PIXELS = 100_000_000
"""Pictures with more pixels than this are refused before they are decoded."""
MAX_PIXELS_IN_COPIES = 50_000_000
"""The limit where decoding holds several copies: transparency, CMYK, more than 8 bits, progressive JPEG,
and every kind but JPEG, PNG, TIFF and BMP. Both keep a picture under one GiB of memory."""
MAX_ASPECT = 32
"""Longer strips are refused: scaled to a square's width they would not fit into memory."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the picture upright."""


@dataclass(frozen=True)
class Photo:
    """A decoded picture: RGB, upright, at its own size, without metadata."""

    name: str
    image: Image.Image
    caption: str | None
    notes: tuple[str, ...]
    """What had to be done to it, for the inspection."""
    alpha: Image.Image | None = None
    """Opacity (mode L, 255 opaque) of a picture that was transparent, of the same size."""
    mask: Image.Image | None = None
    """Where the subject is (mode L, 255 subject): from a mask file, else the opacity."""
    prompt: str | None = None
    """Caption of its folder, for a photo that has none of its own; None for that of the configuration."""
    repeats: int = 1
    """How often it comes in an epoch."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.height, self.image.width


@contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings; what they say is in the notes or in the refusal. Not for threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL|pillow_heif")
        yield


def pixel_limit(image: Image.Image) -> int:
    """How many pixels an opened, undecoded picture may have."""
    copies = (
        image.format not in ("JPEG", "MPO", "PNG", "TIFF", "BMP")
        or is_deep(image)
        or image.mode not in ("RGB", "L", "1")
        or "transparency" in image.info
        or "progressive" in image.info
    )
    return MAX_PIXELS_IN_COPIES if copies else MAX_PIXELS


def num_pixels(record: Record) -> int:
    """Pixels of a record by its header; 0 if it cannot be read."""
    try:
        with record.open() as image:
            return image.width * image.height
    except _DAMAGED:
        return 0


def _orientation(image: Image.Image, notes: list[str]) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGED:
        notes.append("EXIF data not readable, left out")
        return 1


def _kind(image: Image.Image) -> str:
    """The kind of an opened picture, as a key of `SUFFIXES`. Phones' JPEGs may hold several (MPO)."""
    named = {"MPO": "JPEG", "WEBP": "WebP", "HEIF": "HEIC"}
    return named.get(image.format or "", image.format or "")


def _remark_on_content(image: Image.Image, name: str, notes: list[str]) -> None:
    suffix, kind = PurePath(name).suffix.lower(), _kind(image)
    if suffix in ALL_SUFFIXES and suffix not in SUFFIXES.get(kind, (suffix,)):
        notes.append(f"named {suffix} but is a {kind} file")
    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1 and kind in ("JPEG", "TIFF", "HEIC"):
        notes.append(f"{num_frames} pictures in the file: the first is used")
    elif num_frames > 1:
        notes.append(f"animated ({num_frames} frames): the first is used")


# What Pillow raises for damaged files, beside what it documents (AVIF, TIFF, EXIF, GIF).
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    TypeError,
    EOFError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)


def decode_quietly(record: Record, *, background: str) -> Photo:
    """`decode` for threads: the caller stands inside `quiet`."""
    notes: list[str] = []
    try:
        with record.open() as image:
            limit = pixel_limit(image)
            if image.width * image.height > limit:
                raise DataError(
                    f"{record.name} has {image.width} × {image.height} pixels, more than "
                    f"{limit // 1_000_000} million. Make it smaller."
                )
            if max(image.size) > MAX_ASPECT * min(image.size):
                raise DataError(
                    f"{record.name} has {image.width} × {image.height} pixels, a strip more than "
                    f"{MAX_ASPECT} times as long as wide. Crop it."
                )
            fit_transparent_color(image)
            # Pillow turns TIFF files itself, while loading.
            turned = image.format == "TIFF" and _orientation(image, []) in _UPRIGHT
            image.load()
            _remark_on_content(image, record.name, notes)
            orientation = _orientation(image, notes)
            rgb, alpha = to_rgb(image, background, notes)
        del image
        turn = _UPRIGHT.get(orientation)
        if turned or turn is not None:
            notes.append("turned upright (EXIF)")
        if turn is not None:
            rgb = rgb.transpose(turn)
            alpha = None if alpha is None else alpha.transpose(turn)
    except _DAMAGED as error:
        remedy = error.remedy if isinstance(error, Unreadable) else MEND
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{record.name} cannot be read as a picture ({reason}). {remedy}"
        ) from error
    # Camera, place, comments and profiles would be written into every picture made from this one.
    rgb.info = {}
    mask = alpha
    if record.mask is not None:
        drawn = decode_quietly(record.mask, background="black")
        mask = fitted_mask(drawn.image, drawn.alpha, rgb.size, record.name)
    return Photo(
        record.name, rgb, record.caption, tuple(notes), alpha, mask, record.prompt, record.repeats
    )


def decode(record: Record, *, background: str = "white") -> Photo:
    """The picture of `record`; what is transparent shows `background`.

    Raises `DataError`, naming it, if it cannot be read.
    """
    with quiet():
        return decode_quietly(record, background=background)


def decode_each(records: Iterable[Record], *, background: str = "white") -> Iterator[Photo]:
    """Every picture in turn, so that one at a time is in memory.

    Raises, at the end, one `DataError` that names all that cannot be read.
    """
    problems = []
    for record in records:
        try:
            photo = decode(record, background=background)
        except DataError as error:
            problems.append(str(error))
        else:
            yield photo
    if problems:
        raise DataError("\n".join(problems))
