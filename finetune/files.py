"""Files and folders that are written whole or not at all, bounded when read, held by one run at a time."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from finetune.errors import CheckpointError

LOCK = ".lock"
"""In a folder that a run writes to; held while it does, and free again however the run ends."""
MAX_JSON_BYTES = 16_000_000
"""Notes, states and manifests are thousands of times smaller."""


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def lacks_room(error: BaseException | None) -> bool:
    """Whether an exception, or one that led to it, says that the disk is full or takes no writing."""
    if error is None:
        return False
    found = isinstance(error, OSError) and error.errno in _NO_ROOM
    if isinstance(error, SafetensorError):  # tells no number
        found = any(os.strerror(number) in str(error) for number in _NO_ROOM)
    return found or lacks_room(error.__cause__)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Return when a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def in_words(num_bytes: int) -> str:
    """A size for messages: "1.5 MB"."""
    value = float(num_bytes)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _space(folder: Path, needed_bytes: int) -> str:
    """How much is needed in `folder` and how much there is, as far as that can be told."""
    try:
        free = in_words(shutil.disk_usage(folder).free)
    except OSError:
        free = "an unknown amount"
    needed = f"{in_words(needed_bytes)} are needed and " if needed_bytes else ""
    return f"{needed}{free} free in {folder}"


def require_space(target: Path, needed_bytes: int) -> None:
    """Raise `CheckpointError` if `target`, of `needed_bytes`, does not fit onto its disk."""
    existing = next((path for path in target.parents if path.is_dir()), Path())
    if shutil.disk_usage(existing).free < needed_bytes:
        raise CheckpointError(
            f"There is no room for {target}: {_space(existing, needed_bytes)}. Make room or choose another "
            "folder; what was there before is untouched."
        )


@contextlib.contextmanager
def _failures(target: Path, needed_bytes: int = 0) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"Could not write {target}: {error}. {_space(target.parent, needed_bytes)}. Make room or choose "
            "another folder; what was there before is untouched."
        ) from error


@contextlib.contextmanager
def atomic_folder(target: Path, *, needed_bytes: int = 0) -> Iterator[Path]:
    """A temporary folder that takes the name `target` when the block ends well, else vanishes.

    An existing `target` is replaced only then. A full disk or a failed write becomes a
    `CheckpointError` that names the folder and, where told, what it needs; what was there before is
    untouched.
    """
    target = target.resolve()  # "." has no name to write another one beside
    temporary = target.with_name(f".{target.name}.partial")
    outgoing = target.with_name(f".{target.name}.outgoing")
    try:
        with _failures(target, needed_bytes):
            shutil.rmtree(temporary, ignore_errors=True)
            if outgoing.exists() and not target.exists():  # killed between the two renames below
                outgoing.rename(target)
            temporary.mkdir(parents=True)
            yield temporary
            mode = temporary.stat().st_mode & 0o666
            for path in temporary.rglob("*"):
                if path.is_file():
                    path.chmod(mode)  # safetensors makes files that their owner alone may read
                sync(path)
            sync(temporary)
            shutil.rmtree(outgoing, ignore_errors=True)
            if target.exists():
                target.rename(outgoing)
            try:
                temporary.rename(target)
            except OSError:
                if outgoing.exists():
                    outgoing.rename(target)
                raise
            sync(target.parent)
            shutil.rmtree(outgoing, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 file, whole or not at all. Raises `CheckpointError` where that is impossible."""
    partial = partial_of(path)
    try:
        with _failures(path, len(text.encode())):
            partial.write_text(text, encoding="utf-8")
            sync(partial)
            partial.replace(path)
            sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON, whole or not at all. Raises `CheckpointError` where that is impossible."""
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def partial_of(path: Path) -> Path:
    """Where `write_text` prepares a file."""
    return path.with_name(f".{path.name}.partial")


def is_reserved(name: str) -> bool:
    """Whether a name within a folder is kept for what is being written: those that begin with a dot."""
    return name.startswith(".")


def require_new(folder: Path, option: str) -> None:
    """Raise `CheckpointError` unless `folder` is empty or not there; `option` chooses another."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            f"{folder} is there already, and nothing is written over. Choose another folder with {option}."
        )


def remove_folder(path: Path) -> None:
    """Remove a folder so that a kill on the way leaves nothing under its name."""
    outgoing = path.with_name(f".{path.name}.outgoing")
    shutil.rmtree(outgoing, ignore_errors=True)
    path.rename(outgoing)
    shutil.rmtree(outgoing)


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The values in a JSON file. Raises `ValueError` for what is none or too large, else `OSError`."""
    if path.stat().st_size > max_bytes:
        raise ValueError(f"it is larger than {in_words(max_bytes)}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


@contextlib.contextmanager
def claimed(folder: Path, *, option: str = "output=...") -> Iterator[None]:
    """A context in which no other run writes to `folder`, which must exist; `option` chooses another.

    Raises `CheckpointError` if one does. The operating system ends the claim of a process that dies.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise CheckpointError(
            f"Another run is writing to {folder}. Wait until it has ended, or choose another folder with "
            f"{option}"
        ) from error
    except NotImplementedError:  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        lock.release()
