"""Safetensors headers that other tools show: ModelSpec 1.0.1 and kohya's `ss_*` fields.

Fields: https://github.com/Stability-AI/ModelSpec and `library/sai_model_spec.py`, `train_network.py` of
https://github.com/kohya-ss/sd-scripts. All values are strings, so lists and tables are JSON in a string.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from finetune.artifact import Artifact
from finetune.errors import ArtifactError
from finetune.families.base import ForeignNames, ModelVersion

Header = dict[str, str]


def version_of(names: ForeignNames, width: int | None) -> ModelVersion:
    """The version of a base whose prompt embeddings are `width` wide, as other tools take it."""
    return names.versions.get(width or 0, names.default_version)


def public_name(note: Artifact) -> str:
    """The base's name for files that are passed on: a Hub id whole, of a path the last part only."""
    source = str(note.base["source"])
    is_path = Path(source).is_absolute() or source.startswith((".", "~")) or source.count("/") > 1
    return Path(source).name if is_path else source


def model_spec(
    note: Artifact, version: ModelVersion, title: str, *, kind: str, state: Mapping[str, Tensor]
) -> Header:
    """`modelspec.*` fields; `kind` is "lora", "textual-inversion" or "" for a whole model."""
    prediction_type = note.prediction_type or "epsilon"
    architecture = version.architecture[prediction_type]
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/{kind}" if kind else architecture,
        "modelspec.implementation": (
            "diffusers" if kind == "lora" else "https://github.com/Stability-AI/generative-models"
        ),
        "modelspec.title": title,
        "modelspec.resolution": f"{note.size}x{note.size}",
        "modelspec.description": f"{note.method['kind']} on {public_name(note)}, by {note.made_by}",
        "modelspec.trigger_phrase": note.subject.strip(),
        "modelspec.prediction_type": "v" if prediction_type == "v_prediction" else "epsilon",
        "modelspec.hash_sha256": f"0x{tensor_hash(state)}",
    }


def kohya_header(
    note: Artifact, version: ModelVersion, title: str, *, ranks: list[int], alphas: list[float]
) -> Header:
    """`ss_*` fields of a LoRA; A1111 shows the trigger words from `ss_tag_frequency`."""
    subject = note.subject.strip()
    return {
        "ss_v2": str(version.kohya == "sd_v2"),
        "ss_base_model_version": version.kohya,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(ranks[0]) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(alphas[0]) if len(alphas) == 1 else "Dynamic",
        "ss_network_args": json.dumps({}),
        "ss_output_name": title,
        "ss_sd_model_name": public_name(note),
        "ss_resolution": f"({note.size}, {note.size})",
        "ss_tag_frequency": json.dumps({f"1_{subject}": {subject: 1}}),
    }


def tensor_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the bytes of all tensors in the order of their names, 64 hex digits."""
    digest = hashlib.sha256()
    for _, tensor in sorted(state.items()):
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(content.numpy().data)
    return digest.hexdigest()


def trigger_phrase(header: Mapping[str, str]) -> str | None:
    """What stands for the subject in prompts, by a file's header; None where it does not say."""
    if phrase := header.get("modelspec.trigger_phrase"):
        return phrase
    try:
        folders = json.loads(header.get("ss_tag_frequency", "{}"))
        tags = {tag for frequencies in folders.values() for tag in frequencies}
    except (ValueError, AttributeError, TypeError, RecursionError):
        return None
    return str(tags.pop()).strip() if len(tags) == 1 else None


def save_tensors(state: Mapping[str, Tensor], path: Path, header: Header) -> None:
    """Write a safetensors file, whole or not at all. Raises `ArtifactError` where that is impossible."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        save_file(tensors, partial, {"format": "pt", **header})
        partial.chmod(mode)  # safetensors makes files that their owner alone may read
        partial.replace(path)
    except SafetensorError as error:
        raise ArtifactError(
            f"{path} could not be written: {error}. Free some space or choose another folder."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
