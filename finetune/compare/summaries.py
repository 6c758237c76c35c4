"""From the tables in results to means, differences, curves and the verdict.

A pure function of what results.json holds, so that merged results are summed up in the very same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from finetune import statistics
from finetune.checkpoint_rule import Limits, Point, Scale, overfits_from, recommended
from finetune.differences import pair_differences, summarise, within_bounds
from finetune.results import (
    FROZEN_BASE,
    REAL_PHOTOS,
    Cell,
    CurveSummary,
    Difference,
    Estimate,
    Finding,
    Results,
    Row,
    ScoreInfo,
    Summary,
)
from finetune.tables import Table, without_runs
from finetune.verdict import References, verdict

_RULED = ("subject_fidelity", "prompt_fidelity", "drift", "copy_share")
"""Scores that the checkpoint rule is about."""


def completed(results: Results) -> Results:
    """`results` with summaries, differences, curves and verdict made from its cells."""
    tables = {
        row.name: {
            score.key: table
            for score in results.scores
            if (table := table_of(results, row.name, score)) is not None
        }
        for row in results.rows
    }
    compared = [row.name for row in results.rows if row.kind != "reference"]
    shown = {row.name for row in results.rows if row.kind != "method"}
    keys = [score.key for score in results.scores]
    found = verdict(
        {name: tables[name] for name in compared},
        compared,
        shown=shown,
        headline={score.id: score.key for score in results.scores if score.headline},
        references=References(
            frozen_base=tables.get(FROZEN_BASE, {}), real_photos=tables.get(REAL_PHOTOS, {})
        ),
    )
    differences = [
        Difference(
            score=pair.score,
            row=pair.row,
            other=pair.other,
            estimate=_estimate(pair.interval),
            conclusion=pair.conclusion,
            needed=pair.needed,
        )
        for pair in pair_differences(tables, compared, keys, shown=shown)
    ]
    curves = [curve for row in results.rows if (curve := curve_of(results, row)) is not None]
    changes = {
        "summaries": [
            Summary(
                row=row, score=key, estimate=_summary(row, key, table, is_shown=row in shown)
            ).model_dump()
            for row, by_score in tables.items()
            for key, table in by_score.items()
        ],
        "differences": [difference.model_dump() for difference in differences],
        "curves": [curve.model_dump() for curve in curves],
        "verdict": [
            Finding(
                question=f.question, score=f.score, text=f.text, leaders=f.leaders, scope=f.scope
            ).model_dump()
            for f in found.findings
        ],
        "remarks": [*results.remarks, *found.remarks],
    }
    # Validated, so that every number is rounded as it is in the file.
    return Results.model_validate({**results.model_dump(), **changes})


def _summary(row: str, key: str, table: Table, *, is_shown: bool) -> Estimate:
    if row == REAL_PHOTOS:
        return _estimate(summarise(key, table, real_photos=True))
    return _estimate(summarise(key, without_runs(table) if is_shown else table))


def table_of(results: Results, row: str, score: ScoreInfo) -> Table | None:
    """A row's values of a score, [subject, seed, prompt, picture] with NaN for holes; None without any.

    The prompts are all templates of the score's roles, in the order of the subjects; photos of the row of
    real photos stand under a single prompt.
    """
    cells = [cell for cell in results.cells_of(row) if cell.scores.get(score.key)]
    if not cells:
        return None
    subjects = {subject.name: place for place, subject in enumerate(results.subjects)}
    seeds = {seed: place for place, seed in enumerate(results.seeds)}
    columns = _columns(results, score) if row != REAL_PHOTOS else {}
    longest = max(len(values) for cell in cells for values in cell.scores[score.key])
    shape = (len(subjects), len(seeds), max(1, len(columns)), longest)
    table: Table = np.full(shape, np.nan)
    for cell in cells:
        for column, values in _placed(results, cell, score, columns):
            numbers = [np.nan if value is None else value for value in values]
            table[subjects[cell.subject], seeds[cell.seed], column, : len(numbers)] = numbers
    return None if np.isnan(table).all() else table


def _columns(results: Results, score: ScoreInfo) -> dict[str, int]:
    templates = dict.fromkeys(
        prompt.template
        for subject in results.subjects
        for prompt in subject.prompts
        if prompt.role in score.roles
    )
    return {template: place for place, template in enumerate(templates)}


def _placed(
    results: Results, cell: Cell, score: ScoreInfo, columns: Mapping[str, int]
) -> list[tuple[int, Sequence[float | None]]]:
    """Rows of a cell's table with the column of each."""
    rows = cell.scores[score.key]
    if not columns:
        return [(0, rows[0])]
    subject = next(subject for subject in results.subjects if subject.name == cell.subject)
    return [
        (columns[prompt.template], values)
        for prompt, values in zip(subject.prompts, rows, strict=True)
        if prompt.template in columns and values
    ]


def _estimate(found: statistics.Interval) -> Estimate:
    return Estimate(
        mean=found.mean,
        low=found.low,
        high=found.high,
        num_values=found.num_values,
        speaks_of=found.speaks_of,
        remark=found.reason,
    )


def curve_of(results: Results, row: Row) -> CurveSummary | None:
    """A row's learning curve over its cells, at the steps at which all of them were looked at.

    Beyond, where some have ended, a mean would be of those that were still going on. None without such steps.
    """
    cells = [cell for cell in results.cells_of(row.name) if cell.curve]
    if not cells or results.rule is None:
        return None
    steps = sorted(set.intersection(*map(_scored_steps, cells)))
    if not steps:
        return None
    keys = list(dict.fromkeys(key for cell in cells for p in cell.curve for key in p.scores))
    estimates = {key: tuple(_at_step(results, cells, key, step) for step in steps) for key in keys}
    limits = Limits.model_validate(results.rule.limits)
    scale = Scale(
        prompt_fidelity=_mean_of(cell.curve_scale["prompt_fidelity"] for cell in cells),
        noise=_mean_of(cell.curve_scale["noise"] for cell in cells),
    )
    by_id = {key.partition("/")[0]: key for key in keys}
    points = [
        Point(step, **{id: float(estimates[by_id[id]][place].mean or 0.0) for id in _RULED})
        for place, step in enumerate(steps)
    ]
    best = recommended(points, scale, limits)
    return CurveSummary(
        row=row.name,
        steps=tuple(steps),
        scores=estimates,
        limits={by_id[id]: limit for id, limit in scale.limits(limits).items()},
        recommended_step=None if best is None else best.step,
        overfits_from=overfits_from(points, scale, limits),
    )


def _scored_steps(cell: Cell) -> set[int]:
    """Steps at which a cell was looked at with a number in every score."""
    return {point.step for point in cell.curve if None not in point.scores.values()}


def _mean_of(values: object) -> float:
    return float(np.mean([value for value in values if value is not None]))  # type: ignore[attr-defined]


def _at_step(results: Results, cells: Sequence[Cell], key: str, step: int) -> Estimate:
    """The mean over cells of their means at a step."""
    subjects = [subject.name for subject in results.subjects]
    table = np.full((len(subjects), len(results.seeds), 1, 1), np.nan)
    for cell in cells:
        for point in cell.curve:
            value = point.scores.get(key)
            if point.step == step and value is not None:
                table[subjects.index(cell.subject), results.seeds.index(cell.seed)] = value
    return _estimate(within_bounds(key, statistics.interval(table)))
