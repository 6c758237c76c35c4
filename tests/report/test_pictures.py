"""Which pictures a page holds, at what size, within how many bytes."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.report.pictures import (
    MARKUP_BYTES,
    SIDES,
    SMALLER_SIDES,
    Missing,
    Picture,
    PictureBook,
)


def noisy(folder: Path, name: str, size: tuple[int, int] = (64, 64)) -> str:
    Image.effect_noise(size, 80).convert("RGB").save(folder / name)
    return name


def decoded(picture: Picture | Missing) -> Image.Image:
    assert isinstance(picture, Picture)
    head, code = picture.uri.split(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(code)))


def test_a_small_picture_is_shown_as_it_is(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64)[None, :, None] * np.ones((48, 1, 3))
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "a.png")
    book = PictureBook(tmp_path, [["a.png"]], max_bytes=100_000)
    assert book.side == SIDES[0]
    shown = book["a.png"]
    assert isinstance(shown, Picture)
    assert (shown.width, shown.height) == (64, 48) == decoded(shown).size
    assert np.abs(np.asarray(decoded(shown), float) - ramp).mean() < 4
    assert book.total_bytes == len(shown.uri) + MARKUP_BYTES


def test_pictures_shrink_until_all_fit(tmp_path: Path) -> None:
    files = [noisy(tmp_path, f"{i}.png", (600, 300)) for i in range(3)]
    sizes = []
    for max_bytes in (10_000_000, 120_000, 20_000):
        book = PictureBook(tmp_path, [files], max_bytes=max_bytes)
        assert book.total_bytes <= max_bytes
        assert {decoded(book[file]).size for file in files} == {(book.side, book.side // 2)}
        sizes.append(book.side)
    assert sizes[0] == SIDES[0]
    assert sizes == sorted(set(sizes), reverse=True)
    assert sizes[-1] in SMALLER_SIDES


def test_later_shelves_go_before_pictures_become_tiny(tmp_path: Path) -> None:
    shelves = [[noisy(tmp_path, f"{s}{i}.png", (256, 256)) for i in range(2)] for s in range(3)]
    whole = PictureBook(tmp_path, shelves, max_bytes=10**7).total_bytes
    book = PictureBook(tmp_path, shelves, max_bytes=round(0.75 * whole))
    assert (book.side, book.num_shelves) == (SIDES[-1], 2)
    assert all(isinstance(book[file], Picture) for shelf in shelves[:2] for file in shelf)
    assert {book[file] for file in shelves[2]} == {Missing("left out to keep the page small")}


@pytest.mark.parametrize("max_bytes", [0, 1500, 3000])
def test_no_more_bytes_than_allowed(tmp_path: Path, max_bytes: int) -> None:
    files = [noisy(tmp_path, f"{i}.png", (300, 300)) for i in range(4)]
    book = PictureBook(tmp_path, [files], max_bytes=max_bytes)
    shown = [book[file] for file in files if isinstance(book[file], Picture)]
    assert sum(len(p.uri) for p in shown if isinstance(p, Picture)) <= book.total_bytes <= max_bytes
    assert len(shown) < 4


def test_a_file_stands_on_its_first_shelf_alone(tmp_path: Path) -> None:
    file = noisy(tmp_path, "a.png")
    once = PictureBook(tmp_path, [[file]], max_bytes=10**6)
    again = PictureBook(tmp_path, [[file, file], [file]], max_bytes=10**6)
    assert once.total_bytes == again.total_bytes > 0
    assert once[file] == again[file]


def test_nothing_outside_the_folder_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    noisy(tmp_path, "private.png")
    outside = ["../private.png", str(tmp_path / "private.png"), "link.png"]
    (folder / "link.png").symlink_to(tmp_path / "private.png")
    book = PictureBook(folder, [outside], max_bytes=10**6)
    for file in outside:
        assert book[file] == Missing("its path leads out of the results' folder")
    assert book.total_bytes == 0


def test_files_that_are_no_pictures_say_so(tmp_path: Path) -> None:
    whole = tmp_path / noisy(tmp_path, "whole.png", (300, 300))
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:20_000])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    files = ["half.png", "text.png", "folder.png", "gone.png"]
    book = PictureBook(tmp_path, [files], max_bytes=10**6)
    reasons = [book[file] for file in files]
    unreadable = Missing("its file cannot be read")
    assert reasons == [unreadable] * 3 + [Missing("its file is not there any more")]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "CMYK"])
def test_any_kind_of_picture_is_shown(tmp_path: Path, mode: str) -> None:
    name = "a.tif" if mode == "CMYK" else "a.png"
    Image.new(mode, (20, 10)).save(tmp_path / name)
    book = PictureBook(tmp_path, [[name]], max_bytes=10**6)
    assert decoded(book[name]).size == (20, 10)
