"""How the denoiser runs while it is trained: memory against time. Leaves no trace on the networks."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from finetune.base import BasePipeline
from finetune.errors import ConfigError

AttentionName = Literal["auto", "flash", "efficient", "cudnn", "math"]
KERNELS: dict[str, SDPBackend] = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
"""Name -> torch's own kernels of attention."""
_DEVICE_KERNELS: dict[str, tuple[str, ...]] = {"cuda": tuple(KERNELS), "cpu": ("flash", "math")}


def check_speed(
    *, attention: AttentionName, compile: bool, device: torch.device, is_half: bool
) -> None:
    """Raise `ConfigError` for what the device cannot do; `is_half`: attention in half precision."""
    known = _DEVICE_KERNELS.get(device.type, ("math",))
    if attention in ("flash", "cudnn") and device.type == "cuda" and not is_half:
        raise ConfigError(
            f"training.attention: {attention} is a kernel for half precision. Set "
            "training.precision=bfloat16, or attention to efficient."
        )
    if attention not in ("auto", *known):
        raise ConfigError(
            f"training.attention: {attention} is no kernel of this machine's device ({device.type}), which "
            f"has {' and '.join(known)}. Set it to auto."
        )
    compilers = filter(None, (os.environ.get("CXX"), "g++", "clang++", "cl"))
    if compile and device.type == "cpu" and not any(shutil.which(name) for name in compilers):
        raise ConfigError(
            "training.compile: on a CPU it needs a C++ compiler (g++ or clang++), and there is none. "
            "Install one or set it to false."
        )


@contextlib.contextmanager
def checkpointed(base: BasePipeline) -> Iterator[None]:
    """Within the context the denoiser's blocks keep their inputs only, and compute the rest again."""
    marks = ("gradient_checkpointing", "_gradient_checkpointing_func")
    blocks = [m for m in base.denoiser.modules() if marks[0] in vars(m)]
    before = [
        {name: vars(block)[name] for name in marks if name in vars(block)} for block in blocks
    ]
    denoiser: Any = base.denoiser
    denoiser.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for block, attributes in zip(blocks, before, strict=True):
            for name in marks:
                vars(block).pop(name, None)
            vars(block).update(attributes)


@contextlib.contextmanager
def compiled(base: BasePipeline, *, backend: str = "inductor") -> Iterator[None]:
    """Within the context the denoiser's repeated blocks run compiled."""
    blocks = [m for m in base.denoiser.modules() if type(m).__name__ in base.family.repeated_blocks]
    for block in blocks:
        block.compile(backend=backend)
    try:
        yield
    finally:
        for block in blocks:
            vars(block).pop("_compiled_call_impl", None)


@contextlib.contextmanager
def running(
    base: BasePipeline, *, gradient_checkpointing: bool, attention: AttentionName, compile: bool
) -> Iterator[None]:
    """Within the context training runs as configured; backward passes belong into it too."""
    with contextlib.ExitStack() as stack:
        if gradient_checkpointing:
            stack.enter_context(checkpointed(base))
        if compile:
            stack.enter_context(compiled(base))
        if attention != "auto":
            # Plain attention for what a kernel cannot do: masks of text encoders, a float32 autoencoder.
            stack.enter_context(sdpa_kernel([KERNELS[attention], SDPBackend.MATH]))
        yield
