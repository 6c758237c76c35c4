"""Tensors on disk under the hash of everything that shaped them; never stale, only missing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_DIGEST = "digest"
"""Key in a file's header."""


def cache_key(**inputs: Any) -> str:
    """32 hex digits that stand for `inputs`; values must be JSON-serialisable."""
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _digest(tensors: dict[str, Tensor]) -> str:
    """Hash of names, types, shapes and content."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pixels_key(pixel_values: Tensor) -> str:
    """Hash of a picture's pixels."""
    return hashlib.blake2b(pixel_values.contiguous().numpy().tobytes(), digest_size=16).hexdigest()


def default_cache_folder() -> Path:
    """`$FINETUNE_CACHE`, or `finetune` in the user's cache folder."""
    if "FINETUNE_CACHE" in os.environ:
        return Path(os.environ["FINETUNE_CACHE"]).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "finetune"


class TensorCache:
    """A folder of safetensors files, shared by any number of runs at a time.

    A file that cannot be read, or whose content is not what was written, counts as missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Where the tensors of `key` are or would be."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors stored under `key`, or None."""
        try:
            with safe_open(self.path(key), "pt") as content:
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
                written = (content.metadata() or {}).get(_DIGEST)
        except (OSError, SafetensorError):
            return None
        return tensors if written == _digest(tensors) else None

    def put(
        self, key: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
    ) -> None:
        """Store `tensors`; a cache that cannot be written (read-only, full) is left as it is."""
        path = self.path(key)
        # Not the process's id: machines and containers that share a cache have the same ones.
        temporary = path.with_suffix(f".{secrets.token_hex(8)}.partial")
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(whole, temporary, {**(metadata or {}), _DIGEST: _digest(whole)})
            temporary.replace(path)
        except (OSError, SafetensorError):
            with contextlib.suppress(OSError):
                temporary.unlink()

    def get_or_make(self, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of `key`, made and stored if they are missing."""
        found = self.get(key)
        if found is None:
            found = make()
            self.put(key, found)
        return found
