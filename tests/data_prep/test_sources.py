"""Folders, metadata files and saved datasets become records in a fixed order, without a network."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from data_prep.config import DataConfig
from data_prep.decode import decode, decode_each
from data_prep.errors import DataError
from data_prep.sources import read_records


def save_picture(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (level, level, level)).save(path)


def records_of(folder: Path, **settings: Any) -> list[Any]:
    return read_records(DataConfig(photos=str(folder), **settings))


def levels(records: list[Any]) -> list[int]:
    return [photo.image.getpixel((0, 0))[0] for photo in decode_each(records)]


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    datasets.disable_progress_bars()


def test_folder_is_sorted_and_hidden_files_are_skipped(tmp_path: Path) -> None:
    for level, name in enumerate(("b.png", "a.JPG", "c.webp")):
        save_picture(tmp_path / name, 100 * level)
    for name in (".hidden.png", "._a.png", "__MACOSX/a.png", ".thumbnails/x.png"):
        save_picture(tmp_path / name)
    (tmp_path / "notes.md").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    records = records_of(tmp_path)
    assert [record.name for record in records] == ["a.JPG", "b.png", "c.webp"]
    assert levels(records) == [100, 0, 200]
    assert [record.caption for record in records] == [None, None, None]


def test_text_beside_a_picture_is_its_caption(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        save_picture(tmp_path / name)
    (tmp_path / "a.txt").write_text("  a {subject} on the grass\n", encoding="utf-8")
    (tmp_path / "c.txt").write_text("\ufeffein Hündchen", encoding="utf-8")
    records = records_of(tmp_path)
    assert [r.caption for r in records] == ["a {subject} on the grass", None, "ein Hündchen"]


def test_caption_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("ein Hündchen".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8"):
        records_of(tmp_path)


def write_metadata(folder: Path, *rows: Any) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_metadata_gives_files_and_captions_in_its_order(tmp_path: Path) -> None:
    for level, name in enumerate(("a.png", "sub/b.png", "left_out.png")):
        save_picture(tmp_path / name, 50 * level)
    write_metadata(
        tmp_path,
        {"file_name": "sub/b.png", "text": "second"},
        "",
        {"file_name": "a.png", "text": "first"},
    )
    assert [r.caption for r in records_of(tmp_path)] == [None, None]
    records = records_of(tmp_path, caption_column="text")
    assert [(r.name, r.caption) for r in records] == [("sub/b.png", "second"), ("a.png", "first")]
    assert levels(records) == [50, 0]


def test_captions_beside_listed_photos_count_unless_a_key_is_named(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a {subject} at sea", encoding="utf-8")
    write_metadata(tmp_path, {"file_name": "a.png", "text": "listed", "repeats": 3})
    (record,) = records_of(tmp_path)
    assert (record.caption, record.repeats) == ("a {subject} at sea", 3)
    assert records_of(tmp_path, caption_column="text")[0].caption == "listed"


def test_null_caption_in_metadata_leaves_the_prompt(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    write_metadata(tmp_path, {"file_name": "a.png", "text": None})
    assert records_of(tmp_path, caption_column="text")[0].caption is None


def test_missing_caption_key_names_the_nearest(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    write_metadata(tmp_path, {"file_name": "a.png", "caption": "x"})
    with pytest.raises(DataError) as caught:
        records_of(tmp_path, caption_column="captions")
    message = str(caught.value)
    assert "metadata.jsonl, line 1: no key 'captions' (data.caption_column)" in message
    assert "It has file_name, caption. Did you mean 'caption'?" in message


@pytest.mark.parametrize(
    "outside", ["../secret.png", "{parent}/secret.png", "sub/../../secret.png"]
)
def test_metadata_cannot_lead_out_of_its_folder(tmp_path: Path, outside: str) -> None:
    save_picture(tmp_path / "secret.png")
    folder = tmp_path / "photos"
    save_picture(folder / "sub" / "a.png")
    write_metadata(
        folder,
        {"file_name": "sub/a.png"},
        {"file_name": outside.format(parent=tmp_path)},
    )
    with pytest.raises(DataError, match=r"line 2: .*secret\.png leads out of the folder"):
        records_of(folder)


def test_metadata_link_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    save_picture(tmp_path / "secret.png")
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    write_metadata(folder, {"file_name": "link.png"})
    with pytest.raises(DataError, match=r"line 1: link\.png leads out of the folder"):
        records_of(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2: expected a JSON object with a file_name"),
        ('["a.png"]', "line 2: expected a JSON object with a file_name"),
        ('{"file": "a.png"}', "line 2: expected a JSON object with a file_name"),
        ('{"file_name": "gone.png"}', r"line 2: there is no file gone\.png"),
    ],
)
def test_bad_metadata_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    save_picture(tmp_path / "a.png")
    write_metadata(tmp_path, {"file_name": "a.png"}, line)
    with pytest.raises(DataError, match=message):
        records_of(tmp_path)


def test_metadata_in_another_encoding_is_named(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes('{"file_name": "Hündchen.png"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"metadata\.jsonl is not UTF-8"):
        records_of(tmp_path)


def table(**columns: Any) -> datasets.Dataset:
    pictures = [Image.new("RGB", (4, 4), (level,) * 3) for level in (10, 20, 30)]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": pictures, "text": ["a {subject}", None, "third"], **columns}
    for name in columns.keys() - {"image", "text"}:
        features[name] = datasets.Value("int64")
    return datasets.Dataset.from_dict(rows, features=features)


def save_dataset(kind: str, folder: Path) -> None:
    if kind == "save_to_disk":
        table().save_to_disk(folder)
    elif kind == "save_to_disk, splits":
        other = table().select([0])
        datasets.DatasetDict({"test": other, "train": table()}).save_to_disk(folder)
    elif kind == "save_to_disk, no train split":
        datasets.DatasetDict({"everything": table()}).save_to_disk(folder)
    else:
        target = folder / ("data" if kind == "hub folder" else ".")
        target.mkdir(parents=True)
        table().to_parquet(target / "train-00000-of-00001.parquet")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "kind",
    [
        "save_to_disk",
        "save_to_disk, splits",
        "save_to_disk, no train split",
        "hub folder",
        "parquet",
    ],
)
def test_saved_datasets_load_offline(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "set"
    save_dataset(kind, folder)
    records = records_of(folder, caption_column="text")
    assert levels(records) == [10, 20, 30]
    assert [r.caption for r in records] == ["a {subject}", None, "third"]
    assert records[2].name == f"{folder}[2]"
    assert [r.caption for r in records_of(folder)] == [None, None, None]


@pytest.mark.usefixtures("no_network")
def test_dataset_in_the_home_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table().save_to_disk(tmp_path / "set")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(read_records(DataConfig(photos="~/set"))) == 3


@pytest.mark.usefixtures("no_network")
def test_missing_dataset_columns_name_the_nearest(tmp_path: Path) -> None:
    table().save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="no column 'images'.*has image, text.*mean 'image'"):
        records_of(tmp_path / "set", image_column="images")
    with pytest.raises(DataError, match="no column 'txt'.*Did you mean 'text'"):
        records_of(tmp_path / "set", caption_column="txt")


@pytest.mark.usefixtures("no_network")
def test_dataset_columns_of_another_type(tmp_path: Path) -> None:
    table(label=[7, 8, 9]).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="'label' of .* holds no pictures"):
        records_of(tmp_path / "set", image_column="label")
    captions = [r.caption for r in records_of(tmp_path / "set", caption_column="label")]
    assert captions == ["7", "8", "9"]


@pytest.mark.usefixtures("no_network")
def test_dataset_row_without_a_picture_is_named(tmp_path: Path) -> None:
    first = Image.new("RGB", (4, 4))
    table(image=[first, None, first]).save_to_disk(tmp_path / "set")
    records = records_of(tmp_path / "set")
    assert decode(records[0]).size_hw == (4, 4)
    with pytest.raises(DataError, match=r"set\[1\] cannot be read as a picture"):
        decode(records[1])


@pytest.mark.usefixtures("no_network")
def test_damaged_dataset_is_named(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="set' .*could not be read as a dataset"):
        records_of(tmp_path / "set")


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder '.*/nothing/here'"):
        records_of(tmp_path / "nothing" / "here")


def test_folder_without_pictures_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("no picture")
    with pytest.raises(DataError, match=r"holds no pictures. Known kinds: \.jpg"):
        records_of(tmp_path)


def test_empty_metadata_is_no_pictures(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no pictures"):
        records_of(tmp_path)


def test_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png is a file. Give the folder"):
        records_of(tmp_path / "a.png")


# --- several sources, repeats ---------------------------------------------------------------------


def test_more_photos_follow_with_their_own_prompt_and_repeats(tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    save_picture(near / "a.png", 10)
    save_picture(near / "b.png", 20)
    save_picture(far / "a.png", 30)
    (far / "a.txt").write_text("its own {subject}")
    write_metadata(near, {"file_name": "b.png"}, {"file_name": "a.png", "repeats": 4})
    more = [{"path": str(far), "prompt": "a {subject} far away", "repeats": 3}]
    records = records_of(near, repeats=2, more_photos=more)
    assert levels(records) == [20, 10, 30]
    assert [record.repeats for record in records] == [2, 8, 3]
    assert [record.prompt for record in records] == [None, None, "a {subject} far away"]
    assert [record.caption for record in records] == [None, None, "its own {subject}"]
    # Photos of the same name are told apart.
    assert [record.name for record in records] == [f"{near}/b.png", f"{near}/a.png", f"{far}/a.png"]
    assert [photo.repeats for photo in decode_each(records)] == [2, 8, 3]


def test_mistake_in_more_photos_is_named(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    more = [{"path": str(tmp_path)}, {"path": str(tmp_path / "gone" / "away")}]
    with pytest.raises(DataError, match=r"data\.more_photos\.1\.path: there is no folder"):
        records_of(tmp_path, more_photos=more)


@pytest.mark.parametrize("repeats", [0, -1, 1001, 1.5, "2", True, None])
def test_repeats_that_are_no_number_of_times_are_refused(tmp_path: Path, repeats: Any) -> None:
    save_picture(tmp_path / "a.png")
    write_metadata(tmp_path, {"file_name": "a.png", "repeats": repeats})
    with pytest.raises(DataError, match=r"metadata\.jsonl, line 1: repeats is"):
        records_of(tmp_path)


def test_photo_listed_twice_is_refused(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    write_metadata(tmp_path, {"file_name": "a.png"}, {"file_name": "./a.png"})
    with pytest.raises(DataError, match=r"line 2: \./a\.png is listed twice"):
        records_of(tmp_path)
