"""Names of Stable Diffusion's original code for the weights of diffusers networks, told from their configs.

The rule follows from how the original networks number their blocks, so it holds for any number of levels,
layers and attention blocks; `diffusers.loaders.single_file_utils` reads the same names back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from finetune.artifact import TEXT_PREFIX
from finetune.errors import ArtifactError

Config = Mapping[str, Any]

_UNET_PARTS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPEN_CLIP_WEIGHTS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}


def unet_parts(config: Config) -> dict[str, str]:
    """Diffusers module -> original module, down to whole residual and attention blocks.

    Raises `ArtifactError` for a U-Net of blocks that the original code does not have.
    """
    down, up = list(config["down_block_types"]), list(config["up_block_types"])
    layers = config["layers_per_block"]
    foreign = {*down, *up} - _BLOCKS
    if foreign or not isinstance(layers, int):
        what = ", ".join(sorted(foreign)) or f"layers_per_block {layers}"
        raise ArtifactError(f"The original layout of Stable Diffusion has no name for {what}.")
    names, block = dict(_UNET_PARTS), 1
    for level, kind in enumerate(down):
        for layer in range(layers):
            names[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{block}.0"
            if kind.startswith("CrossAttn"):
                names[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{block}.1"
            block += 1
        if level < len(down) - 1:
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{block}.0.op"
            block += 1
    block = 0
    for level, kind in enumerate(up):
        has_attention = kind.startswith("CrossAttn")
        for layer in range(layers + 1):
            names[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{block}.0"
            if has_attention:
                names[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{block}.1"
            block += 1
        if level < len(up) - 1:
            place = 2 if has_attention else 1
            names[f"up_blocks.{level}.upsamplers.0.conv"] = (
                f"output_blocks.{block - 1}.{place}.conv"
            )
    return names


def unet_name(name: str, parts: Mapping[str, str]) -> str | None:
    """Original name of a U-Net module or weight; None where there is none."""
    pieces = name.split(".")
    for count in range(len(pieces), 0, -1):
        part, rest = ".".join(pieces[:count]), ".".join(pieces[count:])
        if part not in parts:
            continue
        if ".resnets." in part:
            inner, _, kind = rest.partition(".")
            if inner not in _UNET_RESNET:
                return None
            rest = f"{_UNET_RESNET[inner]}.{kind}" if kind else _UNET_RESNET[inner]
        return f"{parts[part]}.{rest}" if rest else parts[part]
    return None


def vae_name(name: str, num_levels: int) -> str:
    """Original name of a weight of `AutoencoderKL`."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"\.(down|up)samplers\.0\.", r".\1sample.", name)
    name = re.sub(r"down_blocks\.(\d+)", r"down.\1", name)
    # The original decoder counts its levels from the picture's side.
    name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{num_levels - 1 - int(m.group(1))}", name)
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m.group(1)) + 1}", name)
    name = re.sub(r"resnets\.(\d+)", r"block.\1", name)
    before, attention, inner = name.partition("mid_block.attentions.0.")
    if attention:
        part, _, kind = inner.rpartition(".")
        return f"{before}mid.attn_1.{_VAE_ATTENTION[part]}.{kind}"
    return name


def unet_to_original(state: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """A U-Net's weights under original names. Raises `ArtifactError` where one has none."""
    parts = unet_parts(config)
    names = {key: unet_name(key, parts) for key in state}
    _require_names(names.items(), "U-Net")
    return {str(names[key]): tensor for key, tensor in state.items()}


def vae_to_original(state: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """An autoencoder's weights under original names; its attention projections are 1 × 1 convolutions."""
    result = {}
    for key, tensor in state.items():
        name = vae_name(key, len(config["block_out_channels"]))
        is_projection = ".mid.attn_1." in name and name.endswith(".weight") and tensor.ndim == 2
        result[name] = tensor[:, :, None, None] if is_projection else tensor
    return result


def clip_to_original(state: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """A CLIP text encoder's weights without the prefix `text_model.`, which the root brings."""
    return {key.removeprefix(TEXT_PREFIX): tensor for key, tensor in state.items()}


def open_clip_name(key: str) -> str | None:
    """OpenCLIP's name of a CLIP text encoder's weight; None where there is none."""
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key)
    if match is None:
        return _OPEN_CLIP_WEIGHTS.get(key)
    layer, part, kind = match.groups()
    block = f"transformer.resblocks.{layer}"
    if part == "self_attn.q_proj":
        return f"{block}.attn.in_proj_{kind}"
    return f"{block}.{_OPEN_CLIP_LAYER[part]}.{kind}" if part in _OPEN_CLIP_LAYER else None


def open_clip_to_original(state: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """A CLIP text encoder's weights as OpenCLIP has them: query, key and value are one matrix."""
    plain = clip_to_original(state, config)
    result = {}
    names = {key: open_clip_name(key) for key in plain if not re.search(r"\.[kv]_proj\.", key)}
    _require_names(names.items(), "text encoder")
    for key, name in names.items():
        tensor = plain[key]
        if ".q_proj." in key:
            tensor = torch.cat([plain[key.replace(".q_proj.", f".{p}_proj.")] for p in "qkv"])
        result[str(name)] = tensor.T if name == "text_projection" else tensor
    return result


def _require_names(names: Iterable[tuple[str, str | None]], what: str) -> None:
    missing = [key for key, name in names if name is None]
    if missing:
        raise ArtifactError(
            f"The original layout of Stable Diffusion has no name for {len(missing)} weights of the "
            f"{what}, the first is {missing[0]}. Use --format diffusers."
        )
