"""Photos of every make come out upright, opaque and 8-bit, or are refused by name."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from data_prep.decode import decode, decode_each
from data_prep.errors import DataError
from data_prep.sources import Record
from data_prep.transforms import (
    NUM_CROPS,
    crop_square,
    to_image,
    to_pixel_values,
)

ORIENTATION = 0x0112


def record(content: bytes, name: str = "photo") -> Record:
    return Record(name, lambda: Image.open(io.BytesIO(content)), None)


def encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def pixels(image: Image.Image) -> list[list[tuple[int, ...]]]:
    return [[tuple(pixel) for pixel in row] for row in np.asarray(image).tolist()]


# What EXIF calls the place of the file's first row and first column, as array operations.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: upright[::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_turned_upright(orientation: int) -> None:
    upright = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 10
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    photo = decode(record(encoded(stored, "PNG", exif=exif)))
    assert np.asarray(photo.image).tolist() == upright.tolist()
    assert photo.size_hw == (2, 3)
    assert photo.notes == (() if orientation == 1 else ("turned upright (EXIF)",))


def test_transparent_colours_are_laid_over_white() -> None:
    image = Image.new("RGBA", (3, 1))
    for x, value in enumerate([(255, 0, 0, 0), (0, 255, 0, 128), (0, 0, 255, 255)]):
        image.putpixel((x, 0), value)
    photo = decode(record(encoded(image, "PNG")))
    # 255 · (1 - 128/255) = 127
    assert pixels(photo.image) == [[(255, 255, 255), (127, 255, 127), (0, 0, 255)]]
    assert photo.notes == ("transparent: laid over white",)


def test_transparent_grey_is_laid_over_white() -> None:
    image = Image.new("LA", (3, 1))
    for x, value in enumerate([(0, 0), (0, 128), (50, 255)]):
        image.putpixel((x, 0), value)
    photo = decode(record(encoded(image, "PNG")))
    assert pixels(photo.image) == [[(255,) * 3, (127,) * 3, (50,) * 3]]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_colour_never_shows(kind: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    photo = decode(record(encoded(image, kind, transparency=0)))
    assert pixels(photo.image) == [[(255, 255, 255), (0, 0, 255)]]


def test_transparent_rgb_colour_key_never_shows() -> None:
    image = Image.new("RGB", (2, 1), (255, 0, 0))
    image.putpixel((1, 0), (0, 0, 255))
    photo = decode(record(encoded(image, "PNG", transparency=(255, 0, 0))))
    assert pixels(photo.image) == [[(255, 255, 255), (0, 0, 255)]]


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.int32)])
def test_16_bit_grey_is_scaled_not_clipped(kind: str, dtype: type[np.generic]) -> None:
    values = np.array([[0, 257, 1000, 32896, 65535]], dtype)
    photo = decode(record(encoded(Image.fromarray(values), kind)))
    assert photo.image.mode == "RGB"
    assert pixels(photo.image) == [[(0,) * 3, (1,) * 3, (3,) * 3, (128,) * 3, (255,) * 3]]
    assert "scaled from 16 to 8 bits" in photo.notes[0]


def test_cmyk_becomes_rgb() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    exact = decode(record(encoded(red, "TIFF"))).image
    assert (exact.mode, exact.getpixel((3, 3))) == ("RGB", (255, 0, 0))
    jpeg = decode(record(encoded(red, "JPEG", quality=100))).image
    assert np.abs(np.asarray(jpeg, int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [("L", 90, (90, 90, 90)), ("1", 1, (255, 255, 255)), ("RGB", (1, 2, 3), (1, 2, 3))],
)
def test_plain_modes_are_kept_without_a_note(mode: str, value: object, expected: object) -> None:
    photo = decode(record(encoded(Image.new(mode, (2, 2), value), "PNG")))
    assert photo.image.getpixel((1, 1)) == expected
    assert photo.notes == ()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3])
def test_animation_gives_its_first_frame_and_a_note(kind: str, orientation: int) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    settings: dict[str, object] = {"save_all": True, "append_images": frames[1:]}
    if kind != "GIF":
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        settings["exif"] = exif
    photo = decode(record(encoded(frames[0], kind, **settings)))
    assert np.abs(np.asarray(photo.image, int) - (255, 0, 0)).max() <= 2
    assert "animated (3 frames): the first is used" in photo.notes


def test_unreadable_files_are_refused_by_name(tmp_path: Path) -> None:
    whole = encoded(Image.effect_noise((64, 64), 80), "JPEG")
    contents = {
        "cut.jpg": whole[: len(whole) // 2],
        "cut.png": encoded(Image.effect_noise((64, 64), 80), "PNG")[:900],
        "empty.jpg": b"",
        "text.png": b"this is no picture",
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"^{name} cannot be read as a picture") as caught:
            decode(Record(name, lambda path=path: Image.open(path), None))
        assert "Mend or remove the file" in str(caught.value)


KINDS = ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]


@pytest.mark.parametrize("kind", [*KINDS, *(["AVIF"] if features.check("avif") else [])])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_give_a_photo_or_a_data_error(kind: str) -> None:
    pattern = np.random.RandomState(0).randint(0, 255, (24, 24, 3), np.uint8)
    content = encoded(Image.fromarray(pattern), kind)
    rng = random.Random(kind)
    damaged = [content[: len(content) * part // 20] for part in range(20)]
    for _ in range(100):
        changed = bytearray(content)
        for _ in range(3):
            changed[rng.randrange(min(len(content), 300))] = rng.randrange(256)
        damaged.append(bytes(changed))
    modes, messages = [], []
    for version in damaged:
        try:
            modes.append(decode(record(version, "odd")).image.mode)
        except DataError as error:
            messages.append(str(error))
    assert set(modes) <= {"RGB"}
    assert {message.split()[0] for message in messages} == {"odd"}
    assert len(modes) + len(messages) == 120


def test_all_unreadable_files_are_named_at_once() -> None:
    good = record(encoded(Image.new("RGB", (4, 4)), "PNG"), "good.png")
    bad = [record(b"", "one.jpg"), record(b"text", "two.png")]
    with pytest.raises(DataError) as caught:
        list(decode_each([bad[0], good, bad[1]]))
    lines = str(caught.value).splitlines()
    assert [line.split()[0] for line in lines] == ["one.jpg", "two.png"]
    assert [photo.name for photo in decode_each([good, good])] == ["good.png", "good.png"]


def huge_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows)


def test_pictures_beyond_the_pixel_limit_are_refused_before_decoding() -> None:
    # Decoded they would fail as truncated, so the message shows that nothing was decoded.
    with pytest.raises(DataError, match=r"^big has 20000 × 6000 pixels, more than 100 million"):
        decode(record(huge_png(20000, 6000), "big"))
    with pytest.raises(DataError, match="^bomb cannot be read as a picture .*decompression bomb"):
        decode(record(huge_png(60000, 60000), "bomb"))
    with pytest.raises(DataError, match="^cut cannot be read as a picture"):
        decode(record(huge_png(2000, 1000), "cut"))


def columns_picture(width: int, height: int) -> Image.Image:
    """Red tells the column, green the row, in units of 4 pixels, so that halving is exact."""
    x, y = np.meshgrid(np.arange(width) // 4, np.arange(height) // 4)
    return Image.fromarray(np.stack([x * 10, y * 10, x * 0], -1).astype(np.uint8))


@pytest.mark.parametrize(
    ("size_wh", "position", "corner"),
    [
        ((40, 20), 0, (0, 0)),
        ((40, 20), 4, (0, 10)),
        ((40, 20), 8, (0, 20)),
        ((40, 20), 2, (0, 5)),
        ((20, 60), 0, (0, 0)),
        ((20, 60), 4, (20, 0)),
        ((20, 60), 8, (40, 0)),
        ((20, 60), 1, (5, 0)),
        ((20, 20), 0, (0, 0)),
        ((20, 20), 8, (0, 0)),
    ],
)
def test_crop_corners_by_hand(
    size_wh: tuple[int, int], position: int, corner: tuple[int, int]
) -> None:
    picture = columns_picture(*size_wh)
    crop, top_left = crop_square(picture, 20, position=position)
    assert top_left == corner
    assert crop.size == (20, 20)
    top, left = corner
    expected = np.asarray(picture)[top : top + 20, left : left + 20]
    assert np.array_equal(np.asarray(crop), expected)


def test_crop_defaults_to_the_middle_of_the_resized_picture() -> None:
    picture = columns_picture(160, 40)
    crop, top_left = crop_square(picture, 20)
    assert NUM_CROPS // 2 == 4
    assert top_left == (0, 30)  # 80 × 20 after resizing, (80 - 20) / 2
    middle = np.asarray(crop)[10, :, 0]
    # The middle of a column of 2 pixels keeps its colour within the filter's ringing.
    assert abs(int(middle[10]) - 200) <= 8
    assert (np.diff(middle.astype(int)) >= 0).all()


@pytest.mark.parametrize("size_wh", [(3, 7), (1, 500), (641, 427)])
def test_crop_is_always_of_the_size_asked_for(size_wh: tuple[int, int]) -> None:
    for position in range(NUM_CROPS):
        crop, (top, left) = crop_square(Image.new("RGB", size_wh), 16, position=position)
        assert crop.size == (16, 16)
        assert top >= 0
        assert left >= 0
        assert 0 in (top, left)


def test_pixel_values_round_trip_every_byte() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([values, values.T, 255 - values], -1))
    tensor = to_pixel_values(image)
    assert tensor.shape == (3, 16, 16)
    assert tensor.dtype == torch.float32
    assert (float(tensor.min()), float(tensor.max())) == (-1.0, 1.0)
    assert float(tensor[0, 3, 5]) == pytest.approx(53 / 127.5 - 1)
    assert np.array_equal(np.asarray(to_image(tensor)), np.asarray(image))


def test_values_outside_the_range_are_clamped() -> None:
    tensor = torch.tensor([-3.0, 0.0, 3.0])[:, None, None].expand(3, 1, 1)
    assert pixels(to_image(tensor)) == [[(0, 128, 255)]]


def test_an_embedded_colour_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    """Swapping red and green in the profile's primaries swaps them in the picture."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    tags = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red + 4 : red + 12], profile[green + 4 : green + 12] = (
        profile[green + 4 : green + 12],
        profile[red + 4 : red + 12],
    )
    text = bytes(profile).replace("sRGB".encode("utf-16-be"), "xxxx".encode("utf-16-be"))
    path = tmp_path / "swapped.png"
    Image.new("RGB", (4, 4), (255, 0, 0)).save(path, icc_profile=text)
    photo = decode(Record("swapped.png", lambda: Image.open(path), None))
    assert "colour profile converted to sRGB" in photo.notes
    red_value, green_value, blue_value = photo.image.getpixel((0, 0))
    assert green_value > 240
    assert red_value < 40
    assert blue_value < 40
