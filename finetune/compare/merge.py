"""Several comparisons as one: rows, subjects, seeds and scorers joined where they are of the same things."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from finetune.compare.assemble import made_by
from finetune.compare.merge_cells import joined_cells
from finetune.compare.summaries import completed
from finetune.config import merge
from finetune.errors import ArtifactError
from finetune.files import atomic_folder, require_new
from finetune.results import (
    Prompt,
    Record,
    Results,
    Row,
    ScoreInfo,
    Subject,
    read_results,
    write_results,
)
from finetune.wording import plural

Given = tuple[Path, Results]
"""Results and where they were read from."""
_SAME = ("base", "num_images", "sampling")
_NO_CURVE: dict[str, Any] = {
    "curve": (),
    "curve_scale": {},
    "recommended_step": None,
    "overfits_from": None,
}

Part = TypeVar("Part", bound=Record)


def merged(folders: Sequence[Path], output: Path, *, command: str) -> Results:
    """Join the results in `folders` into `output`, with copies of the pictures they show.

    What holds for one only (a scorer, a learning curve, a cell that failed elsewhere) is kept; a frozen base
    that another machine made a little differently is taken once, with a remark. Raises `ArtifactError`, with
    the name of what differs, for results of different things, and `CheckpointError` where `output` holds
    something already. Nothing is written then.
    """
    require_new(output, "output=...")
    parts, remarks = _with_like_curves([(path, read_results(path)) for path in folders])
    results = completed(_joined(parts, remarks, command))
    with atomic_folder(output) as temporary:
        _copy_pictures(parts, results, temporary)
        write_results(results, temporary)
    return results


def _joined(parts: Sequence[Given], remarks: Sequence[str], command: str) -> Results:
    same = {field: _same(parts, field) for field in _SAME}
    subjects = _union(parts, lambda r: r.subjects, "subject", _subject_value, join=_one_subject)
    encoders = _union(parts, lambda r: r.encoders, "encoder", _whole)
    scores = _union(parts, lambda r: r.scores, "score", _score_value, name=lambda score: score.key)
    rows = _union(parts, _compared_rows(parts), "row", _row_value, join=_one_row)
    rows.sort(key=lambda row: row.kind != "reference")
    cells, about_cells = joined_cells(parts)
    budget, about_budgets = _budget(parts)
    own = [remark for _, part in parts for remark in _own_remarks(part)]
    count = sum(row.kind != "reference" for row in rows)
    return Results.model_validate(
        {
            **parts[0][1].model_dump(),
            **same,
            "title": f"{plural(count, 'way')}, from {plural(len(parts), 'comparison')}",
            "made": made_by(command).model_dump(),
            "budget": budget,
            "rule": next((_value(part, "rule") for _, part in parts if part.rule), None),
            "seeds": sorted({seed for _, part in parts for seed in part.seeds}),
            "subjects": [subject.model_dump() for subject in subjects],
            "encoders": [encoder.model_dump() for encoder in encoders],
            "scores": [score.model_dump() for score in _one_headline_each(scores, parts)],
            "rows": [row.model_dump() for row in rows],
            "cells": [cell.model_dump() for cell in cells],
            "remarks": list(dict.fromkeys([*own, *about_budgets, *remarks, *about_cells])),
            "settings": {"merged": [part.settings for _, part in parts]},
        }
    )


def _value(results: Results, field: str) -> Any:
    return results.model_dump(mode="json", include={field})[field]


def _same(parts: Sequence[Given], field: str) -> Any:
    """What the parts that say anything of a field agree on. Raises `ArtifactError`."""
    said = [(path, value) for path, part in parts if (value := _value(part, field))]
    for path, value in said[1:]:
        if value != said[0][1]:
            raise ArtifactError(
                f"{said[0][0]} and {path} cannot be joined: {_difference(field, said[0][1], value)}."
            )
    return said[0][1] if said else _value(parts[0][1], field)


def _difference(field: str, mine: Any, theirs: Any) -> str:
    """The first difference by its dotted name, with both values."""
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        for key in {**mine, **theirs}:
            if (key in mine) != (key in theirs):
                return f"{field}.{key} is only in the {'one' if key in mine else 'other'}"
            if mine[key] != theirs[key]:
                return _difference(f"{field}.{key}", mine[key], theirs[key])
    lists = isinstance(mine, list) and isinstance(theirs, list)
    if lists and sorted(map(str, mine)) == sorted(map(str, theirs)):
        return f"{field} are in another order"
    return f"{field} is {mine!r} in the one and {theirs!r} in the other"


def _union(
    parts: Sequence[Given],
    members: Callable[[Results], Sequence[Part]],
    what: str,
    value: Callable[[Part], Any],
    *,
    name: Callable[[Any], str] = lambda member: member.name,
    join: Callable[[Part, Part], Part] = lambda first, second: first,
) -> list[Part]:
    """All members by name, in order. Raises `ArtifactError` where two of one name differ in `value`."""
    found: dict[str, tuple[Path, Part]] = {}
    for path, part in parts:
        for member in members(part):
            before, other = found.setdefault(name(member), (path, member))
            mine, theirs = value(other), value(member)
            if mine != theirs:
                raise ArtifactError(
                    f"{before} and {path} cannot be joined: the {what} {name(member)} is not the same in "
                    f"both ({_difference(what, mine, theirs)}). Rename one of them, or make both of the same."
                )
            found[name(member)] = before, join(other, member)
    return [member for _, member in found.values()]


def _whole(part: Record) -> Any:
    return part.model_dump(mode="json")


def _subject_value(subject: Subject) -> Any:
    """What pictures were scored against."""
    return {
        "class_noun": subject.class_noun,
        "photos": {photo.sha256: photo.masked for photo in subject.photos},
        "prompts": {f"'{p.template}'": (p.role, p.text) for p in subject.prompts},
        "columns": [p.template for p in subject.prompts],
    }


def _one_subject(first: Subject, second: Subject) -> Subject:
    prompts = first.validation_prompts or second.validation_prompts
    return first.model_copy(update={"validation_prompts": prompts})


def _score_value(score: ScoreInfo) -> Any:
    return {key: value for key, value in _whole(score).items() if key != "headline"}


def _one_headline_each(scores: Sequence[ScoreInfo], parts: Sequence[Given]) -> list[ScoreInfo]:
    """One headline per id: the first that all parts have, else the first."""
    measured = [{score.key for score in part.scores} for _, part in parts]
    chosen: dict[str, str] = {}
    for score in sorted(
        scores, key=lambda s: (not all(s.key in keys for keys in measured), not s.headline)
    ):
        chosen.setdefault(score.id, score.key)
    return [s.model_copy(update={"headline": chosen[s.id] == s.key}) for s in scores]


def _compared_rows(parts: Sequence[Given]) -> Callable[[Results], Sequence[Row]]:
    """The rows of a part, but for those that were not compared in it and were in another."""
    compared = {row.name for _, part in parts for row in part.rows if row.error is None}
    return lambda part: [r for r in part.rows if r.error is None or r.name not in compared]


def _row_value(row: Row) -> Any:
    """What makes a row what it is on any subject; where artifacts and folders lie does not."""
    values: dict[str, Any] = {"kind": row.kind, "method": row.method, "class_noun": row.class_noun}
    if row.kind != "method":
        return values
    looks = row.settings.get("validation", {})
    stops = {key: looks.get(key) for key in ("patience", "keep")}
    if stops["patience"] is not None or stops["keep"] == "recommended":
        stops |= {key: looks.get(key) for key in ("every", "num_images", "limits")}
        judges = looks["scorers"]  # folders of one name hold one network, or encoders differ
        names = (*judges["subject"][:1], judges["prompt"])  # older results do not tell them
        stops["scorers"] = [Path(name).name for name in names if name]
    return {**values, "settings": {**row.settings, "validation": stops}}


def _one_row(first: Row, second: Row) -> Row:
    """The first; an artifact's or folder's with the paths of both."""
    if first.kind == "method":
        return first
    return first.model_copy(update={"settings": merge(second.settings, first.settings)})


def _budget(parts: Sequence[Given]) -> tuple[Any, list[str]]:
    """What was made equal everywhere, or a sentence for each part's own."""
    said = [(path, part.budget) for path, part in parts if part.budget is not None]
    if all(budget == said[0][1] for _, budget in said):
        return (said[0][1].model_dump() if said else None), []
    each = " ".join(f"{path}: {budget.text}" for path, budget in said)
    return None, [f"The comparisons had different budgets. {each}"]


def _with_like_curves(parts: Sequence[Given]) -> tuple[list[Given], list[str]]:
    """The parts without learning curves that are not measured like those before them; and why."""
    rule, looks, prompts = None, None, dict[str, tuple[Prompt, ...]]()
    kept, remarks = list[Given](), list[str]()
    for path, part in parts:
        rule = rule or part.rule
        own = {s.name: s.validation_prompts for s in part.subjects if s.validation_prompts}
        if part.rule not in (None, rule):
            why = "they follow a different checkpoint rule"
        elif any(prompts.get(name, own[name]) != own[name] for name in own):
            why = "they are on different validation prompts"
        elif looks and _looks(part) not in (frozenset(), looks):
            why = "other networks judged them, or other numbers of pictures"
        else:
            looks = looks or _looks(part)
            prompts |= own
            kept.append((path, part))
            continue
        cells = [cell.model_copy(update=_NO_CURVE) for cell in part.cells]
        kept.append((path, part.model_copy(update={"cells": tuple(cells)})))
        remarks.append(f"The learning curves of {path} are left out: {why}.")
    return kept, remarks


def _looks(part: Results) -> frozenset[tuple[frozenset[str], frozenset[int]]]:
    """How the points of learning curves were measured: score keys, and pictures per prompt."""
    return frozenset(
        (frozenset(point.scores), frozenset(map(len, point.pictures)))
        for cell in part.cells
        for point in cell.curve
    )


def _own_remarks(part: Results) -> list[str]:
    """Remarks but for those that summing up makes, and will make again."""
    again = set(completed(part.model_copy(update={"remarks": ()})).remarks)
    return [remark for remark in part.remarks if remark not in again]


def _files(results: Results) -> Iterator[str]:
    for subject in results.subjects:
        yield from (photo.file for photo in subject.photos)
    for cell in results.cells:
        yield from (name for row in cell.pictures for name in row)
        yield from (name for point in cell.curve for row in point.pictures for name in row)


def _copy_pictures(parts: Sequence[Given], results: Results, target: Path) -> None:
    wanted = set(_files(results))
    for path, part in parts:
        folder = path if path.is_dir() else path.parent
        for name in dict.fromkeys(_files(part)):
            source, copy = folder / name, target / name
            if not copy.resolve().is_relative_to(target.resolve()):
                raise ArtifactError(f"{path}: the picture {name} leads out of its folder.")
            if name in wanted and not copy.is_file() and source.is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)
