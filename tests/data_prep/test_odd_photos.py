"""Odd but usable photo files: each kind is written here and comes out with the right pixels."""

from __future__ import annotations

import io
import os
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from data_prep.config import DataConfig
from data_prep.decode import decode
from data_prep.sources import read_records

ORIENTATION = 0x0112
WHITE = (255, 255, 255)


def picture() -> np.ndarray:
    """16 × 24 smooth colours that no turn or flip leaves as they are."""
    y, x = np.mgrid[0:16, 0:24]
    return np.stack([x * 10, y * 16, 40 + 4 * x + 5 * y], -1).astype(np.uint8)


PICTURE = picture()
GREY = np.ascontiguousarray(PICTURE[..., :1].repeat(3, 2))


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def of(values: np.ndarray, mode: str | None = None) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(values))
    return image if mode is None else image.convert(mode)


def png(
    values: np.ndarray, depth: int, color_type: int, chunks: list[tuple[bytes, bytes]] | None = None
) -> bytes:
    """A PNG of `values` [height, width, channels] as they are; low depths are packed."""
    height, width, _ = values.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    def row(line: np.ndarray) -> bytes:
        if depth == 16:
            return line.astype(">u2").tobytes()
        if depth == 8:
            return line.astype(np.uint8).tobytes()
        bits = (line.reshape(-1, 1) >> np.arange(depth - 1, -1, -1)) & 1
        return np.packbits(bits.astype(np.uint8).ravel()).tobytes()

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row(line) for line in values))
    parts = [(b"IHDR", header), *(chunks or []), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def over(color: tuple[int, int, int], values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.round(values * share + np.array(color) * (1 - share))


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[ORIENTATION] = orientation
    return data


STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[:, ::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[::-1].swapaxes(0, 1),
}


@dataclass(frozen=True)
class Kind:
    """A file, what its pixels should be, and what the note should say (None: no note at all)."""

    name: str
    content: bytes
    expected: np.ndarray
    note: str | None = None
    tolerance: float = 0


def turned_kinds() -> list[Kind]:
    note = "turned upright"
    kinds = [
        Kind(
            f"turned-{n}.jpg",
            encoded(of(turn(PICTURE)), "JPEG", quality=95, exif=exif(n)),
            PICTURE,
            note,
            12,
        )
        for n, turn in STORED.items()
    ]
    sideways = of(STORED[6](PICTURE))
    kinds += [
        Kind("turned.png", encoded(sideways, "PNG", exif=exif(6)), PICTURE, note),
        Kind("turned.webp", encoded(sideways, "WEBP", lossless=True, exif=exif(6)), PICTURE, note),
        Kind("turned.tif", encoded(sideways, "TIFF", tiffinfo={ORIENTATION: 6}), PICTURE, note),
        Kind("no-such-turn.png", encoded(of(PICTURE), "PNG", exif=exif(9)), PICTURE),
    ]
    alpha = np.linspace(0, 255, 16 * 24).reshape(16, 24).astype(np.uint8)
    both = of(STORED[8](np.dstack([PICTURE, alpha])))
    laid = over(WHITE, PICTURE, alpha)
    kinds.append(Kind("turned-alpha.png", encoded(both, "PNG", exif=exif(8)), laid, note, 1))
    if features.check("avif"):
        content = encoded(sideways, "AVIF", quality=95, exif=exif(6), subsampling="4:4:4")
        kinds.append(Kind("turned.avif", content, PICTURE, note, 12))
    return kinds


def transparent_kinds() -> list[Kind]:
    """Under zero alpha lies red, which must not show."""
    alpha = np.full((16, 24), 255, np.uint8)
    alpha[:, :8], alpha[:, 8:12] = 0, 128
    hidden = PICTURE.copy()
    hidden[:, :8] = (255, 0, 0)
    rgba, laid = np.dstack([hidden, alpha]), over(WHITE, PICTURE, alpha)
    grey_laid = over(WHITE, GREY, alpha)
    grey_alpha = np.dstack([GREY[..., 0], alpha])
    note = "transparent: laid over white"
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    over_palette = np.array([[WHITE, (0, 0, 255)]])
    half = np.array([[(255, 127, 127), (0, 0, 255)]])
    premultiplied = np.dstack([np.round(hidden * (alpha[..., None] / 255)).astype(np.uint8), alpha])
    # Pillow writes ExtraSamples (338, one short) 2, straight alpha; 1 is premultiplied.
    associated = encoded(of(premultiplied), "TIFF")
    entry = struct.pack("<HHI", 338, 3, 1)
    assert associated.count(entry + b"\2") == 1
    associated = associated.replace(entry + b"\2", entry + b"\1")
    keyed = np.where(alpha[..., None] == 0, np.array([255, 0, 0]), PICTURE)
    cut = over(WHITE, PICTURE, np.where(alpha == 0, 0, 255))
    two_bits = np.array([[[0], [1], [2], [3]]])
    deep = PICTURE.astype(np.uint16) * 257
    deep_keyed = np.where(alpha[..., None] == 0, np.array([65535, 0, 0]), deep)
    deep_grey = np.where(alpha[..., None] == 0, 4660, deep[..., :1])
    grey_cut = over(WHITE, GREY, np.where(alpha == 0, 0, 255))
    return [
        Kind("rgba.png", encoded(of(rgba), "PNG"), laid, note, 1),
        Kind("rgba-opaque.png", encoded(of(PICTURE, "RGBA"), "PNG"), PICTURE),
        Kind("la.png", encoded(of(grey_alpha), "PNG"), grey_laid, note, 1),
        Kind(
            "rgba-16.png", png(np.dstack([hidden, alpha]).astype(int) * 257, 16, 6), laid, note, 1
        ),
        Kind("la-16.png", png(grey_alpha.astype(int) * 257, 16, 4), grey_laid, note, 1),
        Kind("palette-key.png", encoded(palette, "PNG", transparency=0), over_palette, note),
        Kind("palette-alpha.png", encoded(palette, "PNG", transparency=b"\x80\xff"), half, note),
        Kind("palette-key.gif", encoded(palette, "GIF", transparency=0), over_palette, note),
        Kind(
            "rgb-key.png",
            encoded(of(keyed.astype(np.uint8)), "PNG", transparency=(255, 0, 0)),
            cut,
            note,
        ),
        Kind(
            "grey-2-bit-key.png",
            png(two_bits, 2, 0, [(b"tRNS", b"\0\2")]),
            np.array([[(0,) * 3, (85,) * 3, WHITE, WHITE]]),
            note,
        ),
        Kind(
            "rgb-16-key.png",
            png(deep_keyed, 16, 2, [(b"tRNS", b"\xff\xff\0\0\0\0")]),
            cut,
            note,
        ),
        Kind("grey-16-key.png", png(deep_grey, 16, 0, [(b"tRNS", b"\x12\x34")]), grey_cut, note, 1),
        Kind("rgba.webp", encoded(of(rgba), "WEBP", lossless=True), laid, note, 1),
        Kind("rgba-lossy.webp", encoded(of(rgba), "WEBP", quality=95), laid, note, 45),
        Kind("rgba.tif", encoded(of(rgba), "TIFF"), laid, note, 1),
        Kind(
            "premultiplied.tif",
            associated,
            laid,
            note,
            2,
        ),
    ]


def deep_kinds() -> list[Kind]:
    deep = GREY[..., 0].astype(np.uint16) * 257
    scaled = "scaled from 16 to 8 bits"
    ramp = np.linspace(0, 1, 24, dtype=np.float32)[None].repeat(16, 0)
    grey_ramp = np.floor(ramp * 255)[..., None].repeat(3, 2)
    holes = ramp.copy()
    holes[0, 0], holes[0, 1] = np.nan, np.inf
    holed = grey_ramp.copy()
    holed[0, :2] = 0
    full = (ramp.astype(np.float64) * (2**31 - 1)).astype(np.int32)
    return [
        Kind("grey-16.png", encoded(of(deep), "PNG"), GREY, scaled),
        Kind("grey-16.tif", encoded(of(deep), "TIFF"), GREY, scaled),
        Kind(
            "grey-16-big-endian.tif",
            encoded(Image.frombytes("I;16B", (24, 16), deep.astype(">u2").tobytes()), "TIFF"),
            GREY,
            scaled,
        ),
        Kind("rgb-16.png", png(PICTURE.astype(int) * 257, 16, 2), PICTURE),
        Kind("grey-32.tif", encoded(of(deep.astype(np.int32)), "TIFF"), GREY, scaled),
        Kind("grey-32-full.tif", encoded(of(full), "TIFF"), grey_ramp, "scaled from 32", 1),
        Kind("float-unit.tif", encoded(of(ramp), "TIFF"), grey_ramp, "0 to 1 taken", 1),
        Kind("float-range.tif", encoded(of(ramp * 9000 - 77), "TIFF"), grey_ramp, "stretched", 1),
        Kind("float-holes.tif", encoded(of(holes), "TIFF"), holed, "not finite", 1),
    ]


def colour_kinds() -> list[Kind]:
    red = np.full((8, 8, 3), (255, 0, 0))
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    # Adobe stores inks inverted, as Pillow writes them; in YCCK the first three as if they were RGB.
    ycc = Image.new("RGB", (8, 8), (0, 255, 255)).convert("YCbCr")
    planes = [plane.point(lambda v: 255 - v) for plane in ycc.split()]
    ycck = bytearray(
        encoded(Image.merge("CMYK", [*planes, Image.new("L", (8, 8), 0)]), "JPEG", quality=100)
    )
    adobe = ycck.index(b"Adobe")
    ycck[adobe + 11] = 2  # the transform: YCCK
    grey = of(GREY, "L")
    bits = (PICTURE[..., :1] > 120).astype(int)
    black_white = bits.repeat(3, 2) * 255
    indexed = of(PICTURE).quantize(16)
    return [
        Kind("cmyk.tif", encoded(cmyk, "TIFF"), red),
        Kind("cmyk-adobe.jpg", encoded(cmyk, "JPEG", quality=100), red, None, 3),
        Kind("ycck-adobe.jpg", bytes(ycck), red, None, 4),
        Kind("ycbcr.tif", encoded(of(PICTURE, "YCbCr"), "TIFF"), PICTURE, None, 3),
        Kind("lab.tif", encoded(of(PICTURE, "LAB"), "TIFF"), PICTURE, None, 24),
        Kind("grey.jpg", encoded(grey, "JPEG", quality=95), GREY, None, 6),
        Kind("grey.png", encoded(grey, "PNG"), GREY),
        Kind("bit.png", png(bits, 1, 0), black_white),
        Kind(
            "bit.tif",
            encoded(of(black_white.astype(np.uint8), "1"), "TIFF", compression="group4"),
            black_white,
        ),
        Kind("grey-4-bit.png", png(GREY[..., :1].astype(int) >> 4, 4, 0), (GREY // 16) * 17),
        Kind("palette.png", encoded(indexed, "PNG"), np.asarray(indexed.convert("RGB"))),
        Kind("palette.bmp", encoded(indexed, "BMP"), np.asarray(indexed.convert("RGB"))),
    ]


def swapped_profile() -> bytes:
    """sRGB with the primaries of red and green exchanged, under another name."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    tags = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = tags[b"rXYZ"] + 4, tags[b"gXYZ"] + 4
    profile[red : red + 8], profile[green : green + 8] = (
        profile[green : green + 8],
        profile[red : red + 8],
    )
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "xxxx".encode("utf-16-be"))


def profile_kinds() -> list[Kind]:
    red = np.full((8, 8, 3), (255, 0, 0), np.uint8)
    green = np.full((8, 8, 3), (0, 255, 0))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped, converted = swapped_profile(), "colour profile converted to sRGB"
    see_through = np.dstack([red, np.where(np.mgrid[0:8, 0:8][1] < 4, 0, 255)]).astype(np.uint8)
    half_green = green.copy()
    half_green[:, :4] = 255
    return [
        Kind("srgb.png", encoded(of(red), "PNG", icc_profile=srgb), red),
        Kind("swapped.png", encoded(of(red), "PNG", icc_profile=swapped), green, converted, 40),
        Kind("swapped.jpg", encoded(of(red), "JPEG", icc_profile=swapped), green, converted, 40),
        Kind(
            "swapped.webp",
            encoded(of(red), "WEBP", lossless=True, icc_profile=swapped),
            green,
            converted,
            40,
        ),
        Kind("swapped.tif", encoded(of(red), "TIFF", icc_profile=swapped), green, converted, 40),
        Kind(
            "swapped-alpha.png",
            encoded(of(see_through), "PNG", icc_profile=swapped),
            half_green,
            converted,
            40,
        ),
        Kind(
            "swapped-palette.png",
            encoded(of(red, "P"), "PNG", icc_profile=swapped),
            green,
            converted,
            60,
        ),
        Kind(
            "broken-profile.png",
            encoded(of(PICTURE), "PNG", icc_profile=b"no profile"),
            PICTURE,
            "not usable",
        ),
        Kind(
            "profile-of-colours.png",
            encoded(of(GREY, "L"), "PNG", icc_profile=swapped),
            GREY,
            "it is for RGB",
        ),
    ]


def container_kinds() -> list[Kind]:
    image, lossy = of(PICTURE), 10
    others = [of(np.full_like(PICTURE, level)) for level in (0, 255)]
    several: dict[str, Any] = {"save_all": True, "append_images": others}
    animated, pages = "animated (3 frames): the first is used", "3 pictures in the file"
    big_endian = encoded(image, "TIFF")
    broken_exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"
    rich = exif(1)
    rich[0x010E] = "a secret"
    rich.get_ifd(0x8825)[1] = "N"
    quantized = np.asarray(image.quantize(256).convert("RGB"))
    kinds = [
        Kind("animated.gif", encoded(image, "GIF", **several), quantized, animated, 40),
        Kind("animated.png", encoded(image, "PNG", **several), PICTURE, animated),
        Kind("animated.webp", encoded(image, "WEBP", lossless=True, **several), PICTURE, animated),
        Kind("pages.tif", encoded(image, "TIFF", **several), PICTURE, pages),
        Kind("several.jpg", encoded(image, "MPO", quality=95, **several), PICTURE, pages, lossy),
        Kind(
            "progressive.jpg",
            encoded(image, "JPEG", quality=95, progressive=True),
            PICTURE,
            None,
            lossy,
        ),
        Kind(
            "full-colour.jpg",
            encoded(image, "JPEG", quality=95, subsampling=0),
            PICTURE,
            None,
            lossy,
        ),
        Kind(
            "trailing.jpg",
            encoded(image, "JPEG", quality=95) + b"garbage" * 99,
            PICTURE,
            None,
            lossy,
        ),
        Kind(
            "broken-exif.jpg",
            encoded(image, "JPEG", quality=95, exif=broken_exif),
            PICTURE,
            None,
            lossy,
        ),
        Kind(
            "gps.jpg",
            encoded(image, "JPEG", quality=95, exif=rich, comment=b"at home"),
            PICTURE,
            None,
            lossy,
        ),
        Kind("lzw.tif", encoded(image, "TIFF", compression="tiff_lzw"), PICTURE),
        Kind("deflate.tif", encoded(image, "TIFF", compression="tiff_adobe_deflate"), PICTURE),
        Kind("packbits.tif", encoded(image, "TIFF", compression="packbits"), PICTURE),
        Kind("jpeg.tif", encoded(image, "TIFF", compression="jpeg", quality=95), PICTURE, None, 60),
        Kind("plain.tif", big_endian, PICTURE),
        Kind("large-offsets.tif", encoded(image, "TIFF", big_tiff=True), PICTURE),
        Kind("plain.bmp", encoded(image, "BMP"), PICTURE),
        Kind("plain.webp", encoded(image, "WEBP", lossless=True), PICTURE),
        Kind("PNG-by-content.jpg", encoded(image, "PNG"), PICTURE, "named .jpg but is a PNG file"),
        Kind(
            "WebP-by-content.png", encoded(image, "WEBP", lossless=True), PICTURE, "is a WebP file"
        ),
        Kind(
            "JPEG-by-content.heic",
            encoded(image, "JPEG", quality=95),
            PICTURE,
            "is a JPEG file",
            lossy,
        ),
        Kind("one-pixel.png", encoded(image.crop((0, 0, 1, 1)), "PNG"), PICTURE[:1, :1]),
        Kind("SHOUTED.JFIF", encoded(image, "JPEG", quality=95), PICTURE, None, lossy),
    ]
    if features.check("avif"):
        content = encoded(image, "AVIF", quality=95, subsampling="4:4:4")
        kinds.append(Kind("plain.avif", content, PICTURE, None, lossy))
    return kinds


NAMES = (
    "雪の犬.png",
    "كلب.png",
    "🐕‍🦺.png",
    "Hu\u0308ndchen.png",
    "two\nlines.png",
    "-rf.png",
    "a b'\"$.png",
    "x" * 240 + ".png",
)
KINDS = [
    *turned_kinds(),
    *transparent_kinds(),
    *deep_kinds(),
    *colour_kinds(),
    *profile_kinds(),
    *container_kinds(),
    *(Kind(name, encoded(of(PICTURE), "PNG"), PICTURE) for name in NAMES),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: ascii(kind.name))
def test_odd_photo_gives_the_right_pixels(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / kind.name).write_bytes(kind.content)
    (record,) = read_records(DataConfig(photos=str(tmp_path)))
    start = time.process_time()
    photo = decode(record)
    assert time.process_time() - start < 5
    assert photo.image.mode == "RGB"
    assert photo.image.info == {}
    values = np.asarray(photo.image, int)
    assert values.shape == kind.expected.shape
    assert np.abs(values - kind.expected).max() <= kind.tolerance
    if kind.note is None:
        assert photo.notes == ()
    else:
        assert any(kind.note in note for note in photo.notes), photo.notes


def test_there_are_many_kinds() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 80


def test_name_of_no_encoding_is_shown_escaped(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\x1b[31m.png"
    with open(path, "wb") as file:
        file.write(encoded(of(PICTURE), "PNG"))
    (record,) = read_records(DataConfig(photos=str(tmp_path)))
    assert record.name == "\\udcff\\x1b[31m.png"
    assert np.array_equal(np.asarray(decode(record).image), PICTURE)


@pytest.mark.parametrize(("color", "expected"), [("black", 0), ("#808080", 128)])
def test_background_is_chosen(tmp_path: Path, color: str, expected: int) -> None:
    layer = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    layer.putpixel((0, 0), (9, 9, 9, 255))
    layer.save(tmp_path / "a.png")
    (record,) = read_records(DataConfig(photos=str(tmp_path), background=color))
    photo = decode(record, background=color)
    assert photo.image.getpixel((1, 0)) == (expected,) * 3
    assert photo.alpha is not None
    assert np.asarray(photo.alpha).tolist() == [[255, 0]]


def test_background_has_to_be_a_colour() -> None:
    with pytest.raises(ValueError, match="unknown color specifier: 'whyte'"):
        DataConfig(photos="p", background="whyte")


def test_pictures_made_from_a_photo_carry_none_of_its_metadata(tmp_path: Path) -> None:
    data = exif(6)
    data[0x010E] = "a secret"
    data.get_ifd(0x8825)[1] = "N"
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    of(PICTURE).save(tmp_path / "a.jpg", exif=data, comment=b"at home", icc_profile=srgb)
    (record,) = read_records(DataConfig(photos=str(tmp_path)))
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        content = encoded(decode(record).image.resize((8, 8)), kind)
        assert not any(
            word in content for word in (b"secret", b"home", b"Exif", b"ICC_PROFILE", b"iCCP")
        )
        with Image.open(io.BytesIO(content)) as image:
            assert image.getexif().get_ifd(0x8825) == {}
            assert "icc_profile" not in image.info


def test_heic_is_read_upright_with_its_library(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    heif = pillow_heif.from_pillow(
        of(STORED[6](PICTURE)).resize((256, 384), Image.Resampling.NEAREST)
    )
    heif.save(tmp_path / "a.heic", quality=95, exif=exif(6).tobytes())
    (record,) = read_records(DataConfig(photos=str(tmp_path)))
    photo = decode(record)
    assert photo.size_hw == (256, 384)
    middle = np.asarray(photo.image, int)[8::16, 8::16]
    assert np.abs(middle - PICTURE).mean() < 6
