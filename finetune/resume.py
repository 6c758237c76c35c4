"""Where a run is, saved and restored: weights, optimizer, counters, and what it was made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from data_prep.loader import TrainingData
from finetune.base import BasePipeline
from finetune.checkpoint import (
    STATE,
    latest_checkpoint,
    load_checkpoint,
    remove_later,
    save_checkpoint,
    sweep,
    with_prefix,
    without_prefix,
)
from finetune.errors import CheckpointError
from finetune.files import read_json
from finetune.method import Method
from finetune.optim import ExponentialMovingAverage, load_optimizer_tensors, optimizer_tensors
from finetune.provenance import check_fingerprints, fingerprints


def check_resumable(checkpoint: Path, base: BasePipeline, data: TrainingData) -> None:
    """Raise `CheckpointError` if a whole checkpoint is of other data or another base."""
    state = read_json(checkpoint / STATE)
    check_fingerprints(state, fingerprints(base, data), data.instances.names, checkpoint)


@dataclass
class Progress:
    """Counters that, with weights and optimizer, are all that a run goes on from."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    non_finite: int = 0
    """Skipped steps in a row, up to now."""
    saved: int = 0
    """Step of the newest checkpoint."""
    seconds: float = 0.0
    """Wall-clock time of the steps done."""


class RunCheckpoints:
    """Saves and restores one run."""

    def __init__(
        self,
        folder: Path,
        base: BasePipeline,
        method: Method,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        average: ExponentialMovingAverage | None,
        data: TrainingData,
    ) -> None:
        self.folder, self.base, self.method = folder, base, method
        self.optimizer, self.scaler, self.average = optimizer, scaler, average
        self.fingerprints, self.names = fingerprints(base, data), data.instances.names

    def save(self, progress: Progress) -> None:
        """Write a checkpoint; this process is the one that writes."""
        learnt = with_prefix("method", self.method.state_dict(self.base))
        statistics = with_prefix("optimizer", optimizer_tensors(self.optimizer))
        averages = with_prefix("average", self.average.tensors() if self.average else {})
        state = {**self.fingerprints, "non_finite": progress.non_finite}
        state["seconds"] = progress.seconds
        state["loss_scale"] = self.scaler.state_dict()
        tensors = {**learnt, **statistics, **averages}
        save_checkpoint(self.folder, progress.step, tensors, state)
        progress.saved = progress.step

    def restore(self, *, is_main: bool) -> Progress:
        """Continue from the newest whole checkpoint. Raises `CheckpointError` if it is another run's."""
        checkpoint, problems = latest_checkpoint(self.folder)
        if is_main:
            for problem in problems:
                tqdm.write(f"A checkpoint is damaged and not used: {problem}.")
        if checkpoint is None:
            if is_main:
                tqdm.write(f"There is no whole checkpoint in {self.folder}: starting at step 0.")
            return Progress()
        tensors, state = load_checkpoint(checkpoint)
        check_fingerprints(state, self.fingerprints, self.names, checkpoint)
        try:
            self.method.load_state_dict(self.base, without_prefix("method", tensors))
            load_optimizer_tensors(self.optimizer, without_prefix("optimizer", tensors))
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(state["loss_scale"])
            if self.average is not None:
                self.average.load(without_prefix("average", tensors))
            step = int(state["step"])
            progress = Progress(step, int(state["non_finite"]), saved=step)
            progress.seconds = float(state.get("seconds", 0.0))
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{checkpoint} does not fit the method: {error}. It is from another version; start again "
                "with --overwrite."
            ) from error
        if is_main:
            sweep(self.folder)
            remove_later(checkpoint)
        return progress
