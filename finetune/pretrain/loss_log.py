"""`losses.csv` of a pretraining stage, which goes on where a checkpoint was."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from finetune.files import write_text


class LossLog:
    """Appends a row of running means now and then; the columns are those of the first row."""

    def __init__(self, path: Path, *, step: int) -> None:
        """Go on after `step`: rows of later steps, of a part that was lost, are dropped."""
        self.path, self.columns = path, list[str]()
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.is_file() else []
        whole = [line for line in lines if line.endswith("\n")]  # a full disk cuts the last one
        kept = [line.rstrip("\n") for line in whole if _step_of(line) <= step]
        if len(kept) < len(lines):
            write_text(path, "".join(f"{line}\n" for line in kept))
        for line in kept:
            if line.startswith("step,"):
                self.columns = line.split(",")[2:]
        before = float(kept[-1].split(",")[1]) if kept and _step_of(kept[-1]) else 0.0
        self.started = time.monotonic() - before

    def write(self, step: int, means: Mapping[str, float]) -> None:
        """Add a row: the step, the seconds at work so far, and `means`."""
        with self.path.open("a", encoding="utf-8") as file:
            if not self.columns:
                self.columns = list(means)
                file.write(",".join(["step", "seconds", *self.columns]) + "\n")
            cells = [f"{means[name]:.5f}" if name in means else "" for name in self.columns]
            seconds = time.monotonic() - self.started
            file.write(",".join([str(step), f"{seconds:.0f}", *cells]) + "\n")


def _step_of(line: str) -> int:
    """The step that a row is of; 0 for the header."""
    first = line.split(",")[0]
    return int(first) if first.isdigit() else 0
