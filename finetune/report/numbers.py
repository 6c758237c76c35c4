"""What a page shows of numbers: intervals and their drawings, durations, sizes, counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from finetune.files import in_words
from finetune.results import Better, Estimate
from finetune.wording import NOTHING, decimal

ARROWS: Final[dict[Better, str]] = {"higher": "↑", "lower": "↓", "neither": ""}
DIRECTIONS: Final[dict[Better, str]] = {
    "higher": "higher is better",
    "lower": "lower is better",
    "neither": "neither direction is better",
}


@dataclass(frozen=True)
class Whisker:
    """An interval as a small drawing, in percent of its width."""

    low: float
    mean: float
    high: float
    zero: float | None = None
    """Where zero is, if it is within."""


def interval(estimate: Estimate, *, signed: bool = False) -> str:
    """Both ends of an interval, or nothing where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{decimal(estimate.low, signed=signed)} to {decimal(estimate.high, signed=signed)}"


def seconds(value: float | None) -> str:
    """A duration: "0.42 s", "38 s", "12 min 5 s", "3 h 20 min"."""
    if value is None:
        return NOTHING
    if value < 9.95:
        return f"{value:.2g} s" if value < 0.095 else f"{value:.2f} s"
    whole = round(value)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(num_bytes: int | None) -> str:
    """Bytes in units; a dash for None."""
    return NOTHING if num_bytes is None else in_words(num_bytes)


def count(value: int | None) -> str:
    """A whole number with its thousands apart."""
    return NOTHING if value is None else f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def whiskers(estimates: list[Estimate], *, with_zero: bool = False) -> list[Whisker | None]:
    """Intervals drawn on one scale, from the least end to the largest.

    Args:
        estimates: those without a mean give None.
        with_zero: let the scale hold zero in its middle, for differences.
    """
    ends = [
        end
        for e in estimates
        for end in (e.low, e.mean, e.high)
        if e.mean is not None and end is not None
    ]
    if not ends:
        return [None] * len(estimates)
    low, high = min(ends), max(ends)
    if with_zero:
        high = max(abs(low), abs(high))
        low = -high
    width = (high - low) or 1.0

    def percent(value: float) -> float:
        return round(3 + 94 * (value - low) / width, 2)

    zero = percent(0.0) if with_zero else None
    return [
        None
        if e.mean is None
        else Whisker(
            percent(e.mean if e.low is None else e.low),
            percent(e.mean),
            percent(e.mean if e.high is None else e.high),
            zero,
        )
        for e in estimates
    ]
