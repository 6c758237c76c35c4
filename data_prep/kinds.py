"""What a file is by its first bytes, whatever its name says: opened if it is a known kind of picture.

Only the kinds listed here reach a decoder; nothing is tried out. What is no picture is named, so that the
user knows what came along with the photos.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

SUFFIXES: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WebP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "GIF": (".gif",),
    "HEIC": (".heic", ".heif", ".hif"),
}
"""Kinds of pictures that can be read, with the endings of their names."""
ALL_SUFFIXES = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)

MAX_SCANS = 100
"""Of a progressive JPEG; cameras and editors write about ten. Each costs a pass over all pixels."""
MAX_BYTES = 500_000_000
"""Larger files are refused unread."""

_PICTURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_OTHERS = (
    (b"%PDF", "a PDF document"),
    (b"8BPS", "a Photoshop document"),
    (b"%!PS", "a PostScript document"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript document"),
    (b"\0\0\1\0", "an icon"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"FUJIFILMCCD-RAW", "a raw camera file"),
    (b"IIU\0", "a raw camera file"),
    (b"IIRO", "a raw camera file"),
    (b"v/1\x01", "an OpenEXR picture"),
    (b"#?RADIANCE", "a Radiance picture"),
    (b"qoif", "a QOI picture"),
    (b"DDS ", "a DDS texture"),
    (b"PK\3\4", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x1a\x45\xdf\xa3", "a video"),
    (b"\0\5\x16\7", "a macOS resource file"),
    (b"version https://git-lfs", "a Git LFS pointer; the picture was not downloaded"),
)
SAVE_AS = "Save it as JPEG or PNG, or remove it."
MEND = "Mend or remove the file."


class Unreadable(ValueError):
    """A file cannot be used as a picture: the reason, and what to do."""

    def __init__(self, reason: str, remedy: str = MEND) -> None:
        super().__init__(reason)
        self.remedy = remedy


def _boxed_kind(head: bytes) -> str | None:
    """The kind of an ISO media file (`ftyp` box), told by its brands."""
    if head[4:8] != b"ftyp":
        return None
    length = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[start : start + 4] for start in (8, *range(16, length - 3, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & _HEIF_BRANDS:
        return "HEIC"
    return "a raw camera file" if b"crx " in brands else "a video"


def _text_kind(head: bytes) -> str | None:
    """What a text file is."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a web page"
    if b"<svg" in text:
        return "an SVG drawing"
    return None


def kind_of(head: bytes) -> str:
    """A key of `SUFFIXES`, or what the file is in words. `head` is its first 512 bytes.

    Raises `Unreadable` if it is nothing known.
    """
    if not head:
        raise Unreadable("it is empty", "Copy it anew or remove it.")
    if not any(head):
        raise Unreadable(
            "it begins with zeros, as a failed copy does", "Copy it anew or remove it."
        )
    if head[:4] == b"RIFF":
        return "WebP" if head[8:12] == b"WEBP" else "a sound or video"
    if head[:4] in (b"II*\0", b"MM\0*") and head[8:10] == b"CR":
        return "a raw camera file"
    for start, kind in (*_PICTURES, *_OTHERS):
        if head.startswith(start):
            return kind
    kind_found = _boxed_kind(head) or _text_kind(head)
    if kind_found is None:
        raise Unreadable(f"it is no known kind of picture; it begins with {head[:12]!r}")
    return kind_found


def _open_heif(source: Path | io.BytesIO) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise Unreadable(
            "it is a HEIC picture, for which a library is missing",
            "Install it with: pip install 'finetune-subject[heic]', or save the picture as JPEG.",
        ) from error
    return HeifImageFile(source)


def open_picture(source: Path | io.BytesIO) -> Image.Image:
    """The picture in a file or stream, its header read and its pixels not yet.

    Raises `Unreadable` if the content is no picture of a known kind, and what Pillow raises.
    """
    stream = source if isinstance(source, io.BytesIO) else source.open("rb")
    try:
        head = stream.read(512)
        num_bytes = stream.seek(0, io.SEEK_END)
        stream.seek(0)
    finally:
        if stream is not source:
            stream.close()
    kind = kind_of(head)
    if kind not in SUFFIXES:
        raise Unreadable(f"it is {kind}", SAVE_AS)
    if num_bytes > MAX_BYTES:
        raise Unreadable(f"it has {num_bytes // 1_000_000} MB", "Make it smaller.")
    if kind == "HEIC":
        return _open_heif(source)
    image = Image.open(source, formats=(kind.upper(),))
    if "progressive" in image.info:
        content = source.getvalue() if isinstance(source, io.BytesIO) else source.read_bytes()
        # Within pixel data 0xFF is always followed by zero, so this counts scan headers.
        num_scans = content.count(b"\xff\xda")
        if num_scans > MAX_SCANS:
            image.close()
            raise Unreadable(f"it has {num_scans} scans, more than {MAX_SCANS}", SAVE_AS)
    return image
