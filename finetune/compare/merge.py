"""Several comparisons as one: rows, subjects and seeds joined where they are of the same things."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from finetune.compare.assemble import made_by
from finetune.compare.summaries import completed
from finetune.errors import ArtifactError, CheckpointError
from finetune.files import atomic_folder
from finetune.results import Cell, Record, Results, Row, read_results, write_results

_SAME = ("base", "num_images", "sampling")
_MAY_DIFFER = {"trials", "chosen_trial"}

Part = TypeVar("Part", bound=Record)


def merged(folders: Sequence[Path], output: Path, *, command: str) -> Results:
    """Join the results in `folders` into `output`, with copies of the pictures they show.

    Raises `ArtifactError`, with the name of what differs, for results of different things, and
    `CheckpointError` where `output` holds something already. Nothing is written then.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(
            f"{output} is there already, and merging writes over nothing. Choose another folder with "
            "output=..."
        )
    parts = [(path, read_results(path)) for path in folders]
    results = completed(_joined(parts, command))
    with atomic_folder(output) as temporary:
        _copy_pictures(parts, temporary)
        write_results(results, temporary)
    return results


def _joined(parts: Sequence[tuple[Path, Results]], command: str) -> Results:
    first_path, first = parts[0]
    for path, other in parts[1:]:
        for field in _SAME:
            mine, theirs = _value(first, field), _value(other, field)
            if mine != theirs:
                raise ArtifactError(
                    f"{first_path} and {path} cannot be joined: {_difference(field, mine, theirs)}."
                )
    subjects = _union(parts, lambda r: r.subjects, lambda s: s.name, _subject_value, "the subject")
    encoders = _union(parts, lambda r: r.encoders, lambda e: e.name, _whole, "the encoder")
    scores = _union(parts, lambda r: r.scores, lambda s: s.key, _score_value, "the score")
    rows = _union(parts, lambda r: r.rows, lambda r: r.name, _row_value, "the row")
    rows.sort(key=lambda row: row.kind != "reference")
    remarks = dict.fromkeys(
        remark
        for _, part in parts
        for remark in part.remarks
        if remark not in _verdict_remarks(part)
    )
    return Results.model_validate(
        {
            **first.model_dump(),
            "title": f"{sum(row.kind != 'reference' for row in rows)} ways, from {len(parts)} comparisons",
            "made": made_by(command).model_dump(),
            "budget": _agreed(parts, "budget"),
            "rule": _agreed(parts, "rule"),
            "seeds": sorted({seed for _, part in parts for seed in part.seeds}),
            "subjects": [subject.model_dump() for subject in subjects],
            "encoders": [encoder.model_dump() for encoder in encoders],
            "scores": [score.model_dump() for score in scores],
            "rows": [row.model_dump() for row in rows],
            "cells": [cell.model_dump() for cell in _cells(parts)],
            "remarks": list(remarks),
            "settings": {"merged": [part.settings for _, part in parts]},
        }
    )


def _value(results: Results, field: str) -> Any:
    return results.model_dump(mode="json")[field]


def _difference(field: str, mine: Any, theirs: Any) -> str:
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        for key in {**mine, **theirs}:
            if mine.get(key) != theirs.get(key):
                return _difference(f"{field}.{key}", mine.get(key), theirs.get(key))
    return f"{field} is {mine!r} in the one and {theirs!r} in the other"


def _union(
    parts: Sequence[tuple[Path, Results]],
    members: Callable[[Results], Sequence[Part]],
    name: Callable[[Part], str],
    value: Callable[[Part], Any],
    what: str,
) -> list[Part]:
    """All members by name, in order. Raises `ArtifactError` where two of one name differ."""
    found: dict[str, tuple[Path, Part]] = {}
    for path, part in parts:
        for member in members(part):
            before = found.setdefault(name(member), (path, member))
            if value(before[1]) != value(member):
                difference = _difference(what, value(before[1]), value(member))
                raise ArtifactError(
                    f"{before[0]} and {path} cannot be joined: {what} {name(member)} is not the same in both "
                    f"({difference}). Rename one of them, or make both of the same."
                )
    return [member for _, member in found.values()]


def _whole(part: Record) -> Any:
    return part.model_dump(mode="json")


def _subject_value(subject: Any) -> Any:
    values = subject.model_dump(mode="json")
    for photo in values["photos"]:
        del photo["file"]
    return values


def _score_value(score: Any) -> Any:
    return {key: value for key, value in _whole(score).items() if key != "headline"}


def _row_value(row: Row) -> Any:
    return {key: value for key, value in _whole(row).items() if key not in _MAY_DIFFER}


def _agreed(parts: Sequence[tuple[Path, Results]], field: str) -> Any:
    """A field that all parts agree on, else None: then it does not hold for the whole."""
    values = [_value(part, field) for _, part in parts]
    return values[0] if all(value == values[0] for value in values) else None


def _verdict_remarks(part: Results) -> set[str]:
    """Remarks that summing up makes, and will make again."""
    again = completed(part.model_copy(update={"remarks": ()}))
    return set(again.remarks)


def _cells(parts: Sequence[tuple[Path, Results]]) -> Iterator[Cell]:
    """Every cell once. Raises `ArtifactError` where two of one place have other pictures' values."""
    found: dict[tuple[str, str, int], tuple[Path, Cell]] = {}
    for path, part in parts:
        for cell in part.cells:
            place = (cell.row, cell.subject, cell.seed)
            before, other = found.setdefault(place, (path, cell))
            if other is cell:
                yield cell
            elif _cell_value(other) != _cell_value(cell):
                raise ArtifactError(
                    f"{before} and {path} cannot be joined: both have the row {cell.row} on {cell.subject} "
                    f"at seed {cell.seed}, with other values. Leave one of them out."
                )


def _cell_value(cell: Cell) -> Any:
    return cell.model_dump(mode="json", include={"status", "noise_seeds", "scores", "num_steps"})


def _files(results: Results) -> Iterator[str]:
    for subject in results.subjects:
        yield from (photo.file for photo in subject.photos)
    for cell in results.cells:
        yield from (name for row in cell.pictures for name in row)
        yield from (name for point in cell.curve for row in point.pictures for name in row)


def _copy_pictures(parts: Sequence[tuple[Path, Results]], target: Path) -> None:
    for path, part in parts:
        folder = path if path.is_dir() else path.parent
        for name in dict.fromkeys(_files(part)):
            source, copy = folder / name, target / name
            if not (target / name).resolve().is_relative_to(target.resolve()):
                raise ArtifactError(f"{path}: the picture {name} leads out of its folder.")
            if not copy.is_file() and source.is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)
