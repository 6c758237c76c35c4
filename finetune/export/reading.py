"""Files made elsewhere, read without running anything that is in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetune.errors import ArtifactError
from finetune.export.headers import Header

PICKLE_SUFFIXES = {".pt", ".bin", ".ckpt", ".pth"}


def read_safetensors(
    path: Path, *, whole_model_root: str | None = None
) -> tuple[dict[str, Tensor], Header]:
    """Tensors and header of a file. Raises `ArtifactError` if it cannot be read.

    A file with a key that begins with `whole_model_root` is left unread, its tensors are empty ones.
    """
    try:
        with safe_open(path, "pt") as content:
            names, header = list(content.keys()), content.metadata() or {}
            if whole_model_root and any(name.startswith(whole_model_root) for name in names):
                return dict.fromkeys(names, torch.empty(0)), header
            return {name: content.get_tensor(name) for name in names}, header
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read as a safetensors file: {error}") from error


def read_pickle(path: Path, *, allow_pickle: bool) -> dict[str, Any]:
    """Content of a pickle, tensors and plain values only. Raises `ArtifactError` without `allow_pickle`."""
    if not allow_pickle:
        raise ArtifactError(
            f"{path} is a pickle, which can run code when it is read. Convert it to .safetensors, or, if you "
            "trust who made it, give --allow-pickle; even then only tensors are read."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtifactError(
            f"{path} holds more than tensors or is damaged, so it is not read: {reason}"
        ) from error
    if not isinstance(content, dict) or not content:
        raise ArtifactError(f"{path} holds no named tensors, so it is no artifact.")
    return {str(key): value for key, value in content.items()}
