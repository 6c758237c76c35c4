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


def cache_key(**inputs: Any) -> str:
    """32 hex digits that stand for `inputs`; values must be JSON-serialisable."""
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def pixels_key(pixel_values: Tensor) -> str:
    """Hash of a picture's pixels."""
    return hashlib.blake2b(pixel_values.contiguous().numpy().tobytes(), digest_size=16).hexdigest()


def digest_of(tensors: dict[str, Tensor]) -> str:
    """Hash of names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def default_cache_folder() -> Path:
    """`$FINETUNE_CACHE`, or `finetune` in the user's cache folder."""
    if "FINETUNE_CACHE" in os.environ:
        return Path(os.environ["FINETUNE_CACHE"]).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "finetune"


class TensorCache:
    """A folder of safetensors files, each with its own key and the hash of its values in its header.

    A file that cannot be read, lies under another key's name or is not what was written counts as missing.
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
                metadata = content.metadata() or {}
                names = list(content.keys())
                tensors = {name: content.get_tensor(name) for name in names}
        except (OSError, SafetensorError):
            return None
        whole = metadata.get("key") == key and metadata.get("digest") == digest_of(tensors)
        return tensors if whole else None

    def put(
        self, key: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
    ) -> None:
        """Store `tensors`; a cache that cannot be written (read-only, full) is left as it is."""
        path = self.path(key)
        # Not the process's id: machines and containers that share a cache have the same ones.
        temporary = path.with_suffix(f".{secrets.token_hex(8)}.partial")
        header = {**(metadata or {}), "key": key, "digest": digest_of(tensors)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, header)
            temporary.replace(path)
        except (OSError, SafetensorError):
            pass  # the next run makes it again
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def get_or_make(self, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of `key`, made and stored if they are missing."""
        found = self.get(key)
        if found is None:
            found = make()
            self.put(key, found)
        return found
