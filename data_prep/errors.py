"""What is raised when the user can mend something: one clear sentence each, shown without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The input, not the program, is at fault. The text says what, where and what to do."""


class DataError(UserError):
    """Photos, captions or a dataset cannot be used as given."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the nearest of `known`, or the empty string."""
    nearest = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{nearest[0]}'?" if nearest else ""
