"""Checkpoints and files: whole or not there, every damage named, nothing lost to a full disk."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.checkpoint import (
    damage,
    latest_checkpoint,
    load_checkpoint,
    needed_bytes,
    remove_later,
    save_checkpoint,
)
from finetune.errors import CheckpointError
from finetune.files import atomic_folder, claimed, read_json, sha256_of, write_text

FILES = ["tensors.safetensors", "state.json", "manifest.json", "complete"]


def save(folder: Path, step: int, count: int = 100) -> Path:
    return save_checkpoint(folder, step, {"a": torch.full((count,), float(step))}, {"x": 1})


@pytest.mark.parametrize("name", FILES)
def test_each_changed_byte_is_named_and_the_checkpoint_before_is_used(
    tmp_path: Path, name: str
) -> None:
    earlier, later = save(tmp_path, 1), save(tmp_path, 2)
    content = (later / name).read_bytes()
    for place in {*range(0, len(content), max(1, len(content) // 25)), len(content) - 1}:
        for bit in (1, 128):
            changed = bytearray(content)
            changed[place] ^= bit
            (later / name).write_bytes(changed)
            problem = damage(later)
            assert problem is not None, (place, bit)
            assert str(later / name) in problem
    found, problems = latest_checkpoint(tmp_path)
    assert found == earlier
    assert len(problems) == 1
    with pytest.raises(CheckpointError, match="step-000002"):
        load_checkpoint(later)
    (later / name).write_bytes(content)
    assert latest_checkpoint(tmp_path) == (later, [])


@pytest.mark.parametrize("name", FILES)
def test_each_shortened_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    checkpoint = save(tmp_path, 1)
    content = (checkpoint / name).read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 1):
        (checkpoint / name).write_bytes(content[:length])
        assert str(checkpoint / name) in (damage(checkpoint) or ""), length
    (checkpoint / name).unlink()
    assert str(checkpoint / name) in (damage(checkpoint) or "")


def test_a_manifest_cannot_point_elsewhere(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "run", 1)
    secret = tmp_path / "secret"
    secret.write_text("x")
    manifest = {"../../secret": {"bytes": 1, "sha256": sha256_of(secret)}}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    (checkpoint / "complete").write_text(sha256_of(checkpoint / "manifest.json") + "\n")
    assert "names other files" in (damage(checkpoint) or "")


def test_the_newest_two_whole_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 999_999, 1_000_000):
        save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1000000", "step-999999"]
    assert latest_checkpoint(tmp_path)[0] == tmp_path / "step-1000000"
    # One that was cut short counts for nothing, and what a kill left behind goes.
    (tmp_path / "step-1000000" / "complete").unlink()
    (tmp_path / ".step-000002.outgoing").mkdir()
    save(tmp_path, 1_000_001)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1000001", "step-999999"]


def test_damaged_checkpoints_make_room_when_a_run_goes_on_from_an_earlier_one(
    tmp_path: Path,
) -> None:
    for step in (3, 4):
        save(tmp_path, step)
    (tmp_path / "step-000004" / "state.json").write_text("{}")
    found, _ = latest_checkpoint(tmp_path)
    assert found is not None
    remove_later(found)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]


def test_what_is_needed_covers_what_is_written(tmp_path: Path) -> None:
    tensors = {f"unet.layer.{i}.lora_A.weight": torch.zeros(i, 7) for i in range(200)}
    checkpoint = save_checkpoint(tmp_path, 1, tensors, {"photos": ["0" * 32] * 20})
    written = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert written <= needed_bytes(tensors) <= 1.1 * written + 130_000


def test_room_is_looked_at_before_anything_is_written(tmp_path: Path) -> None:
    save(tmp_path, 1)
    petabyte = torch.empty(2**48, device="meta")
    with pytest.raises(
        CheckpointError, match=r"no room for .*step-000002: 1125899\.9 GB are needed and .* free"
    ):
        save_checkpoint(tmp_path, 2, {"a": petabyte}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_a_disk_that_fills_at_any_write_costs_no_checkpoint(
    tmp_path: Path, files_up_to: Any
) -> None:
    save(tmp_path, 1)
    sizes = sorted(path.stat().st_size for path in save(tmp_path, 2).iterdir())
    message = r"step-000003.* are needed and .* free"
    for limit in (0, 1, 64, *(size + change for size in sizes for change in (-1, 0))):
        if limit < sizes[-1]:
            with files_up_to(limit), pytest.raises(CheckpointError, match=message):
                save(tmp_path, 3)
            names = ["step-000001", "step-000002"]
            assert sorted(path.name for path in tmp_path.iterdir()) == names
            assert latest_checkpoint(tmp_path) == (tmp_path / "step-000002", [])
    with files_up_to(sizes[-1]):
        save(tmp_path, 3)
    assert latest_checkpoint(tmp_path) == (tmp_path / "step-000003", [])


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, files_up_to: Any) -> None:
    path = tmp_path / "config.yaml"
    write_text(path, "before")
    with files_up_to(3), pytest.raises(CheckpointError, match=r"config\.yaml.*10 bytes are needed"):
        write_text(path, "0123456789")
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.yaml"]


def test_a_replaced_folder_is_there_again_after_a_kill_between_two_renames(tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    outgoing = tmp_path / ".artifact.outgoing"
    outgoing.mkdir()
    (outgoing / "weights").write_text("old")
    with contextlib.suppress(ZeroDivisionError), atomic_folder(target) as temporary:
        (temporary / "weights").write_text("new")
        raise ZeroDivisionError
    assert (target / "weights").read_text() == "old"
    with atomic_folder(target) as temporary:
        (temporary / "weights").write_text("new")
    assert (target / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        checkpoint = save(tmp_path, 1)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in checkpoint.iterdir()}
    assert modes == {0o666 & ~mask}


def test_json_is_bounded_in_size_and_depth(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    path.write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"nested too deeply|Expecting value"):
        read_json(path)
    with path.open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(ValueError, match="larger than 16"):
        read_json(path)


CLAIM = """
import sys
from pathlib import Path
from finetune.files import claimed
with claimed(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


def test_a_folder_belongs_to_one_run_until_that_ends_however_it_does(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(CheckpointError, match="Another run is writing to"), claimed(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
    with claimed(tmp_path):
        pass
