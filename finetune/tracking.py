"""Figures of a run: always `metrics.jsonl`, and tensorboard or wandb through accelerate when asked."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator

from finetune.errors import ConfigError

_log = logging.getLogger(__name__)


def _step_of(line: str) -> float:
    """The step of a line of metrics; infinite for one torn by a crash."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class Tracker:
    """Writes one line of figures per logged step; other trackers may fail without harm."""

    def __init__(
        self, folder: Path, *, trackers: tuple[str, ...] = (), project: str = "finetune"
    ) -> None:
        """Raises `ConfigError` if the package of a tracker is not installed."""
        self.path = folder / "metrics.jsonl"
        self._accelerator: Accelerator | None = None
        if trackers:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # about missing packages: said below
                    accelerator = Accelerator(
                        log_with=list(trackers), project_dir=str(folder / "tracking")
                    )
                accelerator.init_trackers(project)
            except Exception as error:  # whatever a tracker raises
                raise ConfigError(
                    f"tracking.trackers: {', '.join(trackers)} could not be started ({error}). Install "
                    "the package (pip install 'finetune-subject[tensorboard]') or leave it out."
                ) from error
            if len(accelerator.trackers) < len(trackers):
                raise ConfigError(
                    f"tracking.trackers: not all of {', '.join(trackers)} are installed. "
                    "pip install 'finetune-subject[tensorboard]' or [wandb]."
                )
            self._accelerator = accelerator

    def rewind(self, step: int) -> None:
        """Forget what was logged after optimizer step `step`."""
        if not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the figures of optimizer step `step` (the number of steps done)."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        if self._accelerator is not None:
            try:
                self._accelerator.log(dict(metrics), step=step)
            except Exception:  # a tracker's own failure, whatever it is, must not end the run
                _log.warning("A tracker failed and is switched off.", exc_info=True)
                self._accelerator = None

    def close(self) -> None:
        """Let trackers finish."""
        if self._accelerator is not None:
            try:
                self._accelerator.end_training()
            except Exception:  # as in log()
                _log.warning("A tracker could not finish.", exc_info=True)
