"""Rows of a comparison against each other: paired differences in every score, and what can be told."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from finetune.planning import settle
from finetune.scores import SCORES, score_info
from finetune.shares import share_difference, share_interval
from finetune.statistics import Interval, difference, interval, overlapping
from finetune.tables import Table, alike, paired, without_runs

Tables = Mapping[str, Mapping[str, Table]]
"""Row -> score key -> table. A row may lack scores, a table may have holes."""
Conclusion = Literal["higher", "lower", "cannot tell"]

CONCLUSIONS: Mapping[int, Conclusion] = {1: "higher", -1: "lower", 0: "cannot tell"}
LEVEL = 0.95
"""Of every interval, and of the intervals of all pairs of rows together."""
TOO_RARE = "They differ in too few subjects or prompts; more of these would settle it."


@dataclass(frozen=True)
class PairDifference:
    """`row` minus `other` in one score, paired by subject, training seed, prompt and noise."""

    score: str
    row: str
    other: str
    interval: Interval
    """Of the difference; those of all pairs of rows hold together with the chance `LEVEL` (Bonferroni)."""
    conclusion: Conclusion
    needed: str | None
    """What would settle it where it cannot be told, in a sentence."""


def summarise(key: str, table: Table, *, real_photos: bool = False) -> Interval:
    """A row's mean of one score with its interval.

    `real_photos`: the table is [subject, 1, 1, photo] of photos' similarities with the others.
    """
    if real_photos:
        return within_bounds(key, overlapping(table, level=LEVEL))
    if score_info(key).id == "copy_share":
        return share_interval(table, level=LEVEL)
    return within_bounds(key, interval(table, level=LEVEL))


def within_bounds(key: str, found: Interval) -> Interval:
    """A mean's interval, cut where its score ends: no drift is below 0, so that costs no coverage."""
    if found.low is None or found.high is None:
        return found
    least, most = score_info(key).bounds
    return replace(found, low=max(found.low, least), high=min(found.high, most))


def measured(tables: Tables, rows: Sequence[str], key: str) -> list[str]:
    """Those of `rows` that have any value of a score."""
    held = {row: tables.get(row, {}).get(key) for row in rows}
    return [row for row, table in held.items() if table is not None and not np.isnan(table).all()]


def score_keys(tables: Tables) -> list[str]:
    """Keys that any row holds, in the order of `SCORES`, within a score as they come."""
    found = dict.fromkeys(key for scores in tables.values() for key in scores)
    order = list(SCORES)
    return sorted(found, key=lambda key: order.index(score_info(key).id))


def pair_of(
    tables: Tables, key: str, row: str, other: str, *, shown: Collection[str] = ()
) -> tuple[Table, Table]:
    """Tables of two rows to be paired; `shown` are the rows that were not trained here.

    Where neither was, their seeds are noise and no training runs.
    """
    mine, theirs = alike(tables[row][key], tables[other][key])
    if row in shown and other in shown:
        return without_runs(mine), without_runs(theirs)
    return mine, theirs


def difference_of(
    tables: Tables,
    key: str,
    row: str,
    other: str,
    *,
    num_pairs: int,
    shown: Collection[str] = (),
) -> PairDifference:
    """`row` minus `other` in the score `key`, at the level that makes `num_pairs` hold together.

    `shown` as for `pair_of`.
    """
    level = 1 - (1 - LEVEL) / num_pairs
    mine, theirs = pair_of(tables, key, row, other, shown=shown)
    of_share = score_info(key).id == "copy_share"
    found = (share_difference if of_share else difference)(mine, theirs, level=level)
    needed = None
    if not found.sign:
        # Advice is from the scatter seen; where that settles it already, it is hardly seen.
        hardly_seen = of_share and difference(mine, theirs, level=level).sign != 0
        needed = TOO_RARE if hardly_seen else _needed(found, paired(mine, theirs), level)
    return PairDifference(key, row, other, found, CONCLUSIONS[found.sign], needed)


def _needed(found: Interval, differences: Table, level: float) -> str | None:
    if found.mean is None:
        return "They share no picture of one subject, prompt and noise."
    if not np.nanmax(np.abs(differences)):
        return "They are equal in every picture."
    advice = settle(differences, level=level)
    return found.reason if advice is None else advice.in_words()


def pair_differences(
    tables: Tables,
    rows: Sequence[str],
    keys: Sequence[str] | None = None,
    *,
    shown: Collection[str] = (),
) -> list[PairDifference]:
    """Every pair of `rows` in every score that both have values of; a score's pairs hold together.

    `keys` are all there are where not given; `shown` as for `pair_of`. The order is that of keys, then of
    rows.
    """
    found = []
    for key in score_keys(tables) if keys is None else keys:
        pairs = list(combinations(measured(tables, rows, key), 2))
        found += [
            difference_of(tables, key, row, other, num_pairs=len(pairs), shown=shown)
            for row, other in pairs
        ]
    return found


@dataclass(frozen=True)
class Standing:
    """Rows in one score, the best first, the others by their mean; and the best one's lead over each."""

    key: str
    ranked: tuple[str, ...]
    means: Mapping[str, float]
    num_values: Mapping[str, int]
    against: Mapping[str, PairDifference]
    """Other row -> best minus it."""

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if score_info(self.key).better == "higher" else -1

    @property
    def tied(self) -> list[str]:
        """Rows that the best one is not known to beat."""
        return [row for row in self.ranked[1:] if self.against[row].interval.sign != self.sign]


def stand(
    key: str, tables: Tables, rows: Sequence[str], *, shown: Collection[str] = ()
) -> Standing | None:
    """How `rows` stand in a score; None where none has a value. `shown` as for `pair_of`.

    The best has the best mean of those that no other is known to beat on the pictures that both have: a row
    that failed on the hardest subject does not win by that.
    """
    held = measured(tables, rows, key)
    if not held:
        return None
    sign = 1 if score_info(key).better == "higher" else -1
    found = {row: summarise(key, tables[row][key]) for row in held}
    means = {row: interval.mean or 0.0 for row, interval in found.items()}
    ranked = sorted(held, key=lambda row: (-sign * means[row], held.index(row)))
    num_pairs = max(len(held) * (len(held) - 1) // 2, 1)

    def over(row: str, other: str) -> PairDifference:
        return difference_of(tables, key, row, other, num_pairs=num_pairs, shown=shown)

    unbeaten = [
        row
        for row in ranked
        if all(over(row, other).interval.sign != -sign for other in ranked if other != row)
    ]
    best = (unbeaten or ranked)[0]
    ranked = [best, *(row for row in ranked if row != best)]
    return Standing(
        key,
        tuple(ranked),
        means,
        {row: interval.num_values for row, interval in found.items()},
        {row: over(best, row) for row in ranked[1:]},
    )
