"""Textual Inversion files of A1111 and ComfyUI: one safetensors file, whose name is the trigger word.

A Stable Diffusion embedding is the one key `emb_params` [n, D]; an SDXL embedding is `clip_l` and `clip_g`
(`modules/textual_inversion/textual_inversion.py` of A1111, `comfy/sd1_clip.py` of ComfyUI).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.artifact import Artifact
from finetune.errors import ArtifactError
from finetune.export.headers import Header, model_spec, version_of
from finetune.families.base import ForeignNames

SDXL_KEYS = {"clip_l", "clip_g"}
"""Keys of embedding files of two text encoders."""


def to_a1111(rows: Mapping[str, Tensor], names: ForeignNames) -> dict[str, Tensor]:
    """Tensors of an embedding file, given the rows [n, D] or [D] of each text encoder."""
    return {
        names.embedding_keys[encoder]: tensor[None] if tensor.ndim == 1 else tensor
        for encoder, tensor in rows.items()
    }


def header_of(
    note: Artifact, names: ForeignNames, title: str, state: Mapping[str, Tensor]
) -> Header:
    """ModelSpec fields of an embedding; its trigger word is the file's name."""
    width = int(next(iter(state.values())).shape[-1])
    spec = model_spec(note, version_of(names, width), title, kind="textual-inversion", state=state)
    return {**spec, "modelspec.trigger_phrase": title}


def rows_of(content: Mapping[str, Any], names: ForeignNames, source: Path) -> dict[str, Tensor]:
    """Rows [n, D] of an embedding file, by text encoder.

    Understood are A1111's own keys, diffusers' and the first A1111 form (`string_to_param`). Raises
    `ArtifactError` for another family's file and for what is no embedding.
    """
    keys = set(names.embedding_keys.values())
    if set(content) <= SDXL_KEYS and not keys <= SDXL_KEYS:
        raise ArtifactError(
            f"{source} is an embedding for SDXL ({', '.join(sorted(content))}), not for this base."
        )
    if len(keys) > 1:
        if set(content) != keys:
            raise ArtifactError(
                f"{source} is no embedding for this base: {', '.join(sorted(content)[:3])} given, "
                f"{', '.join(sorted(keys))} expected."
            )
        rows = {e: _as_rows(content[key], source) for e, key in names.embedding_keys.items()}
        if len({len(tensor) for tensor in rows.values()}) > 1:
            raise ArtifactError(
                f"{source} is no embedding: its text encoders have different numbers of rows."
            )
        return rows
    values = content.get("string_to_param", content)
    if not isinstance(values, Mapping):
        raise ArtifactError(f"{source} is no embedding: its string_to_param is no table.")
    if len(values) != 1:
        raise ArtifactError(
            f"{source} is no embedding that can be read: it holds {len(values)} tensors, one is expected."
        )
    (value,) = values.values()
    return {encoder: _as_rows(value, source) for encoder in names.embedding_keys}


def _as_rows(value: Any, source: Path) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim not in (1, 2):
        raise ArtifactError(
            f"{source} is no embedding: one row or several of numbers are expected."
        )
    rows = value.detach()
    return rows[None] if rows.ndim == 1 else rows


def to_method(
    rows: Mapping[str, Tensor], names: ForeignNames, token: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings of the method "textual_inversion" and its state, so that `token` stands for `rows`."""
    num_vectors = len(next(iter(rows.values())))
    settings = {
        "kind": "textual_inversion",
        "placeholder_token": token,
        "num_vectors": num_vectors,
        "initializer_token": "a",  # is overwritten; every CLIP vocabulary has single letters
    }
    keys = names.row_keys(token)
    return settings, {
        keys[encoder]: (tensor[0] if num_vectors == 1 else tensor).float()
        for encoder, tensor in rows.items()
    }
