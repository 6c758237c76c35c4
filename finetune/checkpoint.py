"""Everything needed to resume: written whole or not at all, verified when read, free of pickle.

A checkpoint is a folder `step-000100` that holds `tensors.safetensors`, `state.json`, `manifest.json` with
the size and SHA-256 of both and, written last, `complete` with the SHA-256 of the manifest. It is prepared
under another name and renamed when it is on the disk. So whatever is cut short, changed or missing is
found, and named, before anything is read; earlier checkpoints go only when a later one is complete.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune.errors import CheckpointError
from finetune.files import (
    atomic_folder,
    read_json,
    remove_folder,
    require_space,
    sha256_of,
    write_text,
)

TENSORS, STATE, MANIFEST, MARKER = "tensors.safetensors", "state.json", "manifest.json", "complete"
_HEADER_BYTES = 512
"""Room for a tensor's entry in the header, and for what else is written per tensor."""


def step_of(path: Path) -> int | None:
    """Optimizer steps done when the checkpoint `path` was written; None for a folder that is none."""
    match = re.fullmatch(r"step-(\d{6,12})", path.name)
    return int(match.group(1)) if match else None


def _steps(folder: Path) -> list[Path]:
    """Folders of checkpoints, whole or not, oldest first."""
    found = [(step, path) for path in folder.glob("step-*") if (step := step_of(path)) is not None]
    return [path for _, path in sorted(found)]


def sweep(folder: Path) -> None:
    """Remove what was being written or removed when a run was killed."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def needed_bytes(tensors: dict[str, Tensor]) -> int:
    """Room that a checkpoint of `tensors` takes on the disk, rounded up."""
    content = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return content + _HEADER_BYTES * (len(tensors) + 32)


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], *, keep: int = 2
) -> Path:
    """Write `step-<step>` into `folder`, then remove all but the newest `keep` checkpoints.

    Raises `CheckpointError`, with what is needed and what there is, if it cannot be written; earlier
    checkpoints are untouched then.
    """
    target = folder / f"step-{step:06d}"
    sweep(folder)
    num_bytes = needed_bytes(tensors)
    require_space(target, num_bytes)
    with atomic_folder(target, needed_bytes=num_bytes) as temporary:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, temporary / TENSORS)
        (temporary / STATE).write_text(json.dumps({"step": step, **state}, indent=1))
        manifest = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in sorted(temporary.iterdir())
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
    try:
        write_text(target / MARKER, sha256_of(target / MANIFEST) + "\n")
    except CheckpointError:
        with contextlib.suppress(OSError):
            remove_folder(target)
        raise
    checkpoints = _steps(folder)
    complete = [path for path in checkpoints if (path / MARKER).is_file()]
    for path in checkpoints:
        if path not in complete[-keep:]:
            remove_folder(path)
    return target


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None if it is whole."""
    manifest_path, marker = checkpoint / MANIFEST, checkpoint / MARKER
    try:
        expected = marker.read_bytes() if marker.is_file() else b""
        if expected != f"{sha256_of(manifest_path)}\n".encode():
            what = "does not belong to" if expected else "is missing, so writing never ended; see"
            return f"{marker} {what} {manifest_path}"
        manifest = read_json(manifest_path)
        if set(manifest) != {TENSORS, STATE}:
            return f"{manifest_path} names other files than {TENSORS} and {STATE}"
        for name, entry in manifest.items():
            path = checkpoint / name
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                return f"{path} is missing or has the wrong size"
            if sha256_of(path) != entry["sha256"]:
                return f"{path} has changed since it was written"
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"{manifest_path} is missing or unreadable ({type(error).__name__})"
    return None


def latest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint in `folder` (or None), and what is wrong with newer ones."""
    problems: list[str] = []
    for checkpoint in reversed(_steps(folder)):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint, problems
        problems.append(problem)
    return None, problems


def remove_later(checkpoint: Path) -> None:
    """Remove the (damaged) checkpoints newer than `checkpoint`, so that they are not kept for good ones."""
    steps = _steps(checkpoint.parent)
    for path in steps[steps.index(checkpoint) + 1 :]:
        remove_folder(path)


def load_checkpoint(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a checkpoint. Raises `CheckpointError` if it is damaged."""
    problem = damage(checkpoint)
    if problem is not None:
        raise CheckpointError(f"{problem}. Resume from another checkpoint or start again.")
    return load_file(checkpoint / TENSORS), read_json(checkpoint / STATE)


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with `prefix/` before every key, so that several mappings share one file."""
    return {f"{prefix}/{key}": value for key, value in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part of `tensors` written with `with_prefix(prefix, ...)`."""
    head = f"{prefix}/"
    return {key[len(head) :]: value for key, value in tensors.items() if key.startswith(head)}
