"""What goes wrong while training and sampling: noticed, and said together with what to try."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from PIL import Image

from finetune.config import RunConfig
from finetune.errors import UserError
from finetune.generate import SamplingConfig
from finetune.method import Method

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""What PyTorch's allocators without an exception of their own say."""
_SAME_LEVELS = 2
"""Pictures whose channels each span at most this many of 256 levels show one colour."""


def check_finite(num_skipped: int, step: int, config: RunConfig) -> None:
    """Raise `UserError` with what to try if too many steps in a row were skipped, up to `step`."""
    if num_skipped < config.training.max_non_finite_steps:
        return
    remedies = [f"lower method.learning_rate ({config.method.learning_rate})"]
    if config.training.precision != "float32":
        remedies.append("set training.precision=float32")
    if config.base.dtype != "float32":
        remedies.append("set base.dtype=float32")
    if config.optimizer.warmup_steps == 0:
        remedies.append("set optimizer.warmup_steps=50")
    raise UserError(
        f"The loss or its gradients were not finite in {num_skipped} steps in a row (up to step {step}); "
        f"none of them changed a weight. Start again and {', or '.join(remedies)}."
    )


def remarks_on_pictures(images: Sequence[Image.Image]) -> list[str]:
    """A sentence, with possible reasons, if pictures are black or of one colour; else nothing."""
    spans = [image.convert("RGB").getextrema() for image in images]
    plain = [
        extrema
        for extrema in spans
        if all(high - low <= _SAME_LEVELS for low, high in extrema)  # type: ignore[misc]
    ]
    if not plain:
        return []
    black = sum(all(high <= _SAME_LEVELS for _, high in extrema) for extrema in plain)  # type: ignore[misc]
    what = "black" if black == len(plain) else "of a single colour"
    return [
        f"{len(plain)} of {len(images)} pictures are {what}. Numbers have overflowed or the weights have "
        "diverged: lower method.learning_rate, or, with a base in half precision, set base.dtype=float32."
    ]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, of the accelerator or the machine, has run out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(t in str(error) for t in _OUT_OF_MEMORY)


def memory_remedies(config: RunConfig, method: Method) -> list[str]:
    """Settings that would need less memory than `config`'s, those that cost nothing first."""
    training, prior = config.training, config.prior
    remedies = []
    if not training.gradient_checkpointing:
        remedies.append("training.gradient_checkpointing=true (the same result)")
    if not training.offload:
        remedies.append("training.offload=true")
    half = "float16" if "float16" in (config.base.dtype, training.precision) else "bfloat16"
    if training.batch_size > training.gradient_accumulation_steps:
        remedies.append(
            f"training.gradient_accumulation_steps={training.batch_size} (the same result)"
        )
    if prior.kind == "class_images" and prior.batch_size > 1:
        remedies.append("prior.batch_size=1")
    if config.samples.every and config.sampling.batch_size > 1:
        remedies.append("sampling.batch_size=1")
    if config.base.dtype == "float32":
        remedies.append(f"base.dtype={half}")
    if training.precision == "float32":
        remedies.append(f"training.precision={half}")
    if prior.kind == "class_images":
        remedies.append("prior.kind=base_prediction")
    if config.samples.every and not config.sampling.cpu_offload:
        remedies.append("sampling.cpu_offload=true (with an accelerator)")
    if training.ema_decay is not None:
        remedies.append("training.ema_decay=null")
    if method.requirements().artifact_format == "pipeline":
        if config.optimizer.name == "adamw":
            remedies.append("optimizer.name=adafactor")
        remedies.append("method.kind=lora (a hundredth of the weights is trained)")
    size = config.data.size
    remedies.append(f"a data.size below {size}" if size else "a data.size below the base's")
    return remedies


@contextlib.contextmanager
def _advised(what: str, remedies: Callable[[], list[str]]) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        place = "accelerator" if isinstance(error, torch.OutOfMemoryError) else "machine"
        raise UserError(
            f"The memory of the {place} is too small for {what}. Less is needed with, in this order: "
            f"{', '.join(remedies())}."
        ) from error


def memory_advice(config: RunConfig, method: Method) -> AbstractContextManager[None]:
    """A context in which running out of memory becomes a `UserError` that names smaller settings."""
    return _advised("this run", lambda: memory_remedies(config, method))


def picture_memory_advice(sampling: SamplingConfig, dtype: str) -> AbstractContextManager[None]:
    """The same for the pictures of a comparison on a base of `dtype`."""
    remedies = []
    if sampling.batch_size > 1:
        remedies.append("shared.sampling.batch_size=1")
    if not sampling.cpu_offload:
        remedies.append("shared.sampling.cpu_offload=true (with an accelerator)")
    if dtype == "float32":
        remedies.append("base.dtype=bfloat16")
    remedies.append(f"a data.size below {sampling.size}")
    return _advised("the comparison's pictures", lambda: remedies)
