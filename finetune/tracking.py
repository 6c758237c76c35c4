"""Figures of a run: always `metrics.jsonl`, and tensorboard or wandb through accelerate when asked."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator

from finetune.errors import ConfigError
from finetune.files import write_text

_log = logging.getLogger(__name__)


def _step_of(line: str) -> float:
    """The step of a line of metrics; infinite for one torn by a crash."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class Tracker:
    """Writes one line of figures per logged step. Nothing that fails here ends a run."""

    def __init__(
        self, folder: Path, *, trackers: tuple[str, ...] = (), project: str = "finetune"
    ) -> None:
        """Raises `ConfigError` if the package of a tracker is not installed."""
        self.path = folder / "metrics.jsonl"
        self._waiting: list[str] = []
        """Lines that could not be written yet."""
        self._accelerator: Accelerator | None = None
        if trackers:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # about missing packages: said below
                    accelerator = Accelerator(
                        log_with=list(trackers), project_dir=str(folder / "tracking")
                    )
            except (ImportError, ValueError) as error:
                raise ConfigError(
                    f"tracking.trackers: {', '.join(trackers)} could not be started ({error}). Install "
                    "the package (pip install 'finetune-subject[tensorboard]') or leave it out."
                ) from error
            if len(accelerator.log_with) < len(trackers):
                raise ConfigError(
                    f"tracking.trackers: not all of {', '.join(trackers)} are installed. "
                    "pip install 'finetune-subject[tensorboard]' or [wandb]."
                )
            try:
                accelerator.init_trackers(project)
                self._accelerator = accelerator
            except Exception:  # no network, no account: whatever a tracker raises
                _log.warning("A tracker could not be started; the run goes on.", exc_info=True)

    def rewind(self, step: int) -> None:
        """Forget what was logged after optimizer step `step`."""
        if not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        write_text(self.path, "".join(line + "\n" for line in kept))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the figures of optimizer step `step` (the number of steps done)."""
        figures = {n: figure if math.isfinite(figure) else None for n, figure in metrics.items()}
        self._waiting.append(json.dumps({"step": step, **figures}) + "\n")
        self._write()
        if self._accelerator is not None:
            try:
                self._accelerator.log(dict(metrics), step=step)
            except Exception:  # a tracker's own failure, whatever it is, must not end the run
                _log.warning("A tracker failed and is switched off.", exc_info=True)
                self._accelerator = None

    def _write(self) -> None:
        """Append the lines that wait. If that fails none of them is written, and all wait on."""
        size = 0
        try:
            with self.path.open("ab", buffering=0) as file:
                size = file.tell()
                content = "".join(self._waiting).encode()
                if file.write(content) < len(content):
                    raise OSError("the disk is full")
        except OSError as error:
            if len(self._waiting) == 1:
                _log.warning("%s cannot be written (%s); the run goes on.", self.path, error)
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)
        else:
            self._waiting.clear()

    def close(self) -> None:
        """Let trackers finish."""
        if self._accelerator is not None:
            try:
                self._accelerator.end_training()
            except Exception:  # as in log()
                _log.warning("A tracker could not finish.", exc_info=True)
