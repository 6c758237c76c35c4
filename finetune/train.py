"""The training loop: one, for every method and family."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from data_prep.loader import TrainingData
from finetune.base import BasePipeline
from finetune.config import RunConfig
from finetune.errors import CheckpointError, ConfigError
from finetune.guards import check_finite
from finetune.interrupt import interruptible
from finetune.loss import Objective
from finetune.method import Method, ParameterGroup
from finetune.optim import (
    ExponentialMovingAverage,
    build_optimizer,
    learning_rate_factor,
    set_learning_rate,
)
from finetune.resume import Progress, RunCheckpoints
from finetune.seeding import derive_seed
from finetune.speed import running
from finetune.tracking import Tracker


@dataclass(frozen=True)
class TrainResult:
    """What a call of `train` did."""

    step: int
    """Optimizer steps done in all."""
    finished: bool
    """False if the run was interrupted; it can be resumed."""
    signal: int
    """Number of the signal that came meanwhile, or 0; one that came in the last step ended nothing here."""
    seconds: float
    """Wall-clock time of this call, samples and validation included."""
    step_seconds: float
    """Wall-clock time of all steps of the run alone, those of earlier calls included."""
    stopped_early: bool
    """Whether validation or `max_seconds` ended it before `num_steps`."""
    peak_memory_bytes: int
    """Highest memory in use after a step: of the accelerator, or the process's resident set."""
    loss: float
    """Mean loss of the last tenth of this call's steps."""
    kept_step: int | None = None
    """Step whose weights validation put back; None where the last ones stayed."""


class Watch(Protocol):
    """Looks at what is learnt along the way, and may end the run."""

    def restore(self, step: int, *, last: bool) -> bool:
        """Go on after `step`, with the weights as they were then; whether the run had ended there.

        `last` says that it is the run's last step.
        """

    def look(self, step: int) -> bool:
        """Look at the weights as they are after `step`; whether the run should end."""


def training_device() -> torch.device:
    """Where this process works: its accelerator if it has one."""
    device: torch.device = Accelerator().device
    return device


def check_parameter_groups(base: BasePipeline, groups: list[ParameterGroup]) -> None:
    """Raise `RuntimeError` unless the groups hold exactly the trainable parameters of the base."""
    grouped = {name: p for group in groups for name, p in group.parameters.items()}
    trainable = base.trainable_parameters()
    if {n: id(p) for n, p in grouped.items()} != {n: id(p) for n, p in trainable.items()}:
        odd = sorted(grouped.keys() ^ trainable.keys())[:3]
        raise RuntimeError(f"The parameter groups are not the trainable parameters: {odd}")


def place(base: BasePipeline, data: TrainingData, device: torch.device, *, offload: bool) -> None:
    """Put the networks where training needs them; what no step needs rests, after it has encoded."""
    if not offload or device.type == "cpu":
        base.to(device)
        return
    resting = ["vae"]
    if base.text_is_frozen:
        base.to(device, resting=base.modules)
        base.encode_prompts(data.prompts)
        resting += base.components.text_encoders
    base.to(device, resting=resting)


@contextlib.contextmanager
def averaged(
    average: ExponentialMovingAverage | None, parameters: list[nn.Parameter]
) -> Iterator[None]:
    """Within the context the parameters are their moving average, where there is one."""
    if average is None:
        yield
        return
    average.swap(parameters)
    try:
        yield
    finally:
        average.swap(parameters)


def _memory_in_use(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def is_main_process() -> bool:
    """Whether this process is the one of its run that writes; with one process, it is."""
    return bool(Accelerator().is_main_process)


def wait_for_everyone() -> None:
    """Return when all processes of the run have come here."""
    Accelerator().wait_for_everyone()


def _summed(
    accelerator: Accelerator, metrics: dict[str, float], stop: int
) -> tuple[dict[str, float], int]:
    """Sum of every process's share of the figures, and the highest signal that any has got."""
    if accelerator.num_processes == 1:
        return metrics, stop
    names = sorted(metrics)
    mine = torch.tensor([*(metrics[name] for name in names), float(stop > 0)], dtype=torch.float64)
    on_device = mine.to(
        accelerator.device, torch.float32 if accelerator.device.type == "mps" else None
    )
    *figures, stopped = accelerator.reduce(on_device, reduction="sum").tolist()
    return dict(zip(names, figures, strict=True)), stop or (signal.SIGTERM if stopped else 0)


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _agreed(accelerator: Accelerator, ends: bool) -> bool:
    """Whether any process says that the run ends; waits for them all."""
    if accelerator.num_processes == 1:
        return ends
    votes = torch.tensor([int(ends)], device=accelerator.device)
    return bool(accelerator.reduce(votes, reduction="sum").item())


def _require_same_step(accelerator: Accelerator, step: int) -> None:
    """Raise `CheckpointError` unless all processes start at `step`; waits for them."""
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if set(steps) != {step}:
        raise CheckpointError(
            f"The processes found checkpoints of different steps ({', '.join(map(str, steps))}). Give a run "
            "folder (output=...) that they share."
        )


def train(
    base: BasePipeline,
    method: Method,
    data: TrainingData,
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    on_sample: Callable[[int], None] | None = None,
    watch: Watch | None = None,
    description: str = "training",
) -> TrainResult:
    """Train a prepared `method` to `config.training.num_steps` and leave it attached.

    With `resume`, continues from the newest whole checkpoint in `folder`. `on_sample(step)` is called
    in the main process every `config.samples.every` steps; `watch`, which only that process has, looks
    every `config.validation.every`, and at the end. Raises `CheckpointError` if a checkpoint
    belongs to other data or another base, `UserError` if the loss stays infinite.
    """
    # Objects.
    training, accelerator = config.training, Accelerator()
    device, world, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    is_main = accelerator.is_main_process
    if training.batch_size % (training.gradient_accumulation_steps * world):
        raise ConfigError(
            f"training.batch_size {training.batch_size} cannot be shared by {world} processes with "
            f"{training.gradient_accumulation_steps} accumulation steps each; make it a multiple of "
            f"{world * training.gradient_accumulation_steps}."
        )
    place(base, data, device, offload=training.offload)
    groups = method.parameter_groups(base)
    check_parameter_groups(base, groups)
    parameters = [p for group in groups for p in group.parameters.values()]
    optimizer = build_optimizer(
        [
            {
                "params": list(group.parameters.values()),
                "lr": group.learning_rate,
                "weight_decay": group.weight_decay,
            }
            for group in groups
        ],
        config.optimizer,
    )
    average = None
    if training.ema_decay is not None:
        average = ExponentialMovingAverage(parameters, decay=training.ema_decay)
    objective = Objective(config.loss, training.seed, config.prior.kind == "base_prediction")
    # Small gradients would vanish in float16; without it the scaler does nothing.
    is_float16 = "float16" in (config.base.dtype, training.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=is_float16)
    checkpoints = RunCheckpoints(
        folder / "checkpoints", base, method, optimizer, scaler, average, data
    )
    tracking = config.tracking
    trackers = tracking.trackers if is_main else ()
    tracker = Tracker(folder, trackers=trackers, project=tracking.project)

    # Resume.
    progress = checkpoints.restore(is_main=is_main) if resume else Progress()
    _require_same_step(accelerator, progress.step)
    if is_main:
        tracker.rewind(progress.step)
    with averaged(average, parameters):
        last = progress.step >= training.num_steps
        ended = watch is not None and watch.restore(progress.step, last=last)
    ends = _agreed(accelerator, ended)

    # Loop.
    num_micro = training.gradient_accumulation_steps * world
    # No cache of casts: the base-prediction prior swaps weights under the same parameters.
    autocast = torch.autocast(
        device.type,
        torch.float16 if training.precision == "float16" else torch.bfloat16,
        enabled=training.precision != "float32",
        cache_enabled=False,
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started, peak, stop, losses = time.monotonic(), 0, 0, []
    bar = tqdm(
        total=training.num_steps,
        initial=progress.step,
        desc=description,
        unit="step",
        mininterval=1.0,
        disable=not is_main,
    )
    execution = running(
        base,
        gradient_checkpointing=training.gradient_checkpointing,
        attention=training.attention,
        compile=training.compile,
    )
    with contextlib.closing(tracker), bar, execution, interruptible() as interrupted:
        while progress.step < training.num_steps and not stop and not ends:
            step, step_started = progress.step, time.monotonic()
            factor = learning_rate_factor(
                step,
                num_steps=training.num_steps,
                schedule=config.optimizer.schedule,
                warmup_steps=config.optimizer.warmup_steps,
            )
            set_learning_rate(optimizer, factor)
            metrics: dict[str, float] = {}
            for micro in range(rank, num_micro, world):
                batch = data.micro_batch(step, num_micro=num_micro, micro=micro)
                # Networks that draw from the global generator (dropout) are seeded here.
                torch.manual_seed(derive_seed(training.seed, "network", step, micro))
                with autocast:
                    output = method.compute_loss(base, batch, objective)
                scaler.scale(output.loss / num_micro).backward()
                for name, figure in output.metrics.items():
                    metrics[name] = metrics.get(name, 0.0) + float(figure) / num_micro
            if world > 1:  # unwrapped modules: the loop itself sums the (few) gradients
                for parameter in parameters:
                    # Where a base does not use all of a network (SDXL skips last layers) none has one.
                    if parameter.grad is not None:
                        parameter.grad = accelerator.reduce(parameter.grad, reduction="sum")
            metrics, stop = _summed(accelerator, metrics, interrupted())
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(parameters, config.optimizer.max_grad_norm)
            finite = bool(norm.isfinite()) and math.isfinite(metrics["loss"])
            if finite:
                optimizer.step()
                method.after_step(base)
                if average is not None:
                    average.update(parameters)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            progress.non_finite = 0 if finite else progress.non_finite + 1
            progress.seconds += time.monotonic() - step_started
            peak = max(peak, _memory_in_use(device))
            losses.append(metrics["loss"])
            bar.set_postfix(loss=f"{metrics['loss']:.4f}", refresh=False)
            bar.update()
            if is_main:
                figures = {**metrics, "grad_norm": float(norm), "lr_factor": factor}
                tracker.log(progress.step, figures)
                if _is_due(progress.step, training.checkpoint_every):
                    checkpoints.save(progress)
                if on_sample and _is_due(progress.step, config.samples.every):
                    with averaged(average, parameters):
                        on_sample(progress.step)
            check_finite(progress.non_finite, progress.step, config)
            if training.max_seconds is not None:
                ends = _agreed(accelerator, progress.seconds >= training.max_seconds)
            last = ends or progress.step >= training.num_steps
            if config.validation.is_due(progress.step, last=last):
                with averaged(average, parameters):
                    seen_enough = watch is not None and watch.look(progress.step)
                ends = _agreed(accelerator, seen_enough) or ends
        seconds = time.monotonic() - started
        if is_main and progress.step > progress.saved:
            checkpoints.save(progress)
        stop = stop or interrupted()
    accelerator.wait_for_everyone()
    recent = losses[-max(1, len(losses) // 10) :]
    mean = sum(recent) / len(recent) if recent else float("nan")
    finished = ends or progress.step >= training.num_steps
    if finished and average is not None:
        average.swap(parameters)
    return TrainResult(
        step=progress.step,
        finished=finished,
        signal=stop,
        seconds=seconds,
        step_seconds=progress.seconds,
        stopped_early=ends and progress.step < training.num_steps,
        peak_memory_bytes=peak,
        loss=mean,
    )
