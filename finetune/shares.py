"""Intervals of shares, such as that of pictures that pass for copies, and of differences between two of them.

Values are zeros and ones, so what subjects (or prompts) differ by shows only in those that hold both. Where
few do, their scatter as seen says next to nothing of others': eight subjects of which one is copied once look
as alike as eight that are never copied. So a picture counts less, the fewer subjects say something: between
what the scatter seen makes it worth and one value per subject, by a weighted geometric mean. Where copies
are rare that errs upwards (`benchmarks/coverage.py`), while by the scatter seen alone one of four intervals
misses the truth.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import special

from finetune.statistics import Interval, interval
from finetune.tables import Table, design_of, paired


def told_by(rare: Table) -> tuple[float, float]:
    """How many subjects, training runs or prompts an interval speaks of others like, and what share says so.

    Args:
        rare: what is not 0 shows a difference; [subject, seed, prompt, picture].

    Returns:
        Their number (of the fewer, where subjects and prompts both vary) and the share of them that hold
        anything but 0. Where nothing but pictures varies: their number, and 1.
    """
    design = design_of(rare)
    assert design is not None
    shown = np.nan_to_num(design.cells) != 0
    axes = [axis for axis, varies in ((1, design.rows_vary), (0, design.prompts_vary)) if varies]
    if not axes:
        return float((~np.isnan(rare)).sum()), 1.0
    units = min((shown.any(axis) for axis in axes), key=len)
    return float(len(units)), float(units.mean())


def share_interval(values: Table, *, level: float = 0.95) -> Interval:
    """The share of ones in a table of zeros and ones, with an interval within 0 … 1.

    Clopper & Pearson's, for as many independent pictures as the variance of the share stands for (Korn &
    Graubard 1998, *Survey Methodology* 24), fewer where that variance is hardly seen (see the module).
    """
    plain = interval(values, level=level)
    if plain.mean is None or plain.standard_error is None or plain.degrees_of_freedom is None:
        return plain
    share, count, tail = plain.mean, float(plain.num_values), (1 - level) / 2
    units, seen = told_by(values if share <= 0.5 else 1 - values)
    if plain.standard_error > 0:
        quantiles = special.stdtrit([count - 1, plain.degrees_of_freedom], 1 - tail)
        worth = share * (1 - share) / plain.standard_error**2
        count = float(min(count, worth * (quantiles[0] / quantiles[1]) ** 2))
    count = count**seen * min(units, count) ** (1 - seen)
    ones = share * count
    low = float(special.betaincinv(ones, count - ones + 1, tail)) if share > 0 else 0.0
    high = float(special.betaincinv(ones + 1, count - ones, 1 - tail)) if share < 1 else 1.0
    return replace(plain, low=low, high=high)


def share_difference(first: Table, second: Table, *, level: float = 0.95) -> Interval:
    """The mean paired difference of two tables of zeros and ones, with an interval within -1 … 1.

    Student's, its variance widened where it is hardly seen (see the module). Where no pair differs, or all
    differ alike, as wide as the share of other pairs may be.
    """
    differences = paired(first, second)
    plain = interval(differences, level=level)
    if plain.mean is None or plain.standard_error is None or plain.degrees_of_freedom is None:
        return plain
    rare = np.abs(
        differences - round(plain.mean)
    )  # what most pairs do says nothing of their scatter
    (units, seen), tail = told_by(rare), (1 - level) / 2
    if not np.nanmax(rare):
        most = 1 - tail ** (1 / units)
        return replace(plain, low=max(plain.mean - most, -1.0), high=min(plain.mean + most, 1.0))
    found = plain.standard_error**2
    once = (float(np.nanmean(differences**2)) - plain.mean**2) / units
    error = float(np.sqrt(found**seen * max(once, found) ** (1 - seen)))
    half = float(special.stdtrit(plain.degrees_of_freedom, 1 - tail)) * error
    low, high = max(plain.mean - half, -1.0), min(plain.mean + half, 1.0)
    return replace(plain, low=low, high=high, standard_error=error)
