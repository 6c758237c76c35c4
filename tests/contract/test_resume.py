"""A run that was killed and resumed equals one that was not, bit for bit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from finetune.checkpoint import latest_checkpoint
from finetune.config import build_run_config
from finetune.errors import CheckpointError, ConfigError
from finetune.files import claimed
from finetune.run import prepare_folder, run_training
from finetune.train import TrainResult
from methods import load_method

ROOT = Path(__file__).resolve().parents[2]
KILL_TEST = ROOT / "benchmarks" / "kill_test.py"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "finetune.cli", "train", *arguments]


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "FINETUNE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_as_their_undisturbed_twins(tmp_path: Path) -> None:
    """The three methods and a pretraining stage; `benchmarks/kill_test.py` does it at length."""
    done = subprocess.run(
        [sys.executable, str(KILL_TEST), "--kills", "8"],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(tmp_path),
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    kinds = ["dreambooth", "lora", "textual_inversion", "pretrain"]
    assert [outcome["kind"] for outcome in found] == kinds, done.stderr
    for outcome in found:
        assert outcome["differences"] == []
        assert outcome["kills"] >= 2
        assert outcome["most_steps_lost"] <= outcome["checkpoint_every"]
    assert done.returncode == 0


def test_ctrl_c_leaves_a_run_that_can_be_resumed(run_values: Any, tmp_path: Path) -> None:
    values = run_values("textual_inversion", training={"num_steps": 100_000})
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(values))
    process = subprocess.Popen(
        command(str(config)),
        env=environment(tmp_path / "cache"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    metrics = Path(values["output"]) / "metrics.jsonl"
    while not metrics.is_file() or not metrics.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"finetune train --resume {values['output']}" in output
    checkpoint, problems = latest_checkpoint(Path(values["output"]) / "checkpoints")
    assert checkpoint is not None
    assert problems == []


@pytest.fixture
def start(run_values: Any, tiny_base: Any) -> Callable[..., TrainResult]:
    """Runs a LoRA of four steps, or goes on with it."""

    def run(
        output: Path, *, resume: bool = False, allow: tuple[str, ...] = (), **sections: Any
    ) -> TrainResult:
        training = {"num_steps": 4, "batch_size": 1, "checkpoint_every": 1}
        training |= sections.pop("training", {})
        values = run_values("lora", output=str(output), training=training, **sections)
        config = build_run_config(values, load_method, "test")
        method = load_method("lora")(config.method)
        prepare_folder(config, resume=resume, overwrite=False, allow_changes=allow)
        try:
            return run_training(tiny_base, method, config, resume=resume)
        finally:
            method.detach(tiny_base)

    return run


def assert_same_end(run: Path, other: Path, step: int) -> None:
    ends = [
        load_file(folder / "checkpoints" / f"step-{step:06d}" / "tensors.safetensors")
        for folder in (run, other)
    ]
    assert ends[0].keys() == ends[1].keys()
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key
    assert (run / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()


def test_resume_lists_which_photos_and_captions_are_others(start: Any, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, color in (("a", "red"), ("b", "green"), ("c", "blue")):
        Image.new("RGB", (16, 16), color).save(photos / f"{name}.png")
    data = {"photos": str(photos)}
    start(tmp_path / "run", data=data)

    def refusal() -> list[str]:
        with pytest.raises(CheckpointError, match="was made with other data") as caught:
            start(tmp_path / "run", data=data, resume=True)
        return [line.strip() for line in str(caught.value).splitlines()[1:]]

    Image.new("RGB", (16, 16), "yellow").save(photos / "b.png")
    gone = "photos of the run that are gone or have changed: 1"
    assert refusal() == ["b.png is new or has changed", gone]
    Image.new("RGB", (16, 16), "green").save(photos / "b.png")
    (photos / "c.txt").write_text("a blue {subject}")
    assert refusal() == ["the caption of c.png has changed"]
    (photos / "c.txt").unlink()
    Image.new("RGB", (16, 16), "black").save(photos / "d.png")
    assert refusal() == ["d.png is new or has changed"]
    (photos / "d.png").unlink()
    (photos / "a.png").rename(photos / "z.png")
    assert refusal() == ["the photos come in another order (they are sorted by name)"]
    (photos / "z.png").rename(photos / "a.png")
    assert start(tmp_path / "run", data=data, resume=True).step == 4
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("state.json"))
    assert b"png" not in written  # the names of photos are nobody's business


def test_a_run_goes_on_for_longer_when_told_so(start: Any, tmp_path: Path) -> None:
    longer = {"training": {"num_steps": 6}}
    start(tmp_path / "whole", **longer)
    start(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"--allow-change training\.num_steps") as caught:
        start(tmp_path / "run", resume=True, **longer)
    assert str(caught.value).splitlines()[-2:] == [
        "-training.num_steps: 4",
        "+training.num_steps: 6",
    ]
    for field in ("method.learning_rate", "training", "data.size"):
        with pytest.raises(ConfigError, match="shapes what is learnt"):
            start(tmp_path / "run", resume=True, allow=(field,), **longer)
    # What is allowed does not cover what is not.
    with pytest.raises(CheckpointError, match=r"method\.rank") as caught:
        start(
            tmp_path / "run",
            resume=True,
            allow=("training.num_steps",),
            method={"rank": 2},
            **longer,
        )
    assert "num_steps" not in str(caught.value)
    result = start(
        tmp_path / "run", resume=True, allow=("training.num_steps", "sampling"),
        sampling={"num_steps": 3}, **longer,
    )  # fmt: skip
    assert (result.step, result.finished) == (6, True)
    assert_same_end(tmp_path / "whole", tmp_path / "run", 6)
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (stored["training"]["num_steps"], stored["sampling"]["num_steps"]) == (6, 3)


def test_a_run_from_before_a_setting_existed_is_resumed(start: Any, tmp_path: Path) -> None:
    start(tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    values = yaml.safe_load(path.read_text())
    del values["training"]["max_non_finite_steps"]
    path.write_text(yaml.safe_dump(values))
    assert start(tmp_path / "run", resume=True).finished


def test_a_run_on_a_full_disk_says_what_it_needs_and_goes_on_later(
    start: Any, tmp_path: Path, files_up_to: Any
) -> None:
    start(tmp_path / "whole")
    start(tmp_path / "run", training={"num_steps": 2})
    size = (tmp_path / "run/checkpoints/step-000002/tensors.safetensors").stat().st_size
    with files_up_to(size - 1), pytest.raises(CheckpointError) as caught:
        start(tmp_path / "run", resume=True, allow=("training.num_steps",))
    assert re.search(r"step-000003.* kB are needed and .* free in", str(caught.value))
    latest, problems = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert latest == tmp_path / "run" / "checkpoints" / "step-000002"
    assert problems == []
    start(tmp_path / "run", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "run", 4)
    for name in ("config.yaml", "artifact/pytorch_lora_weights.safetensors"):
        modes = {(tmp_path / run / name).stat().st_mode & 0o777 for run in ("whole", "run")}
        assert modes == {0o666 & ~umask()}


def test_a_second_run_in_the_same_folder_is_refused(start: Any, tmp_path: Path) -> None:
    start(tmp_path / "run", training={"num_steps": 2})
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with claimed(tmp_path / "run"):
        with pytest.raises(CheckpointError, match="Another run is writing to"):
            start(tmp_path / "run", resume=True, allow=("training.num_steps",))
        with pytest.raises(CheckpointError, match="Another run is writing to"):
            start(tmp_path / "run")
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert after == before


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
