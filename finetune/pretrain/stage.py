"""The loop shared by the pretraining stages: resumable, with EMA, bf16 and sample pictures."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm

from data_prep.config import Section
from finetune.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    step_of,
    sweep,
    with_prefix,
    without_prefix,
)
from finetune.errors import CheckpointError, ConfigError
from finetune.files import read_json, write_json
from finetune.interrupt import exit_code, interruptible
from finetune.optim import (
    ExponentialMovingAverage,
    build_adamw,
    learning_rate_factor,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from finetune.pretrain.loss_log import LossLog
from finetune.seeding import generator_for

CPU = torch.device("cpu")
MADE_OF = "made_of.json"
"""Beside a stage's finished networks: what they learnt from, and for how many steps."""


class StageConfig(Section):
    """What every pretraining stage is told."""

    num_steps: int = Field(gt=0)
    """Optimizer steps of the whole stage; the learning rate falls as a cosine over them."""
    batch_size: int = Field(gt=0)
    """Pictures per step."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of AdamW."""
    warmup_steps: int = Field(200, ge=0)
    """Steps over which the learning rate rises."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Decay of the moving average of the weights; the average is what is shipped."""
    seed: int = 0
    """Seed of initial weights, data order and noise."""
    checkpoint_every: int = Field(500, gt=0)
    """Steps between checkpoints."""
    sample_every: int = Field(1000, gt=0)
    """Steps between sample pictures."""


def check_stages(name: str, channels: Sequence[int], other: str, depths: Sequence[int]) -> None:
    """Raise `ValueError` unless a residual network has as many `depths` as `channels`, all positive."""
    if len(channels) != len(depths) or not channels or min(*channels, *depths) < 1:
        raise ValueError(f"{name} and {other} must be as many numbers, one at least, all above 0")


class Stage(Protocol):
    """One pretraining stage: networks, a loss, and pictures to watch it by."""

    name: str
    modules: nn.ModuleDict
    networks: tuple[str, ...]
    """Folders that `save` writes."""
    made_of: dict[str, str]
    """What it learns from, by name: fingerprints of pictures and of other stages' networks."""

    @property
    def config(self) -> StageConfig:
        """What the stage was told."""
        ...

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of one batch; the entry "loss" is minimised, the others are shown."""
        ...

    def sample(self, path: Path) -> None:
        """Write a picture that shows how far the stage is."""
        ...

    def save(self, folder: Path) -> None:
        """Write the finished networks into `folder`, each whole or not at all."""
        ...


def steps_of_networks(folder: Path) -> int | None:
    """For how many steps the finished networks in a stage's `folder` have learnt; None where nobody knows.

    Before that was written down, a stage was seldom told to go on, so the newest checkpoint stands for it.
    """
    noted = read_json(folder / MADE_OF) if (folder / MADE_OF).is_file() else {}
    if "num_steps" in noted:
        return int(noted["num_steps"])
    steps = map(step_of, (folder / "checkpoints").glob("step-*"))
    return max((step for step in steps if step is not None), default=None)


_MAY_CHANGE = {"num_steps", "checkpoint_every", "sample_every"}
"""What a stage can be told otherwise when it goes on."""


def _check_origin(stage: Stage, state: dict[str, Any], checkpoint: Path) -> None:
    """Refuse to go on from a checkpoint that learnt from something else or was told otherwise."""
    told = stage.config.model_dump(mode="json")
    if state["step"] > told["num_steps"]:
        raise CheckpointError(
            f"{checkpoint} has learnt for {state['step']} steps already, more than {stage.name}.num_steps "
            f"{told['num_steps']}. Raise it, or remove {checkpoint.parent} to begin anew."
        )
    before = state.get("config", told)  # which the first checkpoints did not say
    for name in sorted(told.keys() - _MAY_CHANGE):
        if before.get(name) != told[name]:
            raise CheckpointError(
                f"{checkpoint} was made with {stage.name}.{name} {before.get(name)}, not {told[name]}. "
                f"Set it back, or remove {checkpoint.parent} to begin anew."
            )
    for name, fingerprint in stage.made_of.items():
        if state["made_of"].get(name) != fingerprint:
            raise CheckpointError(
                f"{checkpoint} did not learn from today's {name}. Remove {checkpoint.parent} to begin the "
                f"stage {stage.name} anew."
            )


def run_stage(
    stage: Stage, folder: Path, *, deadline: float = math.inf
) -> Generator[int, None, bool]:
    """Train `stage` to its last step, resuming what `folder` holds; yields each step done.

    Returns whether it is finished. Networks that are there already are not written again: other versions of
    libraries write other files, which whoever learnt from these would not know.

    Stops early, with a checkpoint, when `time.monotonic()` is past `deadline`, and at Ctrl-C or SIGTERM,
    which end the program. On the way out the modules hold the moving average of the weights; finished ones
    are saved.

    Raises `CheckpointError` where `folder` holds a checkpoint that learnt from something else, or with other
    settings than the number of steps and what is written on the way; `ConfigError` where the loss is no
    finite number any more, before it reaches a weight.
    """
    config = stage.config
    told = config.model_dump(mode="json")
    parameters = list(stage.modules.parameters())
    optimizer = build_adamw(
        [{"params": parameters, "lr": config.learning_rate, "weight_decay": config.weight_decay}],
        betas=(0.9, 0.99),
        eps=1e-8,
    )
    average = ExponentialMovingAverage(parameters, decay=config.ema_decay)
    step = saved = 0
    sweep(folder / "checkpoints")
    checkpoint, problems = latest_checkpoint(folder / "checkpoints")
    for problem in problems:
        tqdm.write(f"Skipping a damaged checkpoint: {problem}")
    if checkpoint is not None:
        tensors, state = load_checkpoint(checkpoint)
        _check_origin(stage, state, checkpoint)
        stage.modules.load_state_dict(without_prefix("weights", tensors))
        load_optimizer_tensors(optimizer, without_prefix("optimizer", tensors))
        average.averages = [
            tensors[f"ema/{index}"].to(parameter.device)
            for index, parameter in enumerate(parameters)
        ]
        step = saved = average.num_updates = int(state["step"])
    was_finished = step == config.num_steps == steps_of_networks(folder) and all(
        (folder / name).is_dir() for name in stage.networks
    )

    def save() -> None:
        nonlocal saved
        saved = step
        tensors = {
            **with_prefix("weights", stage.modules.state_dict()),
            **with_prefix("optimizer", optimizer_tensors(optimizer)),
            **{f"ema/{index}": value for index, value in enumerate(average.averages)},
        }
        save_checkpoint(
            folder / "checkpoints", step, tensors, {"made_of": stage.made_of, "config": told}
        )

    folder.mkdir(parents=True, exist_ok=True)
    log, recent = LossLog(folder / "losses.csv", step=step), dict[str, float]()
    with (
        tqdm(total=config.num_steps, initial=step, desc=stage.name, mininterval=5) as progress,
        interruptible() as interrupted,
    ):
        while step < config.num_steps and not interrupted():
            if time.monotonic() >= deadline:
                break
            factor = learning_rate_factor(
                step,
                num_steps=config.num_steps,
                schedule="cosine",
                warmup_steps=config.warmup_steps,
            )
            set_learning_rate(optimizer, factor)
            losses = stage.loss(generator_for(config.seed, stage.name, step))
            values = {name: value.item() for name, value in losses.items()}
            if not math.isfinite(values["loss"]):
                raise ConfigError(
                    f"The loss of the stage {stage.name} is {values['loss']} at step {step + 1}. Remove "
                    f"{folder} and begin anew with a lower {stage.name}.learning_rate."
                )
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            average.update(parameters)
            step += 1
            for name, number in values.items():
                recent[name] = 0.98 * recent.get(name, number) + 0.02 * number
            if step % 50 == 0:
                progress.set_postfix({name: f"{mean:.4f}" for name, mean in recent.items()})
                log.write(step, recent)
            if step % config.checkpoint_every == 0:
                save()
            if step % config.sample_every == 0:
                average.swap(parameters)
                stage.sample(folder / f"sample-{step:06d}.png")
                average.swap(parameters)
            progress.update()
            yield step
        if step > saved:
            save()
        if interrupted():
            raise SystemExit(exit_code(interrupted()))
    average.swap(parameters)
    finished = step == config.num_steps
    if finished and not was_finished:
        stage.sample(folder / "sample-last.png")
        stage.save(folder)
        write_json(folder / MADE_OF, {"num_steps": step, **stage.made_of})
    return finished


def to_uint8(pixel_values: Tensor) -> np.ndarray:
    """Pixels [B, 3, H, W] in [-1, 1] as bytes [B, H, W, 3]."""
    scaled = pixel_values.float().clamp(-1, 1).add(1).mul(127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def save_nearest(pixel_values: Tensor, embeds: Tensor, path: Path) -> None:
    """One PNG: the first twelve of the pictures [N, 3, H, W], below each the five nearest others by `embeds`.

    `embeds` are [N, D], of any length.
    """
    unit = F.normalize(embeds.cpu(), dim=-1)
    similarity = (unit @ unit.T).fill_diagonal_(2.0)
    nearest = similarity[:12].topk(6).indices
    save_rows([to_uint8(pixel_values[row]) for row in nearest.T], path)


def save_rows(rows: list[np.ndarray], path: Path) -> None:
    """One PNG from rows of equally sized pictures, each row [N, H, W, 3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in rows], 0)).save(path)
