"""The training loop: one, for every method and family."""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil
import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from data_prep.loader import TrainingData
from finetune.base import BasePipeline
from finetune.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    with_prefix,
    without_prefix,
)
from finetune.config import RunConfig
from finetune.errors import CheckpointError, ConfigError, UserError
from finetune.loss import Objective
from finetune.method import Method, ParameterGroup
from finetune.optim import (
    ExponentialMovingAverage,
    build_optimizer,
    learning_rate_factor,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from finetune.seeding import derive_seed
from finetune.speed import running
from finetune.tracking import Tracker

_NON_FINITE_LIMIT = 5
"""Steps in a row without a finite loss after which a run stops."""


@dataclass(frozen=True)
class TrainResult:
    """What a call of `train` did."""

    step: int
    """Optimizer steps done in all."""
    finished: bool
    """False if the run was interrupted; it can be resumed."""
    seconds: float
    """Wall-clock time of this call's steps."""
    peak_memory_bytes: int
    """Highest memory in use after a step: of the accelerator, or the process's resident set."""
    loss: float
    """Mean loss of the last tenth of this call's steps."""


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether Ctrl-C or SIGTERM has come; a second one ends at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    kinds = (signal.SIGINT, signal.SIGTERM)
    try:
        previous = {kind: signal.signal(kind, ask) for kind in kinds}
    except ValueError:  # not in the main thread: leave signals alone
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)


def data_fingerprint(data: TrainingData) -> str:
    """Hash of what is trained on: moments, captions and class examples."""
    digest = hashlib.blake2b(digest_size=16)
    for moments in filter(None, (data.instances.moments, data.class_moments)):
        digest.update(moments.mean.numpy().tobytes())
        digest.update(moments.std.numpy().tobytes())
    digest.update("\n".join([*data.instances.captions, data.class_prompt or ""]).encode())
    return digest.hexdigest()


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


@contextmanager
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


def train(
    base: BasePipeline,
    method: Method,
    data: TrainingData,
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    on_sample: Callable[[int], None] | None = None,
    description: str = "training",
) -> TrainResult:
    """Train a prepared `method` to `config.training.num_steps` and leave it attached.

    With `resume`, continues from the newest whole checkpoint in `folder`. `on_sample(step)` is called
    every `config.samples.every` steps. Raises `CheckpointError` if a checkpoint belongs to other
    data or another base, `UserError` if the loss stays infinite.
    """
    # Objects.
    training, accelerator = config.training, Accelerator()
    device, world, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
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
    fingerprints = {"base": base.fingerprint, "data": data_fingerprint(data)}
    tracker = Tracker(folder, trackers=config.tracking.trackers, project=config.tracking.project)

    # Resume.
    step = 0
    if resume:
        checkpoint, problems = latest_checkpoint(folder / "checkpoints")
        for problem in problems:
            tqdm.write(f"Skipping a damaged checkpoint: {problem}.")
        if checkpoint is not None:
            tensors, state = load_checkpoint(checkpoint)
            for name, value in fingerprints.items():
                if state[name] != value:
                    raise CheckpointError(
                        f"{checkpoint} was made with other {name}; a resumed run would not be the same "
                        f"run. Restore the {name}, or start again with --overwrite."
                    )
            method.load_state_dict(base, without_prefix("method", tensors))
            load_optimizer_tensors(optimizer, without_prefix("optimizer", tensors))
            if average is not None:
                average.load(without_prefix("average", tensors))
            step = int(state["step"])
    tracker.rewind(step)

    saved = step

    def save() -> None:
        nonlocal saved
        saved = step
        if accelerator.is_main_process:
            state = with_prefix("method", method.state_dict(base))
            statistics = with_prefix("optimizer", optimizer_tensors(optimizer))
            averages = with_prefix("average", average.tensors() if average is not None else {})
            tensors = {**state, **statistics, **averages}
            save_checkpoint(folder / "checkpoints", step, tensors, fingerprints)

    # Loop.
    num_micro = training.gradient_accumulation_steps * world
    # No cache of casts: the base-prediction prior swaps weights under the same parameters.
    autocast = torch.autocast(
        device.type,
        torch.bfloat16,
        enabled=training.precision == "bfloat16",
        cache_enabled=False,
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started, peak, non_finite, losses = time.monotonic(), 0, 0, []
    bar = tqdm(
        total=training.num_steps,
        initial=step,
        desc=description,
        unit="step",
        mininterval=1.0,
        disable=not accelerator.is_main_process,
    )
    execution = running(
        base,
        gradient_checkpointing=training.gradient_checkpointing,
        attention=training.attention,
        compile=training.compile,
    )
    with bar, execution, _interruptible() as interrupted:
        while step < training.num_steps and not interrupted():
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
                (output.loss / num_micro).backward()
                for name, figure in output.metrics.items():
                    metrics[name] = metrics.get(name, 0.0) + float(figure) * world / num_micro
            if world > 1:  # unwrapped modules: the loop itself sums the (few) gradients
                for parameter in parameters:
                    # Where a base does not use all of a network (SDXL skips last layers) none has one.
                    if parameter.grad is not None:
                        parameter.grad = accelerator.reduce(parameter.grad, reduction="sum")
            norm = nn.utils.clip_grad_norm_(parameters, config.optimizer.max_grad_norm)
            if bool(norm.isfinite()):
                optimizer.step()
                method.after_step(base)
                if average is not None:
                    average.update(parameters)
                non_finite = 0
            else:
                non_finite += 1
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if non_finite == _NON_FINITE_LIMIT:
                raise UserError(
                    f"The gradients were not finite in {non_finite} steps in a row (up to step {step}). "
                    f"Lower method.learning_rate ({config.method.learning_rate}), or set "
                    "training.precision=float32."
                )
            peak = max(peak, _memory_in_use(device))
            losses.append(metrics["loss"])
            if accelerator.is_main_process:
                tracker.log(step, {**metrics, "grad_norm": float(norm), "lr_factor": factor})
            bar.set_postfix(loss=f"{metrics['loss']:.4f}", refresh=False)
            bar.update()
            if training.checkpoint_every and step % training.checkpoint_every == 0:
                save()
            if config.samples.every and step % config.samples.every == 0 and on_sample:
                with averaged(average, parameters):
                    on_sample(step)
    seconds = time.monotonic() - started
    finished = step >= training.num_steps
    if step > saved:
        save()
    if finished and average is not None:
        average.swap(parameters)
    tracker.close()
    recent = losses[-max(1, len(losses) // 10) :]
    mean = sum(recent) / len(recent) if recent else float("nan")
    return TrainResult(step, finished, seconds, peak, mean)
