"""The photo doctor lists every picture with a verdict and its doubts, and shows the crops of training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from data_prep.config import DataConfig
from data_prep.doctor import Inspection, inspect_photos
from data_prep.errors import DataError
from data_prep.findings import REASONS


@pytest.fixture
def inspection(tmp_path: Path) -> Inspection:
    Image.new("RGB", (40, 40), (200, 0, 0)).save(tmp_path / "a.png")
    Image.new("RGBA", (50, 40), (0, 200, 0, 254)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no picture")
    long = Image.new("RGB", (90, 30), "black")
    long.paste((0, 0, 200), (30, 0, 60, 30))
    long.save(tmp_path / "d.png")
    (tmp_path / "d.txt").write_text("a blue {subject}")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    return inspect_photos(DataConfig(photos=str(tmp_path)), size=32)


def test_every_picture_has_a_line(inspection: Inspection) -> None:
    lines = inspection.table().splitlines()
    assert lines[0] == "1  a.png  ok       40 × 40  a single colour"
    assert lines[1] == ("2  b.png  fixed    50 × 40  transparent: laid over white; a single colour")
    assert lines[2].startswith("3  c.png  refused  c.png cannot be read as a picture")
    assert lines[3].startswith(
        "4  d.png  ok       90 × 30  smaller than 32 px: will be enlarged and soft; "
        "very long: the crop keeps less than half of it"
    )
    assert lines[3].endswith('  caption: "a blue {subject}"')
    assert f"Warning: blank: photos 1, 2, 4. {REASONS['blank']}" in lines
    assert lines[-2:] == ["Passed over: 1 macOS leftovers.", "3 of 4 pictures can be used."]
    assert inspection.num_refused == 1


def test_names_of_any_width_stay_in_line(tmp_path: Path) -> None:
    for name in ("雪.png", "abcd.png"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    first, second, *_ = (
        inspect_photos(DataConfig(photos=str(tmp_path)), size=32).table().splitlines()
    )
    assert first.startswith("1  abcd.png  ok ")
    assert second.startswith("2  雪.png    ok ")


def test_json_says_the_same(inspection: Inspection) -> None:
    values = json.loads(json.dumps(inspection.as_json()))
    assert [photo["verdict"] for photo in values["photos"]] == ["ok", "fixed", "refused", "ok"]
    assert values["photos"][1]["fixes"] == ["transparent: laid over white"]
    assert (values["photos"][3]["width"], values["photos"][3]["height"]) == (90, 30)
    assert values["photos"][3]["caption"] == "a blue {subject}"
    assert values["photos"][2]["problem"].startswith("c.png cannot be read")
    assert [remark["kind"] for remark in values["photos"][0]["remarks"]] == ["blank"]
    blank = next(finding for finding in values["findings"] if finding["kind"] == "blank")
    assert blank["photos"] == [1, 2, 4]
    assert blank["reason"] == REASONS["blank"]
    assert values["ignored"] == {"macOS leftovers": 1}
    assert values["size"] == 32


def test_contact_sheet_shows_the_crops_in_order(inspection: Inspection) -> None:
    sheet = inspection.contact_sheet(cell=96, columns=2)
    assert sheet.size == (192, 192)
    assert sheet.info == {}
    cells = np.asarray(sheet).reshape(2, 96, 2, 96, 3).swapaxes(1, 2)
    for row, column, color in ((0, 0, (200, 0, 0)), (0, 1, (1, 200, 1)), (1, 1, (0, 0, 200))):
        assert np.abs(cells[row, column, 40:60, 40:60].astype(int) - color).max() <= 2
    # The refused one is crossed out, the doubtful are framed.
    assert (cells[1, 0, 48, 48] == (210, 0, 0)).all()
    assert (cells[1, 0, 94, 94] == (210, 0, 0)).all()
    assert (cells[0, 0, 94, 94] == (240, 160, 0)).all()


def test_crops_are_those_of_training(tmp_path: Path) -> None:
    from data_prep.decode import decode_each
    from data_prep.sources import read_records
    from data_prep.transforms import crop_square

    pixels = np.random.RandomState(0).randint(0, 255, (300, 500, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    config = DataConfig(photos=str(tmp_path))
    (checkup,) = inspect_photos(config, size=192).checkups
    (photo,) = decode_each(read_records(config))
    assert checkup.crop is not None
    assert np.array_equal(np.asarray(checkup.crop), np.asarray(crop_square(photo.image, 192)[0]))


def test_nothing_usable_still_gives_a_table_and_a_sheet(tmp_path: Path) -> None:
    (tmp_path / "c.png").write_bytes(b"")
    inspection = inspect_photos(DataConfig(photos=str(tmp_path)), size=32)
    assert inspection.table().splitlines()[-1] == "0 of 1 pictures can be used."
    assert inspection.contact_sheet(cell=20).size == (20, 20)


def test_no_pictures_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        inspect_photos(DataConfig(photos=str(tmp_path)), size=32)


# --- findings -------------------------------------------------------------------------------------


def scene(seed: int, size: int = 256) -> Image.Image:
    """A sharp picture of boxes and discs in many colours."""
    rng = np.random.RandomState(seed)
    image = Image.new("RGB", (size, size), tuple(rng.randint(0, 255, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        x, y = rng.randint(-20, size, 2)
        width, height = rng.randint(10, size // 4, 2)
        shape = draw.rectangle if rng.rand() < 0.5 else draw.ellipse
        shape((x, y, x + width, y + height), fill=tuple(rng.randint(0, 255, 3)))
    return image


def kinds_of(folder: Path, *images: Image.Image, size: int = 128) -> list[list[str]]:
    """Kinds of remarks on each of `images`, and of findings over the set last."""
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
    inspection = inspect_photos(DataConfig(photos=str(folder)), size=size)
    remarks = [[remark.kind for remark in c.remarks] for c in inspection.checkups]
    of_photos = {kind for kinds in remarks for kind in kinds}
    return [*remarks, [f.kind for f in inspection.findings if f.kind not in of_photos]]


def test_good_photos_raise_no_alarm(tmp_path: Path) -> None:
    assert kinds_of(tmp_path, *(scene(seed) for seed in range(8))) == [[]] * 9


def test_copies_are_found_however_they_were_changed(tmp_path: Path) -> None:
    frame = scene(1, 400)
    whole = frame.crop((0, 0, 300, 300))
    changed = {
        "smaller": whole.resize((150, 150)),
        "brighter": whole.point(lambda value: min(255, int(value * 1.1))),
        "mirrored": ImageOps.mirror(whole),
        "shifted": frame.crop((90, 20, 390, 320)),
        "shifted and mirrored": ImageOps.mirror(frame.crop((60, 40, 360, 340))),
    }
    kinds = kinds_of(tmp_path, whole, *changed.values(), scene(2))
    assert kinds == [[], *([["duplicates"]] * 5), [], []]
    table = inspect_photos(DataConfig(photos=str(tmp_path)), size=128).table()
    assert "same picture as 0.png, mirrored\n" in table
    assert "same picture as 0.png, shifted\n" in table
    assert "same picture as 0.png, mirrored, shifted\n" in table
    assert "Warning: duplicates: photos 2, 3, 4, 5, 6." in table


@pytest.mark.parametrize("scale", [1, 3])
def test_blur_is_found_at_the_size_of_training(tmp_path: Path, scale: int) -> None:
    """Whatever the file's size: three pixels of blur at 128 px."""
    sharp = scene(3, 128 * scale)
    blurred = sharp.filter(ImageFilter.GaussianBlur(3 * scale))
    soft_backdrop = blurred.copy()
    soft_backdrop.paste(
        sharp.crop((30 * scale, 30 * scale, 90 * scale, 90 * scale)), (30 * scale, 30 * scale)
    )
    assert kinds_of(tmp_path, sharp, blurred, soft_backdrop)[1] == ["blurred", "duplicates"]
    inspection = inspect_photos(DataConfig(photos=str(tmp_path)), size=128)
    assert "blurred" not in [remark.kind for remark in inspection.checkups[2].remarks]


def test_bars_are_found_where_the_crop_keeps_them(tmp_path: Path) -> None:
    barred = scene(4)
    ImageDraw.Draw(barred).rectangle((0, 0, 255, 30), fill="black")
    ImageDraw.Draw(barred).rectangle((0, 225, 255, 255), fill="black")
    pillars = Image.new("RGB", (456, 256), "white")
    pillars.paste(scene(5), (100, 0))  # the crop leaves them out
    one_side = scene(6)
    ImageDraw.Draw(one_side).rectangle((0, 0, 255, 30), fill="black")
    product = Image.new("RGB", (256, 256), "white")
    product.paste(scene(7).resize((100, 160)), (78, 48))
    assert kinds_of(tmp_path, barred, pillars, one_side, product) == [["bars"], [], [], [], []]


def test_subjects_are_measured_where_they_can_be(tmp_path: Path) -> None:
    def on_white(box: tuple[int, int, int, int]) -> Image.Image:
        image = Image.new("RGB", (256, 256), "white")
        image.paste(scene(8).resize((box[2] - box[0], box[3] - box[1])), box[:2])
        return image

    def cut_out(size_wh: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
        image = scene(9).resize(size_wh)
        alpha = Image.new("L", size_wh, 0)
        alpha.paste(255, box)
        image.putalpha(alpha)
        return image

    kinds = kinds_of(
        tmp_path,
        on_white((110, 110, 128, 128)),
        on_white((60, 60, 200, 200)),
        on_white((0, 90, 60, 200)),
        cut_out((256, 256), (60, 60, 90, 80)),
        cut_out((256, 256), (60, 60, 200, 256)),
        cut_out((600, 256), (0, 60, 300, 200)),
    )
    assert kinds[0] == ["subject_small"]
    assert kinds[1] == []
    # The same part of the edge, but the ring is less plain: nothing is said.
    assert "subject_small" not in kinds[2]
    assert kinds[3] == ["subject_small"]
    assert kinds[4] == ["subject_cut"]
    assert kinds[5] == ["very_long", "subject_cut"]


def test_one_backdrop_is_found(tmp_path: Path) -> None:
    def photo(color: tuple[int, int, int], seed: int) -> Image.Image:
        image = Image.new("RGB", (256, 256), color)
        image.paste(scene(seed).resize((120, 150)), (40 + 10 * seed, 80))
        return image

    orange = [photo((240, 110, 30), seed) for seed in range(4)]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert kinds_of(tmp_path / "a", *orange, photo((230, 220, 60), 5))[-1] == ["one_backdrop"]
    others = [(30, 120, 220), (40, 160, 60), (240, 110, 30)]
    several = [photo(color, seed) for seed, color in enumerate(others)]
    assert kinds_of(tmp_path / "b", *several)[-1] == []
