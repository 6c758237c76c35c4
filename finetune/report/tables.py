"""What the tables of figures hold: scores, differences, costs, failures, all of them the results' own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from finetune.report.charts import curve_keys
from finetune.report.numbers import ARROWS, Whisker, count, interval, seconds, size, whiskers
from finetune.results import (
    REFERENCE_ROWS,
    Cell,
    Difference,
    Estimate,
    Results,
    Row,
    ScoreInfo,
    Trial,
)
from finetune.wording import NOTHING, decimal


@dataclass(frozen=True)
class Figure:
    """A number with its interval, written and drawn."""

    mean: str
    interval: str
    whisker: Whisker | None
    note: int | None = None
    """Number of the remark below the table."""


@dataclass(frozen=True)
class ScoreTable:
    """Rows against scores."""

    scores: tuple[ScoreInfo, ...]
    lines: tuple[tuple[str, bool, tuple[Figure, ...]], ...]
    """Name, whether it is a reference row, a figure per score."""
    notes: tuple[str, ...]
    speaks_of: tuple[str, ...]
    """What the intervals generalise to."""


@dataclass(frozen=True)
class Pair:
    """Row against row in one score."""

    row: str
    other: str
    figure: Figure
    conclusion: str
    certain: bool
    needed: str | None


@dataclass(frozen=True)
class Cost:
    """What a row took; means over its finished cells, the peak of memory over all of them."""

    row: str
    num_cells: int
    steps: str
    kept: str
    """Steps whose weights made the pictures, where those are not the last ones."""
    train: str
    per_picture: str
    memory: str
    artifact: str
    trainable: str


@dataclass(frozen=True)
class Trials:
    """A row's tries at its settings."""

    row: str
    scores: tuple[str, ...]
    """Heads of the columns."""
    lines: tuple[tuple[str, tuple[str, ...], str, bool], ...]
    """Settings, a number per score, what became of it, whether it was chosen."""
    chosen: bool
    """Whether any was."""


ALL = "all"
"""Subject and seed of a row that failed as a whole."""


@dataclass(frozen=True)
class Failure:
    """What is not in the numbers, and why."""

    row: str
    subject: str
    seed: str
    error: str


_NO_ESTIMATE = Estimate()


def score_table(results: Results, scores: Sequence[ScoreInfo]) -> ScoreTable | None:
    """The table of `scores` that any row has; None if there is none."""
    found = {(summary.row, summary.score): summary.estimate for summary in results.summaries}
    measured = [score for score in scores if any(key == score.key for _, key in found)]
    if not measured:
        return None
    notes: dict[str, int] = {}
    columns = []
    for score in measured:
        estimates = [found.get((row.name, score.key), _NO_ESTIMATE) for row in results.rows]
        columns.append(_figures(estimates, notes))
    lines = tuple(
        (row.name, row.name in REFERENCE_ROWS, tuple(column[number] for column in columns))
        for number, row in enumerate(results.rows)
    )
    spoken = dict.fromkeys(
        estimate.speaks_of
        for (_, key), estimate in found.items()
        if estimate.speaks_of
        and estimate.low is not None
        and any(score.key == key for score in measured)
    )
    return ScoreTable(tuple(measured), lines, tuple(notes), tuple(spoken))


def _figures(
    estimates: list[Estimate], notes: dict[str, int], *, signed: bool = False
) -> list[Figure]:
    """Estimates on one scale; remarks are added to `notes` and numbered."""
    figures = []
    for estimate, whisker in zip(estimates, whiskers(estimates, with_zero=signed), strict=True):
        note = None
        if estimate.remark:
            note = notes.setdefault(estimate.remark, len(notes) + 1)
        figures.append(
            Figure(
                decimal(estimate.mean, signed=signed),
                interval(estimate, signed=signed),
                whisker,
                note,
            )
        )
    return figures


def difference_tables(results: Results) -> list[tuple[ScoreInfo, list[Pair], tuple[str, ...]]]:
    """For each score its pairs of rows and the remarks below them."""
    tables = []
    for score in results.scores:
        pairs = [difference for difference in results.differences if difference.score == score.key]
        if not pairs:
            continue
        notes: dict[str, int] = {}
        figures = _figures([pair.estimate for pair in pairs], notes, signed=True)
        rows = [
            Pair(
                pair.row,
                pair.other,
                figure,
                conclusion(pair, score),
                pair.conclusion != "cannot tell",
                pair.needed,
            )
            for pair, figure in zip(pairs, figures, strict=True)
        ]
        tables.append((score, rows, tuple(notes)))
    return tables


def conclusion(pair: Difference, score: ScoreInfo) -> str:
    """Which of two rows is better in a score, or higher where no direction is better."""
    if pair.conclusion == "cannot tell":
        return "cannot tell"
    if score.better == "neither":
        return f"{pair.row if pair.conclusion == 'higher' else pair.other} is higher"
    return f"{pair.row if pair.conclusion == score.better else pair.other} is better"


def _mean(values: Iterable[float | int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _each(values: Iterable[int | None]) -> str:
    """A whole number that cells agree on, or from least to largest."""
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    low, high = min(known), max(known)
    return count(low) if low == high else f"{count(low)} to {count(high)}"


def costs(results: Results) -> list[Cost]:
    """The costs of every row that has pictures of its own."""
    found = []
    for row in results.rows:
        cells = [cell for cell in results.cells_of(row.name) if cell.status == "finished"]
        if cells and (row.kind != "reference" or any(cell.noise_seeds for cell in cells)):
            found.append(_cost(row.name, cells))
    return found


def _cost(name: str, cells: Sequence[Cell]) -> Cost:
    memory = [cell.costs.peak_memory_bytes for cell in cells if cell.costs.peak_memory_bytes]
    artifact = _mean(cell.artifact_bytes for cell in cells)
    return Cost(
        row=name,
        num_cells=len(cells),
        steps=_each(cell.num_steps for cell in cells),
        kept=_each(cell.kept_step for cell in cells),
        train=seconds(_mean(cell.costs.train_seconds for cell in cells)),
        per_picture=seconds(_mean(cell.costs.picture_seconds for cell in cells)),
        memory=size(max(memory, default=None)),
        artifact=size(None if artifact is None else round(artifact)),
        trainable=_each(cell.num_trainable for cell in cells),
    )


def trials(results: Results) -> list[Trials]:
    """The trials of every row that was tuned."""
    return [_trials(results, row) for row in results.rows if row.trials]


def _trials(results: Results, row: Row) -> Trials:
    scores = curve_keys(results, (key for trial in row.trials for key in trial.scores))
    lines = []
    for number, trial in enumerate(row.trials):
        settings = ", ".join(
            f"{name.rpartition('.')[2]} {value:g}" for name, value in trial.settings.items()
        )
        numbers = tuple(decimal(trial.scores.get(key)) for key, _, _ in scores)
        chosen = number == row.chosen_trial
        lines.append((settings, numbers, _outcome(trial, chosen=chosen), chosen))
    heads = tuple(
        f"{score.title} {ARROWS[score.better]}{f', by {encoder}' if encoder else ''}"
        for _, score, encoder in scores
    )
    return Trials(row.name, heads, tuple(lines), row.chosen_trial is not None)


def _outcome(trial: Trial, *, chosen: bool) -> str:
    if trial.status == "failed":
        return f"failed: {trial.error}"
    if trial.allowed is False:
        return "chosen, though outside the limits" if chosen else "outside the limits"
    return "chosen" if chosen else ""


def failures(results: Results) -> list[Failure]:
    """Rows and cells that failed."""
    rows = [Failure(row.name, ALL, ALL, row.error) for row in results.rows if row.error is not None]
    cells = [
        Failure(cell.row, cell.subject, str(cell.seed), cell.error or "No reason was noted.")
        for cell in results.failed
    ]
    return rows + cells
