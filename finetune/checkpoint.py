"""Everything needed to resume: written whole or not at all, verified when read, free of pickle.

A checkpoint is a folder `step-000100` that holds `tensors.safetensors`, `state.json` and, written
last, `manifest.json` with the size and SHA-256 of both. It is prepared under another name and then
renamed, so a folder of the right name with a manifest that holds is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune.errors import CheckpointError

MANIFEST = "manifest.json"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that takes the name `target` when the block ends well, else vanishes.

    An existing `target` is replaced only then. A full disk or a failed write becomes a
    `CheckpointError` that names the folder; what was there before is untouched.
    """
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                _sync(path)
        if target.exists():
            outgoing = target.with_name(f".{target.name}.outgoing")
            shutil.rmtree(outgoing, ignore_errors=True)
            target.rename(outgoing)
            temporary.rename(target)
            shutil.rmtree(outgoing)
        else:
            temporary.rename(target)
        _sync(target.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"Could not write {target}: {error}. Free some space or choose another folder; "
            "what was there before is untouched."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], *, keep: int = 2
) -> Path:
    """Write `step-<step>` into `folder`, then remove all but the newest `keep` checkpoints."""
    target = folder / f"step-{step:06d}"
    with atomic_folder(target) as temporary:
        save_file(
            {k: v.detach().contiguous() for k, v in tensors.items()},
            temporary / "tensors.safetensors",
        )
        (temporary / "state.json").write_text(json.dumps({"step": step, **state}, indent=1))
        manifest = {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(temporary.iterdir())
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return target


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None if it is whole."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError):
        return f"{checkpoint / MANIFEST} is missing or unreadable"
    for name, expected in manifest.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != expected["bytes"]:
            return f"{path} is missing or has the wrong size"
        if _sha256(path) != expected["sha256"]:
            return f"{path} has changed since it was written"
    return None


def latest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint in `folder` (or None), and what is wrong with newer ones."""
    problems: list[str] = []
    for checkpoint in sorted(folder.glob("step-*"), reverse=True):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint, problems
        problems.append(problem)
    return None, problems


def load_checkpoint(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a checkpoint. Raises `CheckpointError` if it is damaged."""
    problem = damage(checkpoint)
    if problem is not None:
        raise CheckpointError(f"{problem}. Resume from another checkpoint or start again.")
    return load_file(checkpoint / "tensors.safetensors"), json.loads(
        (checkpoint / "state.json").read_text()
    )


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with `prefix/` before every key, so that several mappings share one file."""
    return {f"{prefix}/{key}": value for key, value in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part of `tensors` written with `with_prefix(prefix, ...)`."""
    head = f"{prefix}/"
    return {key[len(head) :]: value for key, value in tensors.items() if key.startswith(head)}
