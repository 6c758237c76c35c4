"""Signals: the first one asks, the second one ends, and handlers are as they were afterwards."""

from __future__ import annotations

import os
import signal

import pytest

from finetune.interrupt import exit_code, interruptible, orderly_exit


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends(number: int) -> None:
    before = signal.getsignal(number)
    with interruptible() as interrupted:
        assert interrupted() == 0
        os.kill(os.getpid(), number)
        assert interrupted() == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_outside_the_loop_a_signal_unwinds_with_its_exit_code() -> None:
    with orderly_exit(), pytest.raises(SystemExit) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 143 == exit_code(signal.SIGTERM)
    assert exit_code(signal.SIGINT) == 130
