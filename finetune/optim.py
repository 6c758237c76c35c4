"""Optimizers, learning-rate schedules and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from data_prep.config import Section

Beta = Annotated[float, Field(ge=0, lt=1)]
ScheduleName = Literal["constant", "linear", "cosine"]


class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule. Learning rates belong to the method's parameter groups."""

    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of AdamW's two moment estimates (Loshchilov & Hutter 2019)."""
    eps: float = Field(1e-8, gt=0)
    """Added to the denominator of AdamW's update."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down together to at most this 2-norm."""
    schedule: ScheduleName = "constant"
    """Shape of the learning rate after warm-up: it stays, or falls to zero at the last step."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the learning rate rises linearly from zero."""


def learning_rate_factor(
    step: int, *, num_steps: int, schedule: ScheduleName, warmup_steps: int = 0
) -> float:
    """Multiplier of the learning rate at optimizer step `step` (0-based), in [0, 1]."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if schedule == "linear":
        return max(0.0, 1 - progress)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return 1.0


def build_adamw(
    groups: Iterable[dict[str, Any]], *, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """AdamW over parameter groups that carry their own `lr` and `weight_decay`."""
    prepared = [{**group, "initial_lr": group["lr"]} for group in groups]
    return torch.optim.AdamW(prepared, betas=betas, eps=eps)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to its initial learning rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as a flat `{"0.exp_avg": tensor}` mapping, for a safetensors file."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value).contiguous()
        for index, values in state.items()
        for name, value in values.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; the parameter groups keep their settings."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


class ExponentialMovingAverage:
    """A moving average of parameters: average += (1 - decay) * (parameter - average).

    The decay starts low, min(decay, (1 + n) / (10 + n)) after n updates, so that the random start is
    forgotten early (the warm-up of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, parameters: Sequence[Tensor], *, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.averages = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, parameters: Sequence[Tensor]) -> None:
        """Move the averages towards `parameters`, given in the order of construction."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self.averages, [p.detach() for p in parameters], 1 - decay)

    @torch.no_grad()
    def swap(self, parameters: Sequence[Tensor]) -> None:
        """Exchange the averages and the parameters; a second call undoes the first."""
        for parameter, average in zip(parameters, self.averages, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)
