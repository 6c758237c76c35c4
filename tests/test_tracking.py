"""metrics.jsonl, rewinding, and tensorboard through accelerate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def test_figures_wait_while_the_disk_is_full(tmp_path: Path, files_up_to: Any) -> None:
    tracker = Tracker(tmp_path)
    tracker.log(1, {"loss": 1.0})
    size = tracker.path.stat().st_size
    with files_up_to(size + 5):
        tracker.log(2, {"loss": 2.0})
        tracker.log(3, {"loss": float("nan")})
        assert tracker.path.stat().st_size == size  # no torn line
    tracker.log(4, {"loss": 4.0})
    rows = [json.loads(line) for line in tracker.path.read_text().splitlines()]
    assert rows == [{"step": n, "loss": None if n == 3 else n} for n in (1, 2, 3, 4)]


@pytest.mark.filterwarnings("ignore")
def test_a_tracker_that_fails_is_switched_off(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tracker = Tracker(tmp_path, trackers=("tensorboard",))
    (writer,) = tracker._accelerator.trackers
    writer.writer.close()
    for path in sorted((tmp_path / "tracking").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "tracking").rmdir()
    (tmp_path / "tracking").write_text("in the way")  # where it wants to write
    for step in (1, 2):
        tracker.log(step, {"loss": 0.5})
    tracker.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
