"""metrics.jsonl, rewinding, and tensorboard through accelerate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune.errors import ConfigError
from finetune.tracking import Tracker


def test_metrics_are_lines_and_rewind_forgets_later_steps(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    for step in range(1, 5):
        tracker.log(step, {"loss": step / 2})
    tracker.rewind(2)
    tracker.log(3, {"loss": 9.0})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 9.0}]


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_gets_the_figures_too(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    tracker = Tracker(tmp_path, trackers=("tensorboard",), project="clay")
    tracker.log(1, {"loss": 0.5})
    tracker.close()
    (folder,) = {path.parent for path in (tmp_path / "tracking").rglob("events*")}
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == [0.5]


def test_a_tracker_that_is_not_installed_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wandb"):
        Tracker(tmp_path, trackers=("wandb",))
