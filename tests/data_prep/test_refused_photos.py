"""Files that cannot be used: each kind is written here and refused by name, quickly and in little memory."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from data_prep.config import DataConfig
from data_prep.decode import decode
from data_prep.errors import DataError
from data_prep.sources import ignored_files, read_records

NOISE = Image.fromarray(np.random.RandomState(0).randint(0, 255, (64, 64, 3), np.uint8))


def encoded(kind: str, image: Image.Image = NOISE, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, *, depth: int = 8, color_type: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)


def huge_png(width: int, height: int, **settings: int) -> bytes:
    """Too little data for its size: decoded it would be called truncated."""
    return png_header(width, height, **settings) + chunk(b"IDAT", zlib.compress(bytes(100)))


def resized_jpeg(width: int, height: int) -> bytes:
    """A JPEG whose frame header claims another size."""
    content = bytearray(encoded("JPEG"))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def resized_bmp(width: int, height: int) -> bytes:
    content = bytearray(encoded("BMP"))
    content[18:26] = struct.pack("<II", width, height)
    return bytes(content)


def resized_gif(width: int, height: int) -> bytes:
    content = bytearray(encoded("GIF"))
    content[6:10] = struct.pack("<HH", width, height)
    return bytes(content)


def resized_tiff(width: int, height: int) -> bytes:
    content = encoded("TIFF")
    for tag, length in ((256, width), (257, height)):
        content = content.replace(
            struct.pack("<HHII", tag, 4, 1, 64), struct.pack("<HHII", tag, 4, 1, length)
        )
    return content


def many_scans(num_scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    content = encoded("JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * num_scans + content[-2:]


def cut(kind: str, share: float = 0.5, **settings: Any) -> bytes:
    content = encoded(kind, **settings)
    return content[: int(len(content) * share)]


def broken_checksum() -> bytes:
    content = bytearray(encoded("PNG"))
    content[content.index(b"IDAT") + 100] ^= 255
    return bytes(content)


def boxed(*brands: bytes) -> bytes:
    data = b"ftyp" + brands[0] + bytes(4) + b"".join(brands)
    return struct.pack(">I", len(data) + 4) + data + bytes(200)


PLAIN = png_header(4, 4)
TRUNCATED = "cannot be read as a picture"
KINDS: dict[str, tuple[bytes, str]] = {
    "empty.jpg": (b"", "it is empty). Copy it anew"),
    "zeros.jpg": (bytes(5000), "begins with zeros, as a failed copy does"),
    "text.png": (b"this is no picture", "no known kind of picture"),
    "random.jpg": (np.random.RandomState(1).bytes(3000), "no known kind of picture"),
    "page.jpg": (b"\n<!DOCTYPE html><html></html>", "it is a web page). Save it as JPEG or PNG"),
    "bare-page.png": (b"<html><body>403 Forbidden", "it is a web page"),
    "drawing.png": (b'<?xml version="1.0"?><svg xmlns="x"/>', "it is an SVG drawing"),
    "document.jpg": (b"%PDF-1.7 ...", "it is a PDF document"),
    "archive.jpg": (b"PK\3\4" + bytes(99), "it is a ZIP archive"),
    "gzip.png": (b"\x1f\x8b\x08" + bytes(99), "it is a gzip archive"),
    "rar.png": (b"Rar!\x1a\7\0", "it is a RAR archive"),
    "layers.tif": (b"8BPS\0\1" + bytes(99), "it is a Photoshop document"),
    "print.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is a PostScript"),
    "icon.png": (encoded("ICO"), "it is an icon"),
    "new.jpg": (b"\xff\x0a" + bytes(99), "it is a JPEG XL picture"),
    "wavelet.jpg": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "it is a JPEG 2000 picture"),
    "film.jpg": (boxed(b"isom", b"mp42"), "it is a video"),
    "film.png": (b"\x1a\x45\xdf\xa3" + bytes(99), "it is a video"),
    "sound.webp": (b"RIFF\0\0\0\0WAVEfmt ", "it is a sound or video"),
    "canon-2.tif": (b"II*\0\x10\0\0\0CR\2\0" + bytes(99), "it is a raw camera file"),
    "canon-3.jpg": (boxed(b"crx "), "it is a raw camera file"),
    "fuji.jpg": (b"FUJIFILMCCD-RAW " + bytes(99), "it is a raw camera file"),
    "light.png": (b"v/1\x01" + bytes(99), "it is an OpenEXR picture"),
    "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    "resource.jpg": (b"\0\5\x16\7\0\2\0\0Mac OS X", "it is a macOS resource file"),
    "cut.jpg": (cut("JPEG"), TRUNCATED),
    "cut-progressive.jpg": (cut("JPEG", progressive=True), TRUNCATED),
    "cut.png": (cut("PNG"), TRUNCATED),
    "cut.webp": (cut("WEBP"), TRUNCATED),
    "cut.gif": (cut("GIF"), TRUNCATED),
    "cut.tif": (cut("TIFF"), TRUNCATED),
    "cut-lzw.tif": (cut("TIFF", compression="tiff_lzw"), TRUNCATED),
    "cut.bmp": (cut("BMP"), TRUNCATED),
    "only-a-header.jpg": (encoded("JPEG")[:20], TRUNCATED),
    "only-a-signature.png": (b"\x89PNG\r\n\x1a\n", TRUNCATED),
    "no-data.png": (PLAIN + chunk(b"IEND", b""), TRUNCATED),
    "no-width.png": (huge_png(0, 4), TRUNCATED),
    "no-such-depth.png": (huge_png(4, 4, depth=3), TRUNCATED),
    "broken-checksum.png": (broken_checksum(), TRUNCATED),
    "wide.png": (
        huge_png(20000, 6000),
        "20000 × 6000 pixels, more than 100 million. Make it smaller",
    ),
    "bomb.png": (huge_png(60000, 60000), "decompression bomb"),
    "wide-alpha.png": (huge_png(10000, 6000, color_type=6), "more than 50 million"),
    "wide-deep.png": (huge_png(10000, 6000, depth=16, color_type=0), "more than 50 million"),
    "wide.jpg": (resized_jpeg(12000, 12000), "more than 100 million"),
    "bomb.jpg": (resized_jpeg(65500, 65500), "decompression bomb"),
    "wide.gif": (resized_gif(9000, 9000), "more than 50 million"),
    "bomb.gif": (resized_gif(65535, 65535), "decompression bomb"),
    "wide.bmp": (resized_bmp(11000, 11000), "more than 100 million"),
    "wide.tif": (resized_tiff(11000, 11000), "more than 100 million"),
    "strip.png": (
        encoded("PNG", Image.new("RGB", (3000, 1))),
        "a strip more than 32 times as long",
    ),
    "scans.jpg": (many_scans(500), "scans, more than 100"),
    "nothing.png": (
        encoded("PNG", Image.new("RGBA", (9, 9), (255, 0, 0, 0))),
        "all of it is transparent). Save it without transparency",
    ),
    "nothing.gif": (
        encoded("GIF", Image.new("P", (9, 9)), transparency=0),
        "all of it is transparent",
    ),
}
if features.check("avif"):
    KINDS["cut.avif"] = (cut("AVIF"), TRUNCATED)


@pytest.mark.parametrize("name", KINDS)
def test_unusable_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    content, message = KINDS[name]
    (tmp_path / name).write_bytes(content)
    (record,) = read_records(DataConfig(photos=str(tmp_path)))
    start = time.process_time()
    with pytest.raises(DataError) as caught:
        decode(record)
    assert time.process_time() - start < 5
    text = str(caught.value)
    assert text.startswith(f"{name} ")
    assert message in text
    assert text.endswith(".")
    assert "\n" not in text


def test_there_are_many_kinds() -> None:
    assert len(KINDS) >= 50


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    NOISE.save(tmp_path / "secret.png")
    NOISE.save(folder / "own.png")
    (folder / "a-link.png").symlink_to(folder / "own.png")
    (folder / "nothing.png").symlink_to(folder / "gone.png")
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "round.png").symlink_to(folder / "round.png")
    refusals = {}
    for record in read_records(DataConfig(photos=str(folder))):
        try:
            decode(record)
        except DataError as error:
            refusals[record.name] = str(error)
    assert set(refusals) == {"nothing.png", "out.png", "round.png"}
    assert (
        "(it is a link out of the folder). Copy the picture itself inside." in refusals["out.png"]
    )
    assert "it is a link to nothing" in refusals["nothing.png"]


def test_captions_are_not_read_through_links_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    NOISE.save(folder / "a.png")
    (tmp_path / "secret").write_text("a password")
    (folder / "a.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match=r"a\.txt leads out of the folder"):
        read_records(DataConfig(photos=str(folder)))


def test_what_is_no_photo_is_passed_over_and_counted(tmp_path: Path) -> None:
    NOISE.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a caption")
    for name in (
        ".DS_Store",
        "._a.png",
        "Thumbs.db",
        "desktop.ini",
        ".hidden.png",
        "b.txt",
        "x.psd",
    ):
        (tmp_path / name).write_bytes(b"x")
    for name in ("__MACOSX", "more", "folder.png"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    config = DataConfig(photos=str(tmp_path))
    assert [record.name for record in read_records(config)] == ["a.png"]
    assert ignored_files(config) == {
        "Windows leftovers": 2,
        "folders": 2,
        "hidden": 1,
        "macOS leftovers": 3,
        "no pictures by their name": 2,
        "no regular files": 1,
    }


def test_heic_without_its_library_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(boxed(b"heic", b"mif1"))
    (record,) = read_records(DataConfig(photos=str(tmp_path)))
    with pytest.raises(DataError, match=r"^a\.heic .*pip install 'finetune-subject\[heic\]'"):
        decode(record)


HOSTILE = {
    "deep": "[" * 100_000,
    "null": r'{"file_name": "a\u0000.png"}',
    "surrogate": r'{"file_name": "\ud800.png"}',
    "long": json.dumps({"file_name": "x" * 5000}),
    "dot": '{"file_name": "."}',
    "nothing": '{"file_name": ""}',
    "up": json.dumps({"file_name": "../" * 2000}),
    "number": "1" * 5000,
}


@pytest.mark.parametrize("line", HOSTILE.values(), ids=HOSTILE)
def test_hostile_metadata_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(DataError, match=r"metadata\.jsonl, line 1"):
        read_records(DataConfig(photos=str(tmp_path)))


def test_captions_may_hold_every_line_separator_but_the_newline(tmp_path: Path) -> None:
    NOISE.save(tmp_path / "a.png")
    caption = "one\u2028two\u0085three"
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "a.png", "text": "{caption}"}}\r\n')
    (record,) = read_records(DataConfig(photos=str(tmp_path), caption_column="text"))
    assert record.caption == caption


LARGEST = """
import re, sys
from PIL import Image
from data_prep.decode import MAX_PIXELS, MAX_PIXELS_IN_COPIES, decode
from data_prep.sources import Record
from data_prep.kinds import open_picture
from pathlib import Path
path = Path(sys.argv[1])
print(decode(Record(path.name, lambda: open_picture(path), None)).size_hw)
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("kind", "mode", "pixels", "settings"),
    [
        ("JPEG", "RGB", 99_000_000, {"quality": 50}),
        ("PNG", "RGB", 99_000_000, {"compress_level": 1}),
        ("PNG", "RGBA", 49_000_000, {"compress_level": 1}),
        ("JPEG", "RGB", 49_000_000, {"quality": 50, "progressive": True, "subsampling": 0}),
    ],
    ids=["jpeg", "png", "rgba", "progressive"],
)
def test_largest_pictures_fit_into_a_gibibyte(
    tmp_path: Path, kind: str, mode: str, pixels: int, settings: dict[str, Any]
) -> None:
    side = int(pixels**0.5)
    color = (9, 99, 199, 128)[: len(mode)]
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"large.{kind.lower()}"
    Image.new(mode, (side, side), color).save(path, kind, exif=exif, **settings)
    result = subprocess.run(
        [sys.executable, "-c", LARGEST, str(path)], capture_output=True, text=True, check=True
    )
    size, megabytes = result.stdout.splitlines()
    assert size == f"({side}, {side})"
    assert int(megabytes) < 1024
