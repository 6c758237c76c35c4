"""Common words, which make poor identifiers because a base already means something by them."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def _common_words() -> frozenset[str]:
    path = Path(__file__).resolve().parent / "common_words.txt"
    return frozenset(path.read_text("utf-8").split())


def is_common_word(word: str) -> bool:
    """Whether `word` is an everyday English word."""
    return word.strip().lower() in _common_words()
