"""Ctrl-C and SIGTERM: a first one asks a loop to end in good order, a second one ends at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def exit_code(number: int) -> int:
    """What a program that a signal ended exits with: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """A context in which `handler` gets the signals; without effect outside the main thread."""
    try:
        previous = {number: signal.signal(number, handler) for number in SIGNALS}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


@contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
    """Yields a function that gives the number of the signal that has come, or 0."""
    asked = 0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = number
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nStopping after this step. Once more ends at once.\n")

    with _handled(ask):
        yield lambda: asked


@contextmanager
def orderly_exit() -> Iterator[None]:
    """A context in which both signals unwind the program, so that no half-written file is left."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(exit_code(number))

    with _handled(leave):
        yield
