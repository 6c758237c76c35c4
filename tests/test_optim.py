"""The optimizers by name: their arithmetic, their state in a file, their packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from finetune.errors import ConfigError
from finetune.optim import (
    PACKAGES,
    OptimizerConfig,
    build_optimizer,
    check_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)

NAMES = ("adamw", "adamw8bit", "adafactor", "prodigy")


def optimizer_over(name: Any, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    rate = 1.0 if name == "prodigy" else 1e-2
    groups = [
        {"params": [p], "lr": rate, "weight_decay": decay}
        for p, decay in zip(parameters, (0.01, 0.0), strict=True)
    ]
    return build_optimizer(groups, OptimizerConfig(name=name))


def steps(
    optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], which: range
) -> None:
    for step in which:
        set_learning_rate(optimizer, 1 / (1 + step))
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = noise + parameter.detach()
        optimizer.step()


@pytest.mark.filterwarnings("ignore")  # of foreign packages
@pytest.mark.parametrize("name", NAMES)
def test_resumed_from_a_file_equals_unbroken(name: Any, tmp_path: Path) -> None:
    """Bit for bit; 8,192 numbers are enough for the 8-bit state of bitsandbytes."""
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(64, 128, generator=generator), torch.zeros(8)]
    whole = [torch.nn.Parameter(p.clone()) for p in start]
    steps(optimizer_over(name, whole), whole, range(7))
    first = [torch.nn.Parameter(p.clone()) for p in start]
    optimizer = optimizer_over(name, first)
    steps(optimizer, first, range(3))
    save_file(optimizer_tensors(optimizer), tmp_path / "state.safetensors")
    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    optimizer = optimizer_over(name, second)
    load_optimizer_tensors(optimizer, load_file(tmp_path / "state.safetensors"))
    steps(optimizer, second, range(3, 7))
    for ours, expected, before in zip(second, whole, start, strict=True):
        assert torch.equal(ours, expected)
        assert not torch.equal(ours, before)


def test_a_parameter_in_any_layout_steps_as_torch_s_plain_adamw_does() -> None:
    """Its gradients come in another layout, and so do the moments from a file."""
    start = torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    plain = torch.nn.Parameter(start.clone())
    reference = torch.optim.AdamW([plain], lr=1e-2, weight_decay=0.01, foreach=False, fused=False)
    reference.param_groups[0]["initial_lr"] = 1e-2
    steps(reference, [plain], range(6))
    other = torch.nn.Parameter(start.to(memory_format=torch.channels_last))
    group = {"params": [other], "lr": 1e-2, "weight_decay": 0.01}
    tensors: dict[str, torch.Tensor] = {}
    for part in (range(3), range(3, 6)):
        optimizer = build_optimizer([group], OptimizerConfig())
        load_optimizer_tensors(optimizer, tensors)
        steps(optimizer, [other], part)
        tensors = optimizer_tensors(optimizer)
    assert other.stride() != plain.stride()
    torch.testing.assert_close(other, plain, rtol=1e-5, atol=1e-6, check_stride=False)


def test_adafactor_s_first_step_by_hand() -> None:
    """Shazeer & Stern 2018, algorithm 4 without relative step: v = row · column / mean, RMS clipped to 1."""
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    gradient = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    parameter = torch.nn.Parameter(weight.clone())
    group = {"params": [parameter], "lr": 0.1, "weight_decay": 0.01}
    optimizer = build_optimizer([group], OptimizerConfig(name="adafactor"))
    parameter.grad = gradient.clone()
    optimizer.step()
    squared = gradient**2
    second = squared.mean(1, keepdim=True) * squared.mean(0, keepdim=True) / squared.mean()
    update = gradient / second.sqrt()
    update = update / max(1.0, float(update.square().mean().sqrt()))
    expected = weight - 0.1 * 0.01 * weight - 0.1 * update
    torch.testing.assert_close(parameter.detach(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_a_missing_package_is_named_with_its_extra(
    name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=rf"{name} needs the package {PACKAGES[name]}.*optimizers"
    ):
        check_optimizer(name)


def test_prodigy_takes_one_learning_rate() -> None:
    pytest.importorskip("prodigyopt")
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(2))], "lr": rate, "weight_decay": 0.0}
        for rate in (1.0, 0.5)
    ]
    with pytest.raises(ConfigError, match="one learning rate"):
        build_optimizer(groups, OptimizerConfig(name="prodigy"))


def test_settings_that_adafactor_would_ignore_are_refused() -> None:
    with pytest.raises(ValidationError, match="mean nothing to adafactor"):
        OptimizerConfig(name="adafactor", eps=1e-6)
    resolved = OptimizerConfig(name="adafactor").model_dump()
    assert OptimizerConfig(**resolved).name == "adafactor"
