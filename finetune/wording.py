"""Numbers, lists and plurals as they stand in sentences and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

NOTHING: Final = "–"
_MINUS: Final = "\N{MINUS SIGN}"


def decimal(value: float | None, *, signed: bool = False) -> str:
    """Three decimals with a true minus sign, never -0; a dash for None."""
    if value is None:
        return NOTHING
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    if float(text) == 0:
        text = "0.000"  # neither -0.000 nor +0.000
    return text.replace("-", _MINUS)


def listing(parts: Sequence[str], *, last: str = "and") -> str:
    """ "a", "a and b", "a, b and c"; `last` is the word before the last one."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def plural(number: int, noun: str) -> str:
    """ "1 subject", "3 subjects"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
