"""Low-rank updates of single modules: what all LoRA formats say in their own names, and diffusers' names.

A file's names and scales are turned into `LowRankUpdate`s here or in `kohya`, and those into another
file's, so that no format has to know another.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from finetune.artifact import TEXT_PREFIX, names_module
from finetune.base import BasePipeline
from finetune.errors import ArtifactError


@dataclass(frozen=True)
class LowRankUpdate:
    """The update alpha / rank · up · down of one module (with a magnitude: of its direction)."""

    down: Tensor
    """[rank, in], of a convolution [rank, in, k, k]."""
    up: Tensor
    """[out, rank], of a convolution [out, rank, 1, 1]."""
    alpha: float
    """Numerator of the scale; rsLoRA's factor sqrt(rank) is part of it."""
    magnitude: Tensor | None = None
    """DoRA's norms of the rows of the updated weight, [out]."""

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return int(self.down.shape[0])

    def with_alpha(self, alpha: float) -> LowRankUpdate:
        """The same update with another alpha: what the scale loses, `up` gains."""
        if alpha == self.alpha:
            return self
        up = (self.up.float() * (self.alpha / alpha)).to(self.up.dtype)
        return replace(self, up=up, alpha=alpha)


Updates = dict[tuple[str, str], LowRankUpdate]
"""(component, module name without `text_model.`) -> update."""

_NAMES = (
    (r"(?P<module>.+)\.lora_(?P<side>A|B)(\.default)?\.weight", ""),
    (r"(?P<module>.+)\.lora_linear_layer\.(?P<side>down|up)\.weight", ""),
    (r"(?P<module>.+)\.lora\.(?P<side>down|up)\.weight", ""),
    (r"(?P<module>.+)\.processor\.to_(?P<part>[qkv])_lora\.(?P<side>down|up)\.weight", ".to_{}"),
    (r"(?P<module>.+)\.processor\.to_(?P<part>out)_lora\.(?P<side>down|up)\.weight", ".to_out.0"),
    (r"(?P<module>.+)\.to_(?P<part>q|k|v|out)_lora\.(?P<side>down|up)\.weight", ".{}_proj"),
    (r"(?P<module>.+)\.(?P<side>lora_magnitude_vector)(\.weight)?", ""),
    (r"(?P<module>.+)\.(?P<side>alpha)", ""),
)
"""The spellings that diffusers has used, newest first, and what becomes of the part they name."""
_SIDES = {"A": "down", "B": "up", "lora_magnitude_vector": "magnitude"}


def text_path(module: str) -> str:
    """Name in files of a text encoder's module: `text_model.` before all but the projection."""
    return f"{TEXT_PREFIX}{module}" if module.startswith("encoder.") else module


def parse_diffusers_key(key: str) -> tuple[str, str, str] | None:
    """Component, module and "down", "up", "magnitude" or "alpha" of a key; None for another key."""
    component, _, name = key.partition(".")
    for pattern, ending in _NAMES:
        if match := re.fullmatch(pattern, name):
            groups = match.groupdict()
            module = groups["module"] + ending.format(groups.get("part"))
            side = _SIDES.get(groups["side"], groups["side"])
            return component, module.removeprefix(TEXT_PREFIX), side
    return None


def collect_updates(
    parts: Mapping[tuple[str, str], Mapping[str, Tensor]],
    default_alpha: Mapping[tuple[str, str], float],
) -> Updates:
    """Updates from their tensors; alpha is the file's, else `default_alpha`'s, else the rank."""
    updates: Updates = {}
    for place, tensors in parts.items():
        if not {"down", "up"} <= tensors.keys():
            raise ArtifactError(
                f"Of {'.'.join(place)} the file holds {', '.join(sorted(tensors))} but not both halves of "
                "the update; it is damaged or no LoRA."
            )
        down, up = tensors["down"], tensors["up"]
        if down.ndim not in (2, 4) or up.ndim not in (2, 4) or up.shape[1] != down.shape[0]:
            raise ArtifactError(
                f"The update of {'.'.join(place)} is of {tuple(up.shape)} and {tuple(down.shape)}, which "
                "cannot be multiplied; the file is damaged or of another kind."
            )
        alpha = default_alpha.get(place, float(down.shape[0]))
        if "alpha" in tensors:
            alpha = float(tensors["alpha"].flatten()[0])
        magnitude = tensors.get("magnitude")
        if magnitude is not None and magnitude.numel() != up.shape[0]:
            raise ArtifactError(
                f"The DoRA magnitude of {'.'.join(place)} has {magnitude.numel()} numbers for {up.shape[0]} "
                "outputs; the file is damaged or of another kind."
            )
        updates[place] = LowRankUpdate(
            down, up, alpha, None if magnitude is None else magnitude.flatten()
        )
    return updates


def read_diffusers(state: Mapping[str, Tensor], header: Mapping[str, str]) -> Updates:
    """Updates from a file in any spelling of diffusers.

    The scale comes from the adapter metadata in the header; without it alpha is the rank, as in
    `load_lora_weights`. Raises `ArtifactError` for tensors that belong to no LoRA.
    """
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in state.items():
        parsed = parse_diffusers_key(key)
        if parsed is None:
            raise ArtifactError(f"The tensor {key} belongs to no LoRA that can be read.")
        component, module, side = parsed
        parts.setdefault((component, module), {})[side] = tensor
    try:
        settings = json.loads(header.get("lora_adapter_metadata", "{}"))
        alphas = {
            place: scaled_alpha(settings, *place, rank=int(tensors["down"].shape[0]))
            for place, tensors in parts.items()
            if f"{place[0]}.lora_alpha" in settings and "down" in tensors
        }
    except (ValueError, TypeError, AttributeError, RecursionError, re.error) as error:
        raise ArtifactError(f"The file's adapter metadata cannot be read: {error}.") from error
    return collect_updates(parts, alphas)


def scaled_alpha(settings: Mapping[str, Any], component: str, module: str, *, rank: int) -> float:
    """Alpha of a module by PEFT's settings, times sqrt(rank) for rsLoRA.

    A pattern's keys are endings of the module's name; the first that fits counts
    (`peft.utils.other.get_pattern_key`).
    """
    alpha = float(settings[f"{component}.lora_alpha"])
    for ending, own in (settings.get(f"{component}.alpha_pattern") or {}).items():
        if any(names_module(ending, name) for name in (module, TEXT_PREFIX + module)):
            alpha = float(own)
            break
    return alpha * math.sqrt(rank) if settings.get(f"{component}.use_rslora") else alpha


def to_method(updates: Updates, base: BasePipeline) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings of the method "lora" and its state, so that it makes `updates` on `base`."""
    denoiser = base.family.denoiser_name
    rank = Counter(update.rank for update in updates.values()).most_common(1)[0][0]
    alpha = Counter(update.alpha for update in updates.values()).most_common(1)[0][0]
    targets = {
        is_text: tuple(
            dict.fromkeys(module for name, module in updates if (name != denoiser) == is_text)
        )
        for is_text in (False, True)
    }
    names = {place: ".".join(place) for place in updates}
    settings = {
        "kind": "lora",
        "rank": rank,
        "alpha": alpha,
        "target_modules": targets[False],
        "train_text_encoder": bool(targets[True]),
        "text_encoder_target_modules": targets[True],
        "rank_pattern": {names[p]: u.rank for p, u in updates.items() if u.rank != rank},
        "alpha_pattern": {names[p]: u.alpha for p, u in updates.items() if u.alpha != alpha},
        "use_dora": any(update.magnitude is not None for update in updates.values()),
    }
    state = {}
    for (component, module), update in updates.items():
        name = f"{component}.{module if component == denoiser else text_path(module)}"
        state[f"{name}.lora_A.weight"] = update.down.float()
        state[f"{name}.lora_B.weight"] = update.up.float()
        if update.magnitude is not None:
            shape = (1, -1, 1, 1) if update.up.ndim == 4 else (-1,)
            state[f"{name}.lora_magnitude_vector"] = update.magnitude.float().reshape(shape)
    return settings, state
