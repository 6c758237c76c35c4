"""LoRA files as kohya's sd-scripts write them and A1111 and ComfyUI read them.

A module's name is its diffusers name with `_` for `.` behind a prefix of its network; of each there are
`.lora_down.weight`, `.lora_up.weight` and `.alpha`, and the update is alpha / rank · up · down
(`networks/lora.py` of https://github.com/kohya-ss/sd-scripts). LyCORIS adds `.dora_scale`, the norms that
the rows of the updated weight shall have. Its readers do not agree on it: LyCORIS takes it as PEFT does,
ComfyUI divides by the norms of the weight before the update, A1111 works on columns, diffusers drops it.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.artifact import TEXT_PREFIX, Artifact
from finetune.base import BasePipeline
from finetune.errors import ArtifactError
from finetune.export.headers import (
    Header,
    kohya_header,
    model_spec,
    version_of,
)
from finetune.export.low_rank import (
    Updates,
    collect_updates,
    text_path,
)
from finetune.export.original_names import unet_name, unet_parts
from finetune.families.base import ForeignNames

DORA_REMARK = (
    "This LoRA is a DoRA. Its magnitudes are in the file as dora_scale, which LyCORIS reads as trained; "
    "ComfyUI and A1111 normalise otherwise and diffusers drops it, so pictures will differ there. "
    "--format diffusers keeps it whole."
)
_SIDES = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "alpha": "alpha",
    "dora_scale": "magnitude",
}
_OTHER_ALGORITHMS = {"hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", "lora_mid": "Tucker LoCon"}


def kohya_name(names: ForeignNames, component: str, module: str) -> str:
    """The name of a module in a kohya file, for instance `lora_te_text_model_encoder_layers_0_mlp_fc1`."""
    path = text_path(module) if component in names.embedding_keys else module
    return f"{names.kohya_prefixes[component][0]}_{path.replace('.', '_')}"


def one_alpha(updates: Updates) -> Updates:
    """The same updates with one alpha per network: its most frequent one.

    diffusers 0.42 loses alphas that differ within a network (the `alpha_pattern` of its `get_peft_kwargs`
    names no module), so what differs goes into `up`.
    """
    common: dict[str, float] = {}
    for component in {component for component, _ in updates}:
        alphas = [update.alpha for place, update in updates.items() if place[0] == component]
        common[component] = Counter(alphas).most_common(1)[0][0]
    return {place: update.with_alpha(common[place[0]]) for place, update in updates.items()}


def to_kohya(updates: Updates, names: ForeignNames) -> dict[str, Tensor]:
    """Tensors of a kohya file. Raises `ArtifactError` for a network that the format has no name for."""
    state = {}
    for (component, module), update in one_alpha(updates).items():
        if component not in names.kohya_prefixes:
            raise ArtifactError(f"The kohya format has no name for the network {component}.")
        name = kohya_name(names, component, module)
        state[f"{name}.lora_down.weight"] = update.down
        state[f"{name}.lora_up.weight"] = update.up
        state[f"{name}.alpha"] = torch.tensor(update.alpha)
        if update.magnitude is not None:
            shape = (-1, 1, 1, 1) if update.up.ndim == 4 else (-1, 1)
            state[f"{name}.dora_scale"] = update.magnitude.reshape(shape)
    return state


def _prompt_width(updates: Updates) -> int | None:
    """Width of the prompt embeddings as cross-attention, else the text encoder, tells; None if neither."""
    for endings in (("attn2.to_k", "attn2.to_v"), ("self_attn.q_proj", "self_attn.k_proj")):
        for (_, module), update in updates.items():
            if module.endswith(endings):
                return int(update.down.shape[1])
    return None


def header_of(
    note: Artifact, updates: Updates, names: ForeignNames, title: str, state: Mapping[str, Tensor]
) -> Header:
    """Both kinds of header fields of a LoRA."""
    version = version_of(names, _prompt_width(updates))
    ranks = sorted({update.rank for update in updates.values()})
    alphas = sorted({update.alpha for update in one_alpha(updates).values()})
    return {
        **kohya_header(note, version, title, ranks=ranks, alphas=alphas),
        **model_spec(note, version, title, kind="lora", state=state),
    }


def modules_by_kohya_name(base: BasePipeline, names: ForeignNames) -> dict[str, tuple[str, str]]:
    """Every name by which a kohya file may call a module of `base` -> (component, module).

    Underscores cannot be turned back into dots by rule, so the base's own modules are asked. U-Net
    modules go by their original names too, as in files trained on SDXL.
    """
    found = {}
    for component, prefixes in names.kohya_prefixes.items():
        network: Any = base.modules[component]
        is_text = component in base.components.text_encoders
        parts = {}
        if component == "unet":
            with contextlib.suppress(ArtifactError):  # other blocks have no original names
                parts = unet_parts(network.config)
        for path, module in network.named_modules():
            if not isinstance(module, (nn.Linear, nn.Conv2d)):
                continue
            plain = path.removeprefix(TEXT_PREFIX)
            spellings = [text_path(plain) if is_text else plain, unet_name(plain, parts)]
            for prefix in prefixes:
                for spelling in filter(None, spellings):
                    found[f"{prefix}_{spelling.replace('.', '_')}"] = (component, plain)
    return found


def read_kohya(state: Mapping[str, Tensor], base: BasePipeline, source: Path) -> Updates:
    """Updates from a kohya file. Raises `ArtifactError` for one of another kind or for another base."""
    names = base.family.foreign_names
    if names is None:
        raise ArtifactError(
            f"kohya files cannot be read for the family {base.family.name} of {base.source}."
        )
    places = modules_by_kohya_name(base, names)
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    unknown = sorted({key.partition(".")[0] for key in state} - places.keys())
    if unknown:
        modules = {key.partition(".")[0] for key in state}
        raise ArtifactError(
            f"{source} was made for another base than {base.source}: {len(unknown)} of its {len(modules)} "
            f"modules do not exist there, the first is {unknown[0]}. Give the base it was trained on."
        )
    for key, tensor in state.items():
        name, _, side = key.partition(".")
        if side not in _SIDES:
            raise ArtifactError(f"{source} is {algorithm_of(state)}, which cannot be read.")
        parts.setdefault(places[name], {})[_SIDES[side]] = tensor
    for place, tensors in parts.items():
        scale, up = tensors.get("magnitude"), tensors.get("up")
        if scale is not None and up is not None and scale.shape[0] != up.shape[0]:
            raise ArtifactError(
                f"The dora_scale of {'.'.join(place)} in {source} has the shape {tuple(scale.shape)}, a "
                f"number per input; only one per output ({up.shape[0]}) can be read."
            )
    return collect_updates(parts, {})


def algorithm_of(state: Mapping[str, Tensor]) -> str:
    """What a file of low-rank updates holds, for messages."""
    for part, name in _OTHER_ALGORITHMS.items():
        if any(f".{part}" in key for key in state):
            return f"a {name}"
    return "no plain LoRA"


def remarks(updates: Updates) -> list[str]:
    """What the user should know of a kohya file of `updates`."""
    has_dora = any(update.magnitude is not None for update in updates.values())
    return [DORA_REMARK] if has_dora else []
