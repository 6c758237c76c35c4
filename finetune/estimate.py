"""What a run will cost, told from configurations alone: sizes, memory, arithmetic.

Networks of the right shapes are made on the meta device, where tensors have sizes and no content; the method
is prepared on them, and one step, forward and backward, is played through by the very code that trains.
Storages that are alive together give the peak, matrix products and convolutions give the operations.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from data_prep.batch import Batch, Moments
from data_prep.captions import fill_template
from finetune.base import BasePipeline
from finetune.config import RunConfig
from finetune.loss import Objective
from finetune.method import Method
from finetune.optim import STATE_BYTES
from finetune.speed import checkpointed

META = torch.device("meta")


@dataclass(frozen=True)
class Estimate:
    """The cost of a run; bytes and floating-point operations."""

    trainable_parameters: dict[str, int]
    """Numbers that are trained, by group."""
    artifact_bytes: int
    """Weights of the artifact; headers and notes come on top."""
    weights_bytes: int
    """Networks on the device while training, with what the method put there."""
    state_bytes: int
    """The optimizer's state and the moving average."""
    step_bytes: int
    """Most that is alive beside both: activations and gradients."""
    step_flops: int
    """Operations of an optimizer step, forward and backward; a multiplication and an addition are two."""

    @property
    def peak_bytes(self) -> int:
        """Peak memory of a training step."""
        return self.weights_bytes + self.state_bytes + self.step_bytes

    def lines(self) -> list[str]:
        """The estimate in words."""
        groups = ", ".join(f"{name} {count:,}" for name, count in self.trainable_parameters.items())
        total = sum(self.trainable_parameters.values())
        parts = (self.peak_bytes, self.weights_bytes, self.state_bytes, self.step_bytes)
        peak, weights, state, step = (f"{size / 2**30:.2f}" for size in parts)
        return [
            f"Trainable parameters: {total:,} ({groups}).",
            f"Artifact: {self.artifact_bytes / 2**20:,.2f} MiB of weights.",
            f"Memory of a training step: about {peak} GiB (weights {weights}, optimizer {state}, activations "
            f"and gradients {step}), told from tensor sizes; the process itself and what kernels and "
            "allocator set aside come on top.",
            f"Arithmetic: {self.step_flops / 1e12:,.3f} TFLOP per optimizer step, the products and "
            "convolutions of its forward and backward passes.",
        ]


class LiveMemory(TorchDispatchMode):
    """Bytes of the storages that operations have made and that are still alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Do not count what there was before."""
        self._known.update(id(tensor.untyped_storage()) for tensor in tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if id(storage) not in self._known:
                self._known.add(id(storage))
                self.live += storage.nbytes()
                weakref.finalize(storage, self._forget, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output: Tensor = fused(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return output


@contextmanager
def fused_attention() -> Iterator[None]:
    """Within the context attention keeps no matrix of weights; on the meta device torch's own would.

    A mode for torch functions would not do: it is off in what checkpointing computes again.
    """
    own = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _fused_attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (width + value[3])


def _attention_backward_flops(
    grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any
) -> int:
    """Five products: weights again, and the gradients of weights, values, keys, queries."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (3 * width + 2 * value[3])


ATTENTION_FLOPS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
"""Operations of the fused attention, which torch's counter does not know."""


def _tensors(network: nn.Module) -> list[Tensor]:
    """What a file of the network holds; shared tensors once."""
    return list({id(t): t for t in network.state_dict(keep_vars=True).values()}.values())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def network_bytes(base: BasePipeline, names: Iterable[str], quantization: str | None) -> int:
    """Memory of networks; the quantised ones' linear layers count with their few bits."""
    total = 0.0
    for name in names:
        network = base.modules[name]
        total += _bytes(_tensors(network))
        if quantization is not None and name in base.family.large_components:
            linear = (m.weight for m in network.modules() if isinstance(m, nn.Linear))
            total -= sum(w.nbytes - w.numel() * QUANTIZED_BYTES[quantization] for w in linear)
    return int(total)


QUANTIZED_BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Bytes per weight; NF4 has a float32 scale for each 64."""


def _micro_batch(base: BasePipeline, method: Method, config: RunConfig, size: int) -> Batch:
    """A micro-batch of the shapes of the run's."""
    training, prior, noun = config.training, config.prior, config.data.class_noun
    subject = method.subject_phrase(noun or "")
    rows = training.batch_size // training.gradient_accumulation_steps
    with_class = prior.kind != "none" and method.requirements().uses_class_examples
    own = config.data.prompt if isinstance(config.data.prompt, str) else config.data.prompt[0]
    prompts = [
        fill_template(template, subject=subject, class_noun=noun, field=field)
        for field, template in (
            ("data.prompt", own),
            *([("prior.prompt", prior.prompt)] if with_class else []),
        )
        for _ in range(rows)
    ]
    latents = torch.zeros(len(prompts), *base.family.latent_shape(base.components, size))
    return Batch(
        Moments(latents, latents),
        prompts,
        torch.arange(len(prompts)) >= rows,
        list(range(len(prompts))),
        0,
        [(size, size)] * len(prompts),
        [(0, 0)] * len(prompts),
    )


@contextmanager
def _as_autocast(base: BasePipeline, names: list[str], *, precision: str) -> Iterator[int]:
    """Networks in the precision of their arithmetic; yields the bytes of the casts that autocast keeps.

    There is no autocast on the meta device. Without its cache every use of a float32 weight keeps its cast.
    """
    casts = 0
    changed: list[tuple[nn.Parameter, Tensor]] = []
    if precision != "float32":
        for parameter in (p for name in names for p in base.modules[name].parameters()):
            if parameter.dtype == torch.float32:
                casts += 2 * parameter.numel()
                changed.append((parameter, parameter.data))
                parameter.data = parameter.data.to(getattr(torch, precision))
    try:
        yield casts
    finally:
        for parameter, data in changed:
            parameter.data, parameter.grad = data, None


def estimate(
    base: BasePipeline, method: Method, config: RunConfig, *, device: torch.device
) -> Estimate:
    """The cost of a run on `device`; `base` is on the meta device. Leaves `method` detached."""
    training = config.training
    size = config.data.size or base.family.default_size(base.components)
    everything = device.type == "cpu" or not training.offload
    batch = _micro_batch(base, method, config, size)
    before = {name: network_bytes(base, [name], config.base.quantization) for name in base.modules}
    try:
        with META, LiveMemory() as prepared:
            prepared.ignore(t for module in base.modules.values() for t in _tensors(module))
            method.prepare(base)
        running = [base.family.denoiser_name]
        if not base.text_is_frozen:
            running += base.components.text_encoders
        groups = method.parameter_groups(base)
        counts = {g.name: sum(p.numel() for p in g.parameters.values()) for g in groups}
        trained = sum(counts.values())
        if method.requirements().artifact_format == "pipeline":
            shipped = _bytes(t for m in base.modules.values() for t in _tensors(m))
        else:
            shipped = _bytes(method.state_dict(base).values())
        with _as_autocast(base, running, precision=training.precision) as casts:
            live, flops = _play(base, method, config, batch)
        average = 4 if training.ema_decay is not None else 0
        gradients = 4 * trained
        waiting = gradients if training.gradient_accumulation_steps > 1 else 0
        # The optimizer's step needs about one number more for each that it trains.
        step = max(live + casts + waiting, 2 * gradients)
        return Estimate(
            trainable_parameters=counts,
            artifact_bytes=shipped,
            weights_bytes=prepared.live
            + sum(before[n] for n in (before if everything else running)),
            state_bytes=math.ceil((STATE_BYTES[config.optimizer.name] + average) * trained),
            step_bytes=step,
            step_flops=flops * training.gradient_accumulation_steps,
        )
    finally:
        method.detach(base)


def _play(base: BasePipeline, method: Method, config: RunConfig, batch: Batch) -> tuple[int, int]:
    """Peak of live bytes and operations of a micro-step."""
    objective = Objective(config.loss, 0, config.prior.kind == "base_prediction")
    if base.text_is_frozen:
        base.encode_prompts(batch.prompts)
    flops = FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS)
    checkpointing = checkpointed(base) if config.training.gradient_checkpointing else nullcontext()
    with checkpointing, flops, LiveMemory() as memory, fused_attention():
        memory.ignore(t for module in base.modules.values() for t in _tensors(module))
        method.compute_loss(base, batch, objective).loss.backward()
    for parameter in base.trainable_parameters().values():
        parameter.grad = None
    return memory.peak, flops.get_total_flops()
