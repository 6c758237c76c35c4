"""Folders and datasets to records: where each picture is and what its caption says.

The only importer of `datasets`. Pictures are listed here and opened in `decode`.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from data_prep.config import MAX_REPEATS, DataConfig, PhotoSource
from data_prep.errors import DataError, did_you_mean
from data_prep.kinds import ALL_SUFFIXES, Unreadable, open_picture
from data_prep.masks import MASK_FOLDER, masks_beside

MAX_TEXT_BYTES = 100_000_000
"""Of a metadata.jsonl or a caption file; larger ones are refused unread."""


@dataclass(frozen=True)
class Record:
    """One picture of the subject."""

    name: str
    """File or row name, for messages."""
    open: Callable[[], Image.Image]
    """Opens the picture, undecoded; may raise what Pillow raises."""
    caption: str | None
    """Its own caption, which may hold `{subject}`."""
    mask: Record | None = None
    """The picture of its mask."""
    prompt: str | None = None
    """Caption of its folder, for want of its own."""
    repeats: int = 1
    """How often it comes in an epoch."""


_JOINERS = "\u200c\u200d"
"""Invisible, but part of Persian words, Indic letters and emoji."""


def printable(name: str) -> str:
    """`name` as one line that any terminal shows: what is not printable is written as an escape."""
    return "".join(
        character
        if character.isprintable() or character in _JOINERS
        else character.encode("unicode_escape").decode()
        for character in name
    )


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise DataError(f"{path} is larger than {MAX_TEXT_BYTES // 1_000_000} MB. Shorten it.")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}). Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def leads_out(path: Path, folder: Path) -> bool:
    """Whether `path` is, through a link or `..`, outside `folder`. Raises OSError for a bad path."""
    try:
        return not path.resolve().is_relative_to(folder.resolve())
    except (ValueError, RuntimeError) as error:  # a null byte, or links in a circle
        raise OSError(str(error)) from error


def _sidecar(picture: Path) -> str | None:
    text = picture.with_suffix(".txt")
    if not text.is_file():
        return None
    if leads_out(text, picture.parent):
        raise DataError(f"{text} leads out of the folder. Copy it inside.")
    return _read_text(text).strip()


def _opener(path: Path, folder: Path) -> Callable[[], Image.Image]:
    def opened() -> Image.Image:
        if leads_out(path, folder):
            raise Unreadable("it is a link out of the folder", "Copy the picture itself inside.")
        if not path.exists():
            raise Unreadable("it is a link to nothing", "Copy the picture itself inside.")
        return open_picture(path)

    return opened


def _caption(value: Any) -> str | None:
    return None if value is None else str(value)


def _repeats(row: dict[str, Any], where: str) -> int:
    value = row.get("repeats", 1)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_REPEATS:
        raise DataError(f"{where}: repeats is {value!r}; give a number from 1 to {MAX_REPEATS}.")
    return value


def _with_masks(records: dict[Path, Record], folder: Path) -> list[Record]:
    """The records, each with its mask from a folder beside its picture."""
    masks = masks_beside(list(records), ALL_SUFFIXES)
    return [
        replace(
            record, mask=Record(f"the mask of {record.name}", _opener(masks[path], folder), None)
        )
        if path in masks
        else record
        for path, record in records.items()
    ]


def _from_metadata(folder: Path, config: DataConfig) -> list[Record]:
    records: dict[Path, Record] = {}
    path = folder / "metadata.jsonl"
    # Not splitlines: a caption may hold U+2028 and its like.
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = str(row["file_name"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number}: expected a JSON object with a file_name ({error})."
            ) from error
        picture, shown = folder / name, printable(name)
        try:
            is_outside, is_file = leads_out(picture, folder), picture.is_file()
        except OSError:
            is_outside, is_file = False, False
        if is_outside:
            raise DataError(
                f"{path}, line {number}: {shown} leads out of the folder. Copy it inside."
            )
        if not is_file:
            raise DataError(f"{path}, line {number}: there is no file {shown} in {folder}.")
        if config.caption_column is not None:
            if config.caption_column not in row:
                raise DataError(
                    f"{path}, line {number}: no key '{config.caption_column}' (data.caption_column). "
                    f"It has {', '.join(row)}.{did_you_mean(config.caption_column, row)}"
                )
            caption = _caption(row[config.caption_column])
        else:
            caption = _sidecar(picture)
        repeats = _repeats(row, f"{path}, line {number}")
        if picture in records:
            raise DataError(
                f"{path}, line {number}: {shown} is listed twice. Give it once, with a key repeats."
            )
        records[picture] = Record(shown, _opener(picture, folder), caption, repeats=repeats)
    return _with_masks(records, folder)


def _why_ignored(path: Path) -> str | None:
    """Why a file beside the photos is none, or None if it is one."""
    if path.name.startswith("._") or path.name in (".DS_Store", "__MACOSX"):
        return "macOS leftovers"
    if path.name.lower() in ("thumbs.db", "desktop.ini", "ehthumbs.db"):
        return "Windows leftovers"
    if path.name.startswith("."):
        return "hidden"
    if path.is_dir():
        return "folders"
    if path.suffix.lower() not in ALL_SUFFIXES:
        return "no pictures by their name"
    return None if path.is_file() or path.is_symlink() else "no regular files"


def _from_folder(folder: Path, config: DataConfig) -> list[Record]:
    if (folder / "metadata.jsonl").is_file():
        return _from_metadata(folder, config)
    pictures = sorted(path for path in folder.iterdir() if _why_ignored(path) is None)
    records = {
        path: Record(printable(path.name), _opener(path, folder), _sidecar(path))
        for path in pictures
    }
    return _with_masks(records, folder)


def _ignored_in(folder: Path) -> list[str]:
    if not folder.is_dir() or _looks_like_a_dataset(folder):
        return []
    if (folder / "metadata.jsonl").is_file():
        return []
    paths = list(folder.iterdir())
    used = {path.with_suffix(".txt") for path in paths if _why_ignored(path) is None}
    used.add(folder / MASK_FOLDER)
    return [reason for path in paths if path not in used and (reason := _why_ignored(path))]


def ignored_files(config: DataConfig) -> dict[str, int]:
    """How many files of plain folders are passed over, by reason; none of other sources.

    Captions and masks count as used. With a metadata.jsonl only what it names is looked at.
    """
    paths = [config.photos, *(source.path for source in config.more_photos)]
    reasons = (reason for path in paths for reason in _ignored_in(Path(path).expanduser()))
    return dict(sorted(Counter(reasons).items()))


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
            return open_picture(io.BytesIO(value["bytes"]))
        return open_picture(Path(value["path"]))

    return opened


def _from_dataset(source: str, config: DataConfig, field: str) -> list[Record]:
    import datasets

    try:
        read = datasets.load_from_disk if _is_saved(Path(source)) else datasets.load_dataset
        loaded = read(source)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{field}: '{source}' is no folder here and could not be read as a dataset: {reason}"
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


def _read_source(source: str, config: DataConfig, field: str) -> list[Record]:
    folder = Path(source).expanduser()
    if folder.is_file():
        raise DataError(f"{field}: {folder} is a file. Give the folder that holds the photos.")
    is_hub_id = source.count("/") == 1 and not source.startswith((".", "/", "~"))
    if folder.is_dir() and not _looks_like_a_dataset(folder):
        records = _from_folder(folder, config)
    elif folder.is_dir() or is_hub_id:
        records = _from_dataset(str(folder) if folder.is_dir() else source, config, field)
    else:
        raise DataError(f"{field}: there is no folder '{source}'.")
    if not records:
        raise DataError(
            f"{field}: {source} holds no pictures. Known kinds: {', '.join(ALL_SUFFIXES)}."
        )
    return records


def read_records(config: DataConfig, *, field: str = "data.photos") -> list[Record]:
    """Every picture that `config.photos` and `config.more_photos` name, in a fixed order.

    Raises `DataError`, which calls `config.photos` by the name `field`, if there is no such folder or
    dataset, or one holds no pictures.
    """
    sources = [PhotoSource(path=config.photos, repeats=config.repeats), *config.more_photos]
    records = []
    for number, source in enumerate(sources):
        named = f"data.more_photos.{number - 1}.path" if number else field
        for record in _read_source(source.path, config, named):
            name = f"{source.path}/{record.name}" if len(sources) > 1 else record.name
            repeats = source.repeats * record.repeats
            records.append(replace(record, name=name, prompt=source.prompt, repeats=repeats))
    return records
