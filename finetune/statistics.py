"""Means of scores with intervals, and paired differences, on tables with holes (see `tables`).

Subjects and prompts are a sample of those one would use, and every picture of a subject, or of a prompt,
shares what is special about it. So the model is that of crossed random effects,

    value = mean + subject + prompt + (subject × prompt) + picture,

and the variance of the mean comes from mean squares by the method of moments (Searle, Casella & McCulloch
1992, *Variance Components*, §4.3-4.4). An effect that an F test does not see even at the 25 % level is pooled
with what is left over (Bancroft & Han 1983, *Biometrics* 39): that narrows intervals and costs hardly any
coverage. Degrees of freedom follow Satterthwaite (1946); the quantile is Student's. On a table without holes
all this is the textbook's analysis of variance; holes are treated so that the variance errs upwards.

A nested percentile bootstrap over subjects, prompts and pictures, the other way to do it, misses the truth
twice as often as it says with as few subjects and prompts as one has, and where only pictures vary its
intervals are half too wide: `benchmarks/coverage.py` shows both.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import special

from finetune.tables import FEWEST, Design, Table, design_of, means, paired

POOLING_LEVEL = 0.25
"""Level of the F test below which an effect counts as none."""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, and what it speaks of."""

    mean: float | None
    """None where there is no value at all."""
    low: float | None
    """None where there is no interval; `reason` says why."""
    high: float | None
    level: float
    standard_error: float | None
    degrees_of_freedom: float | None
    num_values: int
    speaks_of: str
    """What the interval holds for: "subjects like these 8 and prompts like these 12"."""
    reason: str | None = None

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies above or below zero, else 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; no NaN, no infinity."""
        return asdict(self)


@dataclass(frozen=True)
class MeanSquare:
    """A mean square on the scale of the mean: the mean's variance, were this effect the only one."""

    value: float
    freedom: int


def row_square(design: Design) -> MeanSquare:
    """Of rows around their block's mean."""
    row_means, blocks = means(design.cells, 1), design.blocks
    around = row_means - (np.bincount(blocks, row_means) / np.bincount(blocks))[blocks]
    per_row = float((around**2).sum()) / max(design.rows_freedom, 1)
    return MeanSquare(per_row * float((design.row_weights**2).sum()), design.rows_freedom)


def prompt_square(design: Design) -> MeanSquare:
    """Of prompts around the mean, blocks' means taken away."""
    row_means, blocks, count = means(design.cells, 1), design.blocks, design.cells.shape[1]
    block_means = np.bincount(blocks, row_means) / np.bincount(blocks)
    centred = np.nan_to_num(design.cells - block_means[blocks][:, None])
    totals = (design.weights * centred).sum(0)
    return MeanSquare(float((totals**2).sum()) * count / max(count - 1, 1), count - 1)


def cell_square(design: Design) -> MeanSquare:
    """Of what rows and (each block's) prompts, added, leave unexplained: interaction and pictures."""
    row, prompt = np.nonzero(~np.isnan(design.cells))
    num_rows, num_prompts = design.cells.shape
    blocks = design.blocks
    effects = np.zeros((len(row), num_rows + (int(blocks.max()) + 1) * num_prompts))
    effects[np.arange(len(row)), row] = 1
    effects[np.arange(len(row)), num_rows + blocks[row] * num_prompts + prompt] = 1
    values = design.cells[row, prompt] - design.mean
    fit, _, rank, _ = np.linalg.lstsq(effects, values, rcond=None)
    freedom = len(row) - int(rank)
    per_cell = float(((values - effects @ fit) ** 2).sum()) / max(freedom, 1)
    return MeanSquare(per_cell * float((design.weights**2).sum()), freedom)


def is_seen(effect: MeanSquare, rest: MeanSquare) -> bool:
    """Whether an effect stands out at `POOLING_LEVEL`; it does where nothing is left to tell by."""
    if rest.freedom == 0:
        return True
    bound = special.fdtri(effect.freedom, rest.freedom, 1 - POOLING_LEVEL)
    return bool(effect.value > rest.value * bound)


def _crossed(rows: MeanSquare, prompts: MeanSquare, rest: MeanSquare) -> tuple[float, float]:
    """Variance of the mean, and Satterthwaite's freedom, where rows and prompts both vary.

    Both mean squares hold what is left over, so their sum holds it once too often.
    """
    seen = [square for square in (rows, prompts) if is_seen(square, rest)]
    pool = [square for square in (rows, prompts) if square not in seen] + [rest]
    freedom = sum(square.freedom for square in pool)
    left = MeanSquare(sum(s.value * s.freedom for s in pool) / max(freedom, 1), freedom)
    if len(seen) == 1:
        return seen[0].value, seen[0].freedom
    if not seen:
        return left.value, left.freedom
    variance = max(rows.value + prompts.value - left.value, 0.0)
    terms = [square for square in (rows, prompts, left) if square.freedom]
    spread = sum(square.value**2 / square.freedom for square in terms)
    return variance, variance**2 / spread if spread else sum(square.freedom for square in terms)


def mean_variance(design: Design) -> tuple[float, float] | None:
    """Variance of the mean and its degrees of freedom; None where nothing is repeated."""
    if design.rows_vary and design.prompts_vary:
        return _crossed(row_square(design), prompt_square(design), cell_square(design))
    if design.rows_vary or design.prompts_vary:
        square = row_square(design) if design.rows_vary else prompt_square(design)
        return square.value, square.freedom
    if not design.picture_freedom:
        return None
    held = design.pictures > 0
    share = float((design.weights[held] ** 2 / design.pictures[held]).sum())
    return design.picture_variance * share, design.picture_freedom


def interval(values: Table, *, level: float = 0.95) -> Interval:
    """The mean of a table and its interval: Student's, see the module.

    The mean counts every subject alike, within it every training seed, within that every prompt, within
    that every picture. Subjects count as a sample of others from three on, and so do prompts; with fewer
    subjects, training seeds do if together they are repeated twice. What does not is held fixed, and
    `speaks_of` says so. Where nothing varies but pictures, their scatter within prompts gives the interval.
    """
    design = design_of(values)
    if design is None:
        nothing = "There is no value to speak of."
        return Interval(None, None, None, level, None, None, 0, "nothing", nothing)
    num_values = int((~np.isnan(values)).sum())
    mean, found = design.mean, mean_variance(design)
    if found is None:
        reason = "Nothing is repeated: two pictures per prompt, or three prompts, give an interval."
        speaks_of = design.speaks_of()
        return Interval(mean, None, None, level, None, None, num_values, speaks_of, reason)
    error, freedom = float(np.sqrt(found[0])), float(found[1])
    half = float(special.stdtrit(freedom, (1 + level) / 2)) * error
    return Interval(
        mean, mean - half, mean + half, level, error, freedom, num_values, design.speaks_of()
    )


def difference(first: Table, second: Table, *, level: float = 0.95) -> Interval:
    """The mean paired difference `first` - `second` and its interval."""
    return interval(paired(first, second), level=level)


def overlapping(values: Table, *, level: float = 0.95) -> Interval:
    """The mean of photos' similarities with each other, [subject, 1, 1, photo], and its interval.

    Each value shares photos with the others of its subject, so their scatter is no error of the mean; only
    from three subjects on there is an interval, from theirs.
    """
    found = interval(values, level=level)
    if found.mean is None or int((~np.isnan(values)).any((1, 2, 3)).sum()) >= FEWEST:
        return found
    return replace(
        found,
        low=None,
        high=None,
        standard_error=None,
        degrees_of_freedom=None,
        speaks_of="these photos",
        reason="Each photo is in several pairs, so an interval needs three subjects.",
    )
