"""Cells of several comparisons as one: each place once, rows at one place with the same noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from finetune.errors import ArtifactError
from finetune.results import (
    FROZEN_BASE,
    PHOTOS_AS_OUTPUTS,
    REAL_PHOTOS,
    Cell,
    Results,
    Table,
)

TOLERANCE = 0.002
"""Between scores of the same pictures made twice: the arithmetic of two machines, far below what rows differ
by."""

Made = tuple[Path, Cell]
"""A cell and the results it is of."""


def joined_cells(parts: Sequence[tuple[Path, Results]]) -> tuple[list[Cell], list[str]]:
    """Every cell once, and remarks on those of the frozen base that two machines made differently.

    Raises `ArtifactError` where two cells of one place are of different pictures, or the pictures of two rows
    at one place start from different noise.
    """
    found: dict[tuple[str, str, int | None], Made] = {}
    remarks = []
    for path, part in parts:
        for cell in part.cells:
            of_photos = cell.row in (REAL_PHOTOS, PHOTOS_AS_OUTPUTS)  # the same at every seed
            place = (cell.row, cell.subject, None if of_photos else cell.seed)
            if place not in found:
                found[place] = path, cell
                continue
            found[place], remark = _one_of(found[place], (path, cell))
            remarks += remark
    _check_noise(found.values())
    return [cell for _, cell in found.values()], remarks


def _one_of(before: Made, after: Made) -> tuple[Made, list[str]]:
    """Two cells of one place as one: what finished, with the scores and the learning curve of both."""
    (path, first), (other_path, second) = before, after
    if "failed" in (first.status, second.status):
        return (after if first.status == "failed" else before), []
    what = f"{first.row} on {first.subject} at seed {first.seed}"
    differ = _largest_difference(first, second)
    if differ is None and first.row == FROZEN_BASE:
        return max(before, after, key=lambda made: sum(map(len, made[1].pictures))), []
    if differ is None:
        raise ArtifactError(
            f"{path} and {other_path} cannot be joined: {what} has not as many steps and pictures in both. "
            "Leave one of them out."
        )
    if differ <= TOLERANCE:
        with_curve = first if first.curve else second
        changes = {
            "scores": {**second.scores, **first.scores},
            "curve": with_curve.curve,
            "curve_scale": with_curve.curve_scale,
            "recommended_step": with_curve.recommended_step,
            "overfits_from": with_curve.overfits_from,
        }
        return (path, first.model_copy(update=changes)), []
    if first.row != FROZEN_BASE:
        raise ArtifactError(
            f"{path} and {other_path} cannot be joined: both have the row {what}, with different values (by "
            f"up to {differ:.3f}), so it is of different pictures. Leave one of them out; a row trained anew "
            "belongs to another seed."
        )
    return before, [
        f"The frozen base's pictures of {first.subject} at seed {first.seed} are not quite the same in "
        f"{path} and {other_path} (scores differ by up to {differ:.3f}), as on different machines. Those of "
        f"{path} are shown; the drift of each row is from the base's pictures beside it."
    ]


def _largest_difference(first: Cell, second: Cell) -> float | None:
    """Between the scores both have; None where they have not as many steps or pictures.

    A share of copies is left out: it jumps where the score it is made from moves by nothing.
    """
    if first.num_steps != second.num_steps:
        return None
    found = 0.0
    for key in first.scores.keys() & second.scores.keys():
        one, other = first.scores[key], second.scores[key]
        if [len(row) for row in one] != [len(row) for row in other]:
            return None
        if not key.startswith("copy_share/"):
            found = max(found, _distance(one, other))
    return found


def _distance(one: Table, other: Table) -> float:
    """The largest difference of values at one place; infinite where only one has a number."""
    pairs = [pair for rows in zip(one, other, strict=True) for pair in zip(*rows, strict=True)]
    return max(
        (
            (0.0 if a is b else float("inf")) if a is None or b is None else abs(a - b)
            for a, b in pairs
        ),
        default=0.0,
    )


def _check_noise(cells: Iterable[Made]) -> None:
    """Raise `ArtifactError` where two rows' pictures of one place start from different noise."""
    known: dict[tuple[str, int, int, int], tuple[int, Path, str]] = {}
    for path, cell in cells:
        for prompt, seeds in enumerate(cell.noise_seeds):
            for index, seed in enumerate(seeds):
                place = (cell.subject, cell.seed, prompt, index)
                other, before, row = known.setdefault(place, (seed, path, cell.row))
                if other != seed:
                    raise ArtifactError(
                        f"{before} and {path} cannot be joined: the pictures of {row} and {cell.row} on "
                        f"{cell.subject} start from different noise, so they cannot be compared picture by "
                        "picture. Make them with the same seed of noise (`seed` of a comparison)."
                    )
