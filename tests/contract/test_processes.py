"""Two processes (gloo, CPU) are one run: same learning, same files, same answer to signals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from finetune.checkpoint import damage, latest_checkpoint

DRIVER = """
import json, os, signal, socket, sys, time
from pathlib import Path
import torch
from tqdm import tqdm
torch.set_num_threads(1)  # threads do not survive a fork
tqdm.monitor_interval = 0
from data_prep.loader import TrainingData
from finetune.cli import app
import finetune.run, methods.lora

place = Path(sys.argv[1])

def watch_batches(name, rank):
    ask = TrainingData.micro_batch
    def micro_batch(self, step, **parts):
        batch = ask(self, step, **parts)
        with (place / f"{name}.batches").open("a") as file:
            for prompt, is_class in zip(batch.prompts, batch.is_class):
                if not is_class:
                    file.write(json.dumps([step, rank, prompt]) + "\\n")
        return batch
    TrainingData.micro_batch = micro_batch

def start(name, world, arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            os.environ.update(ACCELERATE_USE_CPU="true")
            if world > 1:
                os.environ.update(
                    RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                    MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                )
            log = os.open(place / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            watch_batches(name, rank)
            code = 1
            try:
                code = app(["train", *arguments], standalone_mode=False) or 0
            except SystemExit as error:
                code = error.code
            except BaseException:
                import traceback
                traceback.print_exc()
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        children.append(child)
    return children

def codes(children):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

def run(name, world, *arguments):
    return codes(start(name, world, arguments))

config, found = str(place / "run.yaml"), {}
for name, world, parts in (("one", 1, 1), ("parts", 1, 2), ("two", 2, 1)):
    found[name] = run(
        name, world, config, f"output={place / name}",
        f"training.gradient_accumulation_steps={parts}",
    )
found["begun"] = run("broken", 2, config, f"output={place / 'broken'}", "training.num_steps=3")
found["broken"] = run(
    "broken", 2, "--resume", str(place / "broken"), "training.num_steps=5",
    "--allow-change", "training.num_steps",
)
stopped = place / "stopped"
children = start("stopped", 2, [config, f"output={stopped}", "training.num_steps=100000"])
metrics = stopped / "metrics.jsonl"
while not metrics.is_file() or not metrics.read_text():
    time.sleep(0.01)
os.kill(children[1], signal.SIGTERM)  # the process that does not write
found["stopped"] = codes(children)
found["odd"] = run("odd", 2, config, f"output={place / 'odd'}", "training.batch_size=3")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of all runs, and their exit codes by name."""
    place = tmp_path_factory.mktemp("processes")
    photos = place / "photos"
    photos.mkdir()
    for index in range(5):
        Image.new("RGB", (20, 20), (40 * index, 90, 200 - 30 * index)).save(photos / f"{index}.png")
        (photos / f"{index}.txt").write_text(f"photo number {index} of a {{subject}}")
    values = {
        "base": {"source": str(tiny_folder)},
        "data": {"photos": str(photos), "class_noun": "dog", "size": 16},
        "method": {"kind": "lora", "learning_rate": 1e-3},
        "prior": {"kind": "class_images", "num_images": 3, "num_steps": 2},
        "training": {"num_steps": 5, "batch_size": 2, "checkpoint_every": 1},
        "samples": {"every": 5},
        "sampling": {"num_steps": 2},
        "optimizer": {"eps": 1e-3},  # keeps AdamW from blowing up rounding of tiny gradients
    }
    (place / "run.yaml").write_text(yaml.safe_dump(values))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(place)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "FINETUNE_CACHE": str(place / "cache"),
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        },
        capture_output=True,
        text=True,
    )
    logs = "\n".join(path.read_text() for path in place.glob("*.log"))
    assert done.returncode == 0, done.stderr + logs
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(set(found[name]) == {0} for name in ("one", "parts", "two", "begun", "broken")), logs
    return place, found


def last_tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "step-000005" / "tensors.safetensors")


def metrics_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_learn_bit_for_bit_what_two_parts_of_a_batch_do(runs: Any) -> None:
    """The same micro-batches, whose gradients are added in the same order: no tolerance."""
    place, _ = runs
    parts, two = last_tensors(place / "parts"), last_tensors(place / "two")
    assert parts.keys() == two.keys()
    for key, value in parts.items():
        assert torch.equal(value, two[key]), key
    assert metrics_of(place / "parts") == metrics_of(place / "two")


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(runs: Any) -> None:
    """A batch of two against two of one: float32 kernels round sums of other lengths differently.

    One part in 2^24 per operation; 1e-5 leaves room for a few hundred of them.
    """
    place, _ = runs
    one, two = metrics_of(place / "one"), metrics_of(place / "two")
    assert [row["step"] for row in two] == [1, 2, 3, 4, 5]
    for name in ("loss", "loss_instance", "loss_class", "grad_norm"):
        expected = [row[name] for row in one]
        assert [row[name] for row in two] == pytest.approx(expected, rel=1e-5), name
        assert len(set(expected)) == 5
    for key, value in last_tensors(place / "one").items():
        torch.testing.assert_close(
            last_tensors(place / "two")[key], value, atol=1e-6, rtol=1e-4, msg=key
        )


@pytest.mark.slow
def test_resumed_on_two_processes_equals_unbroken(runs: Any) -> None:
    place, _ = runs
    whole, broken = last_tensors(place / "two"), last_tensors(place / "broken")
    for key, value in whole.items():
        assert torch.equal(value, broken[key]), key
    assert metrics_of(place / "two") == metrics_of(place / "broken")
    assert yaml.safe_load((place / "broken/config.yaml").read_text())["training"]["num_steps"] == 5


@pytest.mark.slow
def test_five_photos_on_two_processes_are_each_seen_once_an_epoch(runs: Any) -> None:
    place, _ = runs
    lines = [json.loads(line) for line in (place / "two.batches").read_text().splitlines()]
    assert Counter(rank for _, rank, _ in lines) == {0: 5, 1: 5}
    ordered = [prompt for step, rank, prompt in sorted(lines)]
    everything = {f"photo number {index} of a sks dog" for index in range(5)}
    assert set(ordered[:5]) == everything
    assert set(ordered[5:]) == everything
    for step in range(5):
        assert len({prompt for at, _, prompt in lines if at == step}) == 2


@pytest.mark.slow
def test_one_process_writes(runs: Any) -> None:
    place, _ = runs
    assert (place / "two" / "artifact" / "pytorch_lora_weights.safetensors").is_file()
    assert [path.name for path in (place / "two" / "samples").iterdir()] == ["step-000005.png"]
    assert (place / "two.log").read_text().count("Artifact:") == 1


@pytest.mark.slow
def test_a_signal_to_one_process_ends_both_at_one_step(runs: Any) -> None:
    place, found = runs
    assert found["stopped"] == [143, 143]
    checkpoint, problems = latest_checkpoint(place / "stopped" / "checkpoints")
    assert checkpoint is not None
    assert problems == []
    assert damage(checkpoint) is None
    assert len(metrics_of(place / "stopped")) == int(checkpoint.name.removeprefix("step-"))
    assert "--resume" in (place / "stopped.log").read_text()


@pytest.mark.slow
def test_a_batch_that_processes_cannot_share_is_refused(runs: Any) -> None:
    place, found = runs
    assert found["odd"] == [2, 2]
    assert "cannot be shared by 2 processes" in (place / "odd.log").read_text()
