"""Optimizers, learning-rate schedules and the moving average of weights."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from data_prep.config import Section
from finetune.errors import ConfigError

Beta = Annotated[float, Field(ge=0, lt=1)]
ScheduleName = Literal["constant", "linear", "cosine"]
OptimizerName = Literal["adamw", "adamw8bit", "adafactor", "prodigy"]
PACKAGES: dict[str, str] = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}
"""Optimizer -> the package it needs, of the extra `optimizers`."""
STATE_BYTES: dict[str, float] = {"adamw": 8, "adamw8bit": 2, "adafactor": 0, "prodigy": 16}
"""Optimizer -> bytes of state per trained number. Adafactor's rows and columns hardly count."""


class OptimizerConfig(Section):
    """The optimizer and its schedule. Learning rates belong to the method's parameter groups."""

    name: OptimizerName = "adamw"
    """`adamw` (Loshchilov & Hutter 2019) keeps 8 bytes per trained number, `adamw8bit` (Dettmers et al.
    2022) 2, `adafactor` (Shazeer & Stern 2018, without momentum) next to none, `prodigy` (Mishchenko &
    Defazio 2024) 16. Prodigy finds the learning rate itself: set `method.learning_rate` to 1. `adamw8bit`
    and `prodigy` need the extra `optimizers`."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the two moment estimates; Adafactor has its own."""
    eps: float = Field(1e-8, gt=0)
    """Added to the denominator of the update; Adafactor has its own."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down together to at most this 2-norm."""
    schedule: ScheduleName = "constant"
    """Shape of the learning rate after warm-up: it stays, or falls to zero at the last step."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the learning rate rises linearly from zero."""

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> OptimizerConfig:
        if self.name == "adafactor" and {"betas", "eps"} & self.model_fields_set:
            defaults = OptimizerConfig()
            if (self.betas, self.eps) != (defaults.betas, defaults.eps):
                raise ValueError("betas and eps mean nothing to adafactor; leave them out")
        return self


def check_optimizer(name: OptimizerName) -> None:
    """Raise `ConfigError` if the package of an optimizer is not installed."""
    package = PACKAGES.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"optimizer.name: {name} needs the package {package}, which is not installed. Install it with "
            "pip install 'finetune-subject[optimizers]'."
        )


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
    """AdamW over parameter groups that carry their own `lr` and `weight_decay`.

    The fused step takes a third of the time of torch's default on a CPU.
    """
    prepared = [{**group, "initial_lr": group["lr"]} for group in groups]
    optimizer = torch.optim.AdamW(prepared, betas=betas, eps=eps, fused=True)
    optimizer.register_step_pre_hook(_align)
    return optimizer


def _align(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Lay gradients and moments out as their parameters are.

    On a CPU the fused step reads each of them in the order of its memory, whatever its strides say.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            parameter.grad = _laid_out(parameter.grad, parameter)
            state = optimizer.state.get(parameter, {})
            for name in state.keys() & {"exp_avg", "exp_avg_sq"}:
                state[name] = _laid_out(state[name], parameter)


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` with the strides of `like`, itself where it has them."""
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def build_optimizer(
    groups: Iterable[dict[str, Any]], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """The optimizer over parameter groups that carry their own `lr` and `weight_decay`.

    Raises `ConfigError` where its package is missing, or for what it cannot do.
    """
    check_optimizer(config.name)
    prepared = [{**group, "initial_lr": group["lr"]} for group in groups]
    settings: dict[str, Any] = {"betas": config.betas, "eps": config.eps}
    if config.name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(prepared, **settings)
    if config.name == "prodigy":
        from prodigyopt import Prodigy

        if len({group["lr"] for group in prepared}) > 1:
            raise ConfigError(
                "optimizer.name: prodigy finds one learning rate for all. Set "
                "method.text_encoder_learning_rate to null."
            )
        return Prodigy(prepared, **settings)
    if config.name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(prepared, scale_parameter=False, relative_step=False)
    return build_adamw(prepared, **settings)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to its initial learning rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def _as_tensor(value: Any) -> Tensor:
    """A tensor, or a Python number in double width, by which `_as_value` knows it again."""
    if isinstance(value, Tensor):
        return value.contiguous().clone()  # bitsandbytes shares tables, which safetensors refuses
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with "name.inner" for what stands in a mapping, as quantised state of bitsandbytes does."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = value.items() if isinstance(value, dict) else None
        flat |= {name: value} if inner is None else {f"{name}.{n}": v for n, v in inner}
    return flat


def _as_value(tensor: Tensor) -> Any:
    is_number = tensor.ndim == 0 and tensor.dtype in (torch.int64, torch.float64)
    return tensor.item() if is_number else tensor


def _own_numbers(group: dict[str, Any]) -> dict[str, Any]:
    """What an optimizer keeps per group beside its settings: Prodigy its estimate of the distance."""
    return {
        name: value
        for name, value in group.items()
        if isinstance(value, int | float | Tensor) and not isinstance(value, bool)
    }


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as a flat mapping, for a safetensors file.

    Keys are "0.exp_avg" for the state of a parameter and "group.0.d" for a number of a group.
    """
    state = optimizer.state_dict()["state"]
    tensors = {
        f"{index}.{name}": _as_tensor(value)
        for index, values in state.items()
        for name, value in _flat(values).items()
        if value is not None
    }
    for index, group in enumerate(optimizer.param_groups):
        tensors |= {f"group.{index}.{n}": _as_tensor(v) for n, v in _own_numbers(group).items()}
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; the parameter groups keep their other settings."""
    state: dict[int, dict[str, Any]] = {}
    groups = optimizer.state_dict()["param_groups"]
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        if index == "group":
            number, name = name.split(".", 1)
            groups[int(number)][name] = _as_value(value)
        else:
            outer, _, inner = name.rpartition(".")
            place = state.setdefault(int(index), {})
            (place.setdefault(outer, {}) if outer else place)[inner] = _as_value(value)
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

    def tensors(self) -> dict[str, Tensor]:
        """The averages and how often they were updated, for a safetensors file."""
        averages = {str(index): average for index, average in enumerate(self.averages)}
        return {"num_updates": torch.tensor(self.num_updates), **averages}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        self.num_updates = int(tensors["num_updates"])
        for index, average in enumerate(self.averages):
            average.copy_(tensors[str(index)])
