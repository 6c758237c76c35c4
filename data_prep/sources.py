"""Folders and datasets to records: where each picture is and what its caption says.

The only importer of `datasets`. Pictures are listed here and opened in `transforms`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from data_prep.config import DataConfig
from data_prep.errors import DataError, did_you_mean

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".gif")


@dataclass(frozen=True)
class Record:
    """One picture of the subject."""

    name: str
    """File or row name, for messages."""
    open: Callable[[], Image.Image]
    """Opens the picture, undecoded; may raise what Pillow raises."""
    caption: str | None
    """Its own caption, which may hold `{subject}`."""


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}). Save it as UTF-8.") from error


def _sidecar(picture: Path) -> str | None:
    text = picture.with_suffix(".txt")
    return _read_text(text).strip() if text.is_file() else None


def _opener(path: Path) -> Callable[[], Image.Image]:
    return lambda: Image.open(path)


def _caption(value: Any) -> str | None:
    return None if value is None else str(value)


def _from_metadata(folder: Path, config: DataConfig) -> list[Record]:
    records = []
    path = folder / "metadata.jsonl"
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = str(row["file_name"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: expected a JSON object with a file_name ({error})."
            ) from error
        picture = (folder / name).resolve()
        if not picture.is_relative_to(folder.resolve()):
            raise DataError(
                f"{path}, line {number}: {name} leads out of the folder. Copy it inside."
            )
        if not picture.is_file():
            raise DataError(f"{path}, line {number}: there is no file {name} in {folder}.")
        caption = None
        if config.caption_column is not None:
            if config.caption_column not in row:
                raise DataError(
                    f"{path}, line {number}: no key '{config.caption_column}' (data.caption_column). "
                    f"It has {', '.join(row)}.{did_you_mean(config.caption_column, row)}"
                )
            caption = _caption(row[config.caption_column])
        records.append(Record(name, _opener(picture), caption))
    return records


def _from_folder(folder: Path, config: DataConfig) -> list[Record]:
    if (folder / "metadata.jsonl").is_file():
        return _from_metadata(folder, config)
    pictures = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not _hidden(path.relative_to(folder))
    )
    return [Record(path.name, _opener(path), _sidecar(path)) for path in pictures]


def _is_saved(folder: Path) -> bool:
    """Whether `folder` was written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    return any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))


def _looks_like_a_dataset(folder: Path) -> bool:
    """Saved by `datasets`, or laid out as on the Hub (parquet files, possibly under data/)."""
    return _is_saved(folder) or any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet"))


def _row_opener(rows: Any, index: int, column: str) -> Callable[[], Image.Image]:
    def opened() -> Image.Image:
        value = rows[index][column]
        if value is None:
            raise OSError(f"the column '{column}' is empty")
        if value.get("bytes") is not None:
            return Image.open(io.BytesIO(value["bytes"]))
        return Image.open(value["path"])

    return opened


def _from_dataset(source: str, config: DataConfig) -> list[Record]:
    import datasets

    try:
        read = datasets.load_from_disk if _is_saved(Path(source)) else datasets.load_dataset
        loaded = read(source)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"data.photos: '{source}' is no folder here and could not be read as a dataset: {reason}"
        ) from error
    rows = loaded["train"] if isinstance(loaded, dict) and "train" in loaded else loaded
    if isinstance(rows, dict):
        rows = next(iter(rows.values()))
    for column in filter(None, (config.image_column, config.caption_column)):
        if column not in rows.column_names:
            raise DataError(
                f"{source} has no column '{column}'. It has {', '.join(rows.column_names)}."
                f"{did_you_mean(column, rows.column_names)}"
            )
    try:
        rows = rows.cast_column(config.image_column, datasets.Image(decode=False))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise DataError(
            f"data.image_column: '{config.image_column}' of {source} holds no pictures ({error})."
        ) from error
    captions = rows[config.caption_column] if config.caption_column else [None] * len(rows)
    return [
        Record(
            f"{source}[{index}]", _row_opener(rows, index, config.image_column), _caption(caption)
        )
        for index, caption in enumerate(captions)
    ]


def read_records(config: DataConfig) -> list[Record]:
    """Every picture that `config.photos` names, in a fixed order.

    Raises `DataError` if there is no such folder or dataset, or it holds no pictures.
    """
    folder = Path(config.photos).expanduser()
    if folder.is_file():
        raise DataError(f"data.photos: {folder} is a file. Give the folder that holds the photos.")
    is_hub_id = config.photos.count("/") == 1 and not config.photos.startswith((".", "/", "~"))
    if folder.is_dir() and not _looks_like_a_dataset(folder):
        records = _from_folder(folder, config)
    elif folder.is_dir() or is_hub_id:
        records = _from_dataset(str(folder) if folder.is_dir() else config.photos, config)
    else:
        raise DataError(f"data.photos: there is no folder '{config.photos}'.")
    if not records:
        raise DataError(
            f"data.photos: {config.photos} holds no pictures. Known kinds: {', '.join(SUFFIXES)}."
        )
    return records
