"""The inspection lists every picture with what was done to it, and shows the crops of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.config import DataConfig
from data_prep.errors import DataError
from data_prep.inspect import Inspection, inspect_photos


@pytest.fixture
def inspection(tmp_path: Path) -> Inspection:
    Image.new("RGB", (40, 40), (200, 0, 0)).save(tmp_path / "a.png")
    Image.new("RGBA", (50, 40), (0, 200, 0, 255)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no picture")
    long = Image.new("RGB", (90, 30), "black")
    long.paste((0, 0, 200), (30, 0, 60, 30))
    long.save(tmp_path / "d.png")
    (tmp_path / "d.txt").write_text("a blue {subject}")
    return inspect_photos(DataConfig(photos=str(tmp_path)), size=32)


def test_every_picture_has_a_line(inspection: Inspection) -> None:
    lines = inspection.table().splitlines()
    assert lines[0] == "a.png  ok       40 × 40"
    assert lines[1] == "b.png  repaired 50 × 40  transparent: laid over white"
    assert lines[2].startswith("c.png  refused  c.png cannot be read as a picture")
    assert lines[3] == (
        "d.png  ok       90 × 30  smaller than 32 px: will be enlarged and soft; "
        'very long: the crop keeps less than half of it  caption: "a blue {subject}"'
    )
    assert lines[4:] == ["3 of 4 pictures can be used."]
    assert inspection.num_refused == 1


def test_contact_sheet_shows_the_crops_in_order(inspection: Inspection) -> None:
    sheet = inspection.contact_sheet(cell=20, columns=2)
    assert sheet.size == (40, 40)
    cells = np.asarray(sheet).reshape(2, 20, 2, 20, 3).swapaxes(1, 2)
    for row, column, color in ((0, 0, (200, 0, 0)), (0, 1, (0, 200, 0)), (1, 1, (255, 255, 255))):
        assert (cells[row, column] == color).all()
    # The long picture is cut to its blue middle.
    assert (cells[1, 0, 4:-4, 4:-4] == (0, 0, 200)).all()


def test_nothing_usable_still_gives_a_table_and_a_sheet(tmp_path: Path) -> None:
    (tmp_path / "c.png").write_bytes(b"")
    inspection = inspect_photos(DataConfig(photos=str(tmp_path)), size=32)
    assert inspection.table().splitlines()[-1] == "0 of 1 pictures can be used."
    assert inspection.contact_sheet(cell=20).size == (20, 20)


def test_no_pictures_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        inspect_photos(DataConfig(photos=str(tmp_path)), size=32)
