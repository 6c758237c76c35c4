"""Whether low-rank updates made elsewhere fit a base, told from shapes before anything is computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from finetune.artifact import TEXT_PREFIX
from finetune.base import BasePipeline
from finetune.errors import ArtifactError
from finetune.export.low_rank import LowRankUpdate, Updates
from finetune.families import FAMILIES


def fit_updates(updates: Updates, base: BasePipeline, source: Path) -> Updates:
    """`updates` in the shapes of the base's modules; a 1 × 1 convolution and a matrix are the same.

    Raises `ArtifactError`, naming the first module that does not fit and what the file was made for.
    """
    fitted, wrong = {}, []
    magnitudes = sum(update.magnitude is not None for update in updates.values())
    if 0 < magnitudes < len(updates):
        raise ArtifactError(
            f"{source} has a DoRA magnitude for {magnitudes} of {len(updates)} modules; for all or none is "
            "expected."
        )
    weights = _weights(base)
    for (component, module), update in updates.items():
        weight = weights.get((component, module))
        if weight is None:
            raise ArtifactError(
                f"{source} was made for another base than {base.source}: it updates {component}.{module}, "
                "which does not exist there. Give the base it was trained on."
            )
        reshaped = _reshaped(update, weight)
        if reshaped is None:
            wrong.append((module, update, weight, f"{component}.{module}"))
        else:
            fitted[component, module] = reshaped
    if wrong:
        # Cross-attention tells best, because its width is the text encoder's.
        _, update, weight, name = next((w for w in wrong if "attn2.to_k" in w[0]), wrong[0])
        raise ArtifactError(
            f"{source} was made for another base than {base.source}: its update of {name} is "
            f"{update.down.shape[1]} → {update.up.shape[0]}, that module is {weight.shape[1]} → "
            f"{weight.shape[0]}{_made_for(name, int(update.down.shape[1]))}. Give the base it was trained on."
        )
    return fitted


def _weights(base: BasePipeline) -> dict[tuple[str, str], Tensor]:
    """Weights of all matrices and convolutions, named as in `Updates`."""
    return {
        (component, name.removeprefix(TEXT_PREFIX)): module.weight
        for component, network in base.modules.items()
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }


def _reshaped(update: LowRankUpdate, weight: Tensor) -> LowRankUpdate | None:
    """The update in the shapes of `weight` [out, in] or [out, in, k, k]; None where it does not fit."""
    rank, outputs = update.rank, weight.shape[0]
    if update.up.numel() != outputs * rank or update.down.numel() != rank * weight[0].numel():
        return None
    ones = [1] * (weight.ndim - 2)
    return replace(
        update,
        down=update.down.reshape(rank, *weight.shape[1:]),
        up=update.up.reshape(outputs, rank, *ones),
    )


def _made_for(name: str, width: int) -> str:
    if not name.endswith(("attn2.to_k", "attn2.to_v")):
        return ""
    for family in FAMILIES:
        if family.foreign_names and width in family.foreign_names.versions:
            return f", so it is for {family.foreign_names.versions[width].title}"
    return ""
