"""Sentences of the verdict: who leads by how much, and what cannot be told."""

from __future__ import annotations

import re
from collections.abc import Sequence

from finetune.differences import Standing
from finetune.scores import score_info
from finetune.statistics import Interval
from finetune.wording import decimal, listing


def quoted(row: str) -> str:
    """A row's name as it stands in a sentence: in quotes unless it is one word."""
    return row if re.fullmatch(r"[\w.-]+", row) else f"“{row}”"


def amount(found: Interval, *, sign: int = 1) -> str:
    """ "0.050 (0.020 to 0.080)", of the mean times `sign`."""
    assert found.mean is not None
    if found.low is None or found.high is None:
        return f"{decimal(sign * found.mean)} (no interval)"
    low, high = sorted((sign * found.low, sign * found.high))
    return f"{decimal(sign * found.mean)} ({decimal(low)} to {decimal(high)})"


def lead(standing: Standing, did: str, scope: str) -> str:
    """What the best row did, and by how much more than the next; `scope` is what that is limited to."""
    best, second = standing.ranked[:2]
    way = "above" if standing.sign > 0 else "below"
    gap = amount(standing.against[second].interval, sign=standing.sign)
    here = f" here ({scope})" if scope else ""
    return (
        f"{quoted(best)} {did}{here}: {score_info(standing.key).title.lower()} "
        f"{decimal(standing.means[best])}, {gap} {way} {quoted(second)}, the next"
        f"{where(standing, second)}"
    )


def where(standing: Standing, row: str) -> str:
    """Says so where the best and another row are not compared on all that either made."""
    shared = standing.against[row].interval.num_values
    counts = (standing.num_values[standing.ranked[0]], standing.num_values[row])
    return "" if counts == (shared, shared) else ", on the pictures that both have"


def draw(standing: Standing, did: str, besides: str) -> str:
    """The best row, those that may be as good, what would settle it, and who is clearly behind."""
    best, second = standing.ranked[0], standing.tied[0]
    nearest, title = standing.against[second], score_info(standing.key).title.lower()

    def named(rows: Sequence[str]) -> str:
        return listing([f"{quoted(row)} ({decimal(standing.means[row])})" for row in rows])

    text = f"Which row {did} cannot be told: "
    if nearest.interval.mean is None:
        text += f"{named((best, second))} share no pictures to compare {title} on"
    elif not nearest.interval.mean and not nearest.interval.standard_error:
        text += f"{named((best, second))} are equal in {title}"
    else:
        ahead = standing.sign * nearest.interval.mean
        if ahead < 0:  # its own mean is better, where the other has no pictures
            text += f"of {named((best, second))}, {quoted(second)} has the better {title}"
        elif standing.sign > 0:
            text += f"{named([best])} is ahead of {named([second])} in {title}"
        else:
            text += f"{named([best])} has less {title} than {named([second])}"
        sign = standing.sign if ahead >= 0 else -standing.sign
        text += f", by {amount(nearest.interval, sign=sign)}{where(standing, second)}"
    if standing.tied[1:]:
        text += f"; {named(standing.tied[1:])} may be as good"
    behind = [row for row in standing.ranked[1:] if row not in standing.tied]
    if behind:
        text += f"; {named(behind)} {'is' if len(behind) == 1 else 'are'} clearly behind"
    needed = nearest.needed if nearest.interval.mean else None
    return f"{text}{besides}. {needed}" if needed else f"{text}{besides}."
