"""Results in each test's own folder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from report_results import Wanted, results_in

from finetune.results import Results


@pytest.fixture
def make_results(tmp_path: Path) -> Callable[[Wanted], Results]:
    """A function that writes picture files to `tmp_path` and returns the results that name them."""
    return functools.partial(results_in, tmp_path)
