"""A fully fine-tuned pipeline as one safetensors file in the layout of the original Stable Diffusion code.

What the layout has no place for - schedule, prediction type, the autoencoder's scaling factor, the tokenizer
- a reader takes from the configuration that it knows for the version, or is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from finetune.artifact import Artifact
from finetune.errors import ArtifactError
from finetune.export.headers import Header, model_spec, version_of
from finetune.export.original_names import (
    clip_to_original,
    open_clip_to_original,
    unet_to_original,
    vae_to_original,
)
from finetune.families.base import ForeignNames

Convert = Callable[[Mapping[str, Tensor], Mapping[str, Any]], dict[str, Tensor]]
_NETWORKS: dict[str, Convert] = {"unet": unet_to_original, "vae": vae_to_original}


def read_config(folder: Path, component: str) -> dict[str, Any]:
    """Configuration of a network of a diffusers folder. Raises `ArtifactError`."""
    path = folder / component / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    return config


def read_weights(folder: Path, component: str) -> dict[str, Tensor]:
    """Weights of a network of a diffusers folder. Raises `ArtifactError`."""
    state: dict[str, Tensor] = {}
    try:
        for path in sorted((folder / component).glob("*.safetensors")):
            state.update(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{folder / component} cannot be read: {error}") from error
    if not state:
        raise ArtifactError(f"{folder / component} holds no .safetensors file.")
    return state


def to_single_file(folder: Path, names: ForeignNames) -> dict[str, Tensor]:
    """Tensors of a single-file checkpoint of the diffusers pipeline in `folder`.

    A text encoder with the activation GELU is OpenCLIP's, one with quick GELU is OpenAI's; a reader tells
    them apart by the names of the weights. Raises `ArtifactError` for networks without original names.
    """
    result: dict[str, Tensor] = {}
    convert: Convert
    for component in {**names.single_file_roots, **names.open_clip_roots}:
        config = read_config(folder, component)
        is_open_clip = (
            config.get("hidden_act") == "gelu" or component not in names.single_file_roots
        )
        if component in names.open_clip_roots and is_open_clip:
            root, convert = names.open_clip_roots[component], open_clip_to_original
        else:
            root = names.single_file_roots[component]
            convert = _NETWORKS.get(component, clip_to_original)
        for key, tensor in convert(read_weights(folder, component), config).items():
            result[f"{root}{key}"] = tensor
    return result


def header_of(
    note: Artifact, folder: Path, names: ForeignNames, title: str, state: Mapping[str, Tensor]
) -> Header:
    """ModelSpec fields of a whole model."""
    version = version_of(names, read_config(folder, "unet").get("cross_attention_dim"))
    return model_spec(note, version, title, kind="", state=state)


def remarks(note: Artifact, folder: Path, names: ForeignNames) -> list[str]:
    """What another tool has to be told, because the file has no place for it."""
    vae = read_config(folder, "vae")
    found = []
    scale = vae.get("scaling_factor")
    if (vae["latent_channels"], scale) != (4, names.vae_scaling_factor):
        found.append(f"an autoencoder of {vae['latent_channels']} channels scaled by {scale}")
    if note.prediction_type == "v_prediction":
        found.append("v-prediction")
    if not found:
        return []
    return [
        f"The layout does not say that this model has {' and '.join(found)}; a reader that assumes otherwise "
        "has to be told. diffusers takes it from config=, a diffusers folder of the same base."
    ]
