"""Tables of one score: their axes, their holes, and what of them counts as a sample of more like it.

A *table* is an array [subject, seed, prompt, picture] of one score, NaN where a value is missing. One column
of the prompt axis is one prompt template: a subject that was not asked it has NaN there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.wording import plural

Table = NDArray[np.float64]
"""[subject, seed, prompt, picture], NaN for holes."""

FEWEST = 3
"""From so many on, subjects, prompts or training runs count as a sample of others like them."""


def check_table(table: Table) -> Table:
    """`table` as float64. Raises `ValueError` unless it has four axes and no infinite value."""
    values = np.asarray(table, np.float64)
    if values.ndim != 4:
        raise ValueError(f"a table is [subject, seed, prompt, picture], not {values.shape}")
    if np.isinf(values).any():
        raise ValueError("a table holds an infinite value")
    return values


def means(values: Table, axis: int) -> Table:
    """Means along `axis` of what is there; NaN where nothing is."""
    held = ~np.isnan(values)
    total, count = np.where(held, values, 0.0).sum(axis), held.sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def alike(first: Table, second: Table) -> tuple[Table, Table]:
    """Both tables at one shape; shorter axes are filled with NaN."""
    first, second = check_table(first), check_table(second)
    shape = np.maximum(first.shape, second.shape)

    def filled(table: Table) -> Table:
        pads = [(0, int(wanted - had)) for wanted, had in zip(shape, table.shape, strict=True)]
        return np.pad(table, pads, constant_values=np.nan)

    return filled(first), filled(second)


def paired(first: Table, second: Table) -> Table:
    """`first` - `second` where both have a value, NaN elsewhere.

    Values of one place must have been made with the same noise.
    """
    first, second = alike(first, second)
    return first - second


def without_runs(table: Table) -> Table:
    """The pictures of all seeds as those of one, [subject, 1, prompt, seed x picture].

    So a row is read that was not trained here: another seed of its is other noise and no other training run.
    """
    num_subjects, num_seeds, num_prompts, num_pictures = table.shape
    shape = (num_subjects, 1, num_prompts, num_seeds * num_pictures)
    return table.transpose(0, 2, 1, 3).reshape(shape)


def of_subjects(table: Table, held: Table) -> Table:
    """`table` without the subjects of which `held` holds nothing."""
    there = ~np.isnan(held).all((1, 2, 3), keepdims=True)
    return np.where(there, table, np.nan)


@dataclass(frozen=True)
class Design:
    """A table as means per cell, and what of it counts as a sample.

    Rows are subjects where there are enough of them, else training runs in blocks, one per subject.
    """

    cells: Table
    """[row, prompt]; every row and every prompt holds a value."""
    blocks: NDArray[np.intp]
    """Of each row; all 0 where rows are subjects."""
    rows_are_subjects: bool
    num_subjects: int
    runs_per_row: float
    """Training runs that a row is the mean of; 1 where rows are runs."""
    pictures: NDArray[np.float64]
    """[row, prompt]: how many independent pictures a cell is worth; 0 for a hole."""
    picture_variance: float
    """Within one run and prompt; 0 where no two pictures share one."""
    picture_freedom: int

    @property
    def rows_freedom(self) -> int:
        """Rows minus blocks."""
        return len(self.cells) - int(self.blocks.max()) - 1

    @property
    def rows_vary(self) -> bool:
        """Whether rows are a sample."""
        return self.rows_freedom >= FEWEST - 1

    @property
    def prompts_vary(self) -> bool:
        """Whether prompts are a sample."""
        return self.cells.shape[1] >= FEWEST

    @property
    def row_weights(self) -> NDArray[np.float64]:
        """[row], sum 1: every block alike, within it every row."""
        return 1 / (np.bincount(self.blocks)[self.blocks] * (self.blocks.max() + 1.0))

    @property
    def weights(self) -> Table:
        """[row, prompt], sum 1: every row as `row_weights`, within it every prompt alike."""
        held = ~np.isnan(self.cells)
        return held * (self.row_weights / held.sum(1))[:, None]

    @property
    def mean(self) -> float:
        """The weighted mean of the cells."""
        return float(np.nansum(self.weights * self.cells))

    def speaks_of(self) -> str:
        """What varies is spoken of in general, what does not as it is."""
        num_rows, num_prompts = self.cells.shape
        subjects = _named("subject", self.num_subjects, like=self.rows_are_subjects)
        prompts = _named("prompt", num_prompts, like=self.prompts_vary)
        if self.rows_are_subjects:
            return f"{subjects} and {prompts}"
        if not self.rows_vary:
            return f"{subjects} as trained here and {prompts}"
        return f"{subjects}, {_named('training run', num_rows, like=True)} and {prompts}"

    @property
    def seeds_needed(self) -> int:
        """Training seeds that each subject needs for training runs to be a sample; 0 where rows are one."""
        return 0 if self.rows_vary else -(-(FEWEST - 1) // self.num_subjects) + 1

    def scope(self) -> str:
        """What a conclusion is limited to where training itself does not vary; else nothing."""
        if self.rows_vary:
            return ""
        return f"{plural(self.num_subjects, 'subject')}, {plural(len(self.cells), 'training run')}"


def _named(noun: str, count: int, *, like: bool) -> str:
    if like:
        return f"{noun}s like these {count}"
    return f"this {noun}" if count == 1 else f"these {count} {noun}s"


def design_of(table: Table) -> Design | None:
    """Cells, weights and samples of a table; None where it holds no value."""
    values = check_table(table)
    present = ~np.isnan(values)
    if not present.any():
        return None
    values = values[present.any((1, 2, 3))][:, :, present.any((0, 1, 3))]
    counts = (~np.isnan(values)).sum(3)  # [subject, seed, prompt]
    runs = means(values, 3)
    freedom = int(np.maximum(counts - 1, 0).sum())
    squares = float(np.nansum((values - runs[..., None]) ** 2))
    num_subjects, held = len(values), counts > 0
    if num_subjects >= FEWEST:
        cells, blocks = means(runs, 1), np.zeros(num_subjects, np.intp)
        # A mean of k runs of n_i pictures has the variance σ² Σ 1/n_i / k².
        inverse = np.where(held, 1 / np.maximum(counts, 1), 0.0).sum(1)
        pictures = held.sum(1) ** 2 / np.where(inverse > 0, inverse, 1.0)
        runs_per_row = float(held.any(2).sum(1).mean())
    else:
        trained = held.any(2)
        cells, blocks = runs[trained], np.nonzero(trained)[0]
        pictures, runs_per_row = counts[trained].astype(np.float64), 1.0
    return Design(
        cells,
        blocks,
        num_subjects >= FEWEST,
        num_subjects,
        runs_per_row,
        pictures,
        squares / freedom if freedom else 0.0,
        freedom,
    )
