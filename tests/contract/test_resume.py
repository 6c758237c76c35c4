"""A run that was killed and resumed equals one that was not, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from finetune.checkpoint import damage, latest_checkpoint, save_checkpoint
from finetune.errors import CheckpointError

CASES = [
    ("dreambooth", {}),
    ("lora", {"train_text_encoder": True, "dropout": 0.2}),
    ("textual_inversion", {}),
]
# Three photos and batches of two: step 4 ends inside an epoch. Two parts a step: a kill between
# checkpoints falls inside or between accumulated parts and must not matter.
TRAINING = {
    "num_steps": 7,
    "batch_size": 2,
    "gradient_accumulation_steps": 2,
    "checkpoint_every": 1,
}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "finetune.cli", "train", *arguments]


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "FINETUNE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "settings"), CASES, ids=[kind for kind, _ in CASES])
def test_killed_and_resumed_run_is_bit_equal(
    run_values: Any, tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    cache = tmp_path / "shared-cache"
    values = run_values(kind, training=TRAINING, method=settings)
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({**values, "output": str(tmp_path / "whole")}))
    subprocess.run(command(str(config)), check=True, env=environment(cache), capture_output=True)
    broken = tmp_path / "broken"
    process = subprocess.Popen(
        command(str(config), f"output={broken}"),
        env=environment(cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (broken / "checkpoints" / "step-000004").is_dir():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    checkpoint, _ = latest_checkpoint(broken / "checkpoints")
    assert checkpoint is not None
    assert 4 <= int(checkpoint.name.removeprefix("step-")) < 7
    assert not (broken / "artifact").exists()
    subprocess.run(
        command("--resume", str(broken)), check=True, env=environment(cache), capture_output=True
    )
    ends = [
        load_file(folder / "checkpoints" / "step-000007" / "tensors.safetensors")
        for folder in (tmp_path / "whole", broken)
    ]
    assert ends[0].keys() == ends[1].keys()
    assert any(key.startswith("optimizer/") for key in ends[0])
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key
    steps = (broken / "metrics.jsonl").read_text().splitlines()
    assert steps == (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()


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


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"a": torch.full((4,), float(step))}, {})
    path = tmp_path / "step-000002" / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found, problems = latest_checkpoint(tmp_path)
    assert found == tmp_path / "step-000001"
    assert len(problems) == 1
    assert "tensors.safetensors" in problems[0]
    assert damage(tmp_path / "step-000001") is None


def test_only_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in range(1, 5):
        save_checkpoint(tmp_path, step, {"a": torch.zeros(1)}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000003", "step-000004"]


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from finetune.checkpoint import save_checkpoint
from finetune.errors import CheckpointError
folder = Path(sys.argv[1])
save_checkpoint(folder, 1, {"a": torch.zeros(1000)}, {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save_checkpoint(folder, 2, {"a": torch.zeros(100_000)}, {})
except CheckpointError as error:
    print(error)
    sys.exit(7)
"""


def test_a_full_disk_costs_no_earlier_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 7, done.stderr
    assert "Could not write" in done.stdout
    assert "step-000002" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    assert damage(tmp_path / "step-000001") is None


def test_resume_refuses_other_data(run_values: Any, tiny_base: Any, tmp_path: Path) -> None:
    from PIL import Image

    from finetune.config import build_run_config
    from finetune.run import prepare_folder, run_training
    from methods import load_method

    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (16, 16), "red").save(photos / "0.png")
    values = run_values(
        "lora", data={"photos": str(photos)}, training={"checkpoint_every": 1, "num_steps": 2}
    )
    config = build_run_config(values, load_method, "test")
    prepare_folder(config, resume=False, overwrite=False)
    method = load_method("lora")(config.method)
    run_training(tiny_base, method, config)
    method.detach(tiny_base)
    Image.new("RGB", (16, 16), "blue").save(photos / "0.png")
    prepare_folder(config, resume=True, overwrite=False)
    with pytest.raises(CheckpointError, match="other data"):
        run_training(tiny_base, method, config, resume=True)
