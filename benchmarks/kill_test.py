"""Kill runs at random moments, resume them, and compare what they end with: bit for bit the same.

    python benchmarks/kill_test.py --kills 120

A run of each method (with class pictures where it uses them) and of a pretraining stage (for the moving
average) on a tiny base is killed with SIGKILL again and again: at random times, and at a random one of its
own accesses to files it writes (cache, checkpoints, metrics, artifact), until it comes to its end. Then its
last checkpoint (weights, optimizer, moving average), its metrics and its artifact are compared with those of
a twin that nobody disturbed; and after each kill it is counted how many steps were lost. Runs are forked from
this process, so that a kill costs a second and not a start of Python.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tqdm import tqdm

from finetune.base import BaseConfig, BasePipeline, load_base
from finetune.checkpoint import latest_checkpoint
from finetune.config import build_run_config
from finetune.pretrain.stage import StageConfig, run_stage
from finetune.run import prepare_folder, prepare_training, run_training
from methods import load_method

ROOT = Path(__file__).resolve().parent.parent
NUM_STEPS, EVERY, KILLS_PER_RUN = 8, 2, 8
METHODS: dict[str, dict[str, Any]] = {
    "dreambooth": {},
    "lora": {"train_text_encoder": True, "dropout": 0.2},
    "textual_inversion": {"num_vectors": 2},
}
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}
"""What Python announces before it changes a folder (PEP 578)."""

Work = Callable[[Path], None]
"""Starts a run in a folder, or goes on with it."""


class ToyStage:
    """A linear map learns another one: the smallest thing that `run_stage` trains."""

    name = "toy"
    made_of: ClassVar[dict[str, str]] = {}

    def __init__(self, config: StageConfig) -> None:
        torch.manual_seed(0)
        self.config = config
        self.modules = torch.nn.ModuleDict({"map": torch.nn.Linear(64, 64)})

    def loss(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        given = torch.randn(16, 64, generator=generator)
        time.sleep(0.01)
        return {"loss": (self.modules["map"](given) - given.flip(1)).pow(2).mean()}

    def sample(self, path: Path) -> None:
        path.write_bytes(b"a picture")

    def save(self, folder: Path) -> None:
        (folder / "networks").write_bytes(b"a network")


def pretrain(folder: Path) -> None:
    config = StageConfig(
        num_steps=5 * NUM_STEPS, batch_size=16, learning_rate=1e-2, checkpoint_every=EVERY
    )
    for step in run_stage(ToyStage(config), folder):
        (folder / "steps").write_text(str(step))


def training(base: BasePipeline, photos: Path, kind: str) -> Work:
    """A run of a method, begun or gone on with as the command line does it."""

    def work(folder: Path) -> None:
        os.environ["FINETUNE_CACHE"] = str(folder.with_name(f"{folder.name}-cache"))
        prior = "none" if kind == "textual_inversion" else "class_images"
        values = {
            "base": {"source": base.source},
            "data": {"photos": str(photos), "class_noun": "dog", "size": 16, "crop": "random"},
            "method": {"kind": kind, "learning_rate": 1e-3, **METHODS[kind]},
            "prior": {"kind": prior, "num_images": 6, "num_steps": 2, "batch_size": 2},
            # Three photos: checkpoints fall inside epochs, kills between and inside accumulated parts.
            "training": {
                "num_steps": NUM_STEPS,
                "batch_size": 2,
                "gradient_accumulation_steps": 2,
                "checkpoint_every": EVERY,
            },
            "output": str(folder),
        }
        config = build_run_config(values, load_method, "kill test")
        method, resume = load_method(kind)(config.method), (folder / "config.yaml").is_file()
        prepared = prepare_training(base, method, config)
        prepare_folder(config, resume=resume, overwrite=False)
        run_training(base, method, config, prepared=prepared, resume=resume)

    return work


def kill_at_access(place: int, roots: tuple[str, ...], report: Path) -> None:
    """End this process before its `place`-th change of files under `roots`; 0 only counts them."""
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            counts = bool(flags & (os.O_WRONLY | os.O_RDWR)) and str(path).startswith(roots)
        else:  # within rmtree names are relative to an open folder
            counts = event in _CHANGES and (arguments[-1] >= 0 or _under(arguments[0], roots))
            path = arguments[0] if arguments else ""
        if not counts or str(path) == str(report):
            return
        count += 1
        if place == 0 or count == place:
            descriptor = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(descriptor, f"{count} {event} {path}".encode())
            os.close(descriptor)
        if count == place:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def _under(path: Any, roots: tuple[str, ...]) -> bool:
    return str(path).startswith(roots)


def fork(work: Work, folder: Path, report: Path, place: int) -> int:
    """Start `work` in a process of its own; returns its id."""
    process = os.fork()
    if process:
        return process
    try:
        log = os.open(
            folder.with_name(f"{folder.name}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND
        )
        os.dup2(log, 1)
        os.dup2(log, 2)
        roots = (str(folder), str(folder.with_name(f"{folder.name}-cache")))
        kill_at_access(place, roots, report)
        work(folder)
        code = 0
    except BaseException:  # noqa: BLE001 - the log has it, the exit code says it
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def steps_done(folder: Path) -> int:
    """Whole lines of metrics, which are written before checkpoints are; a stage's last step."""
    path, steps = folder / "metrics.jsonl", folder / "steps"
    if steps.is_file():
        return int(steps.read_text() or 0)
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def phase(folder: Path, report: Path) -> str:
    """What a killed run was at."""
    text = report.read_text() if report.is_file() else ""
    if "-cache/" in text:
        return "writing the cache"
    if "step-" in text or list(folder.glob("checkpoints/.step-*")):
        return "writing or removing a checkpoint"
    if text:
        return "writing another file"
    if not (folder / "config.yaml").is_file():
        return "before the first step"
    return "training"


@dataclass
class Outcome:
    """What was found about one kind of run."""

    runs: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    most_lost: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.phases.total()


def differences(twin: Path, folder: Path) -> list[str]:
    """What two finished runs do not have in common."""
    found = []
    ends = [latest_checkpoint(run / "checkpoints")[0] for run in (twin, folder)]
    if None in ends or ends[0].name != ends[1].name:  # type: ignore[union-attr]
        return [f"{folder}: ends at {ends}"]
    for path in (ends[0] / "tensors.safetensors", *twin.glob("artifact/**/*.safetensors")):  # type: ignore[operator]
        other = folder / path.relative_to(twin)
        sides = load_file(path), load_file(other) if other.is_file() else {}
        if sides[0].keys() != sides[1].keys():
            found.append(f"{other}: other tensors")
        else:
            found += [
                f"{other}: {k}" for k, v in sides[0].items() if not torch.equal(v, sides[1][k])
            ]
    for name in ("metrics.jsonl", "artifact/artifact.json"):
        texts = [(run / name).read_bytes() for run in (twin, folder) if (run / name).is_file()]
        if texts and (len(texts) < 2 or texts[0] != texts[1]):
            found.append(f"{folder}: {name}")
    hidden = [path for path in folder.rglob(".*") if path.name != ".lock"]
    return found + [f"{path} was left behind" for path in hidden]


def disturb(
    work: Work, folder: Path, outcome: Outcome, rng: random.Random, span: tuple[float, int]
) -> None:
    """One run, killed up to `KILLS_PER_RUN` times and then left in peace. `span`: seconds, accesses."""
    report, kills = folder.with_name("report"), 0
    while True:
        report.unlink(missing_ok=True)
        by_access = kills < KILLS_PER_RUN and rng.random() < 0.5
        place = rng.randint(1, span[1]) if by_access else -1  # none
        process, started = fork(work, folder, report, place), time.monotonic()
        delay = float("inf") if by_access or kills >= KILLS_PER_RUN else rng.random() * span[0]
        status = 0
        while True:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                break
            if time.monotonic() - started > delay:
                os.kill(process, signal.SIGKILL)
                _, status = os.waitpid(process, 0)
                break
            time.sleep(0.0005)
        if not os.WIFSIGNALED(status):
            if os.WEXITSTATUS(status):
                outcome.differences.append(f"{folder}: failed, see {folder}.log")
            return
        kills += 1
        outcome.phases[phase(folder, report)] += 1
        kept = latest_checkpoint(folder / "checkpoints")[0]
        step = 0 if kept is None else int(kept.name.removeprefix("step-"))
        outcome.most_lost = max(outcome.most_lost, steps_done(folder) - step)


def kill_runs(name: str, work: Work, num_kills: int, seed: int, place: Path) -> Outcome:
    """Disturb runs of one kind until they have been killed `num_kills` times, each to its end."""
    twin, report = place / name / "twin", place / name / "count"
    twin.parent.mkdir(parents=True)
    started = time.monotonic()
    _, status = os.waitpid(fork(work, twin, report, 0), 0)
    if status:
        sys.exit((place / name / "twin.log").read_text())
    span = time.monotonic() - started, int(report.read_text().split()[0])
    outcome, rng = Outcome(), random.Random(f"{seed} {name}")
    while outcome.kills < num_kills and not outcome.differences:
        folder = place / name / f"run-{outcome.runs}"
        disturb(work, folder, outcome, rng, span)
        outcome.runs += 1
        outcome.differences += outcome.differences or differences(twin, folder)
    return outcome


def tiny_base(folder: Path) -> BasePipeline:
    """The random pipeline of the tests."""
    spec = importlib.util.spec_from_file_location("conftest", ROOT / "tests" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    conftest.build_tiny_pipeline(folder)
    return load_base(BaseConfig(source=str(folder)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=120, help="over all kinds of runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="leave the folders of the runs")
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    tqdm.monitor_interval = 0
    tqdm.set_lock(threading.RLock())  # its own is shared with forks: who is killed never frees it
    place = Path(tempfile.mkdtemp(prefix="kill-test-"))
    base, photos = tiny_base(place / "base"), place / "photos"
    photos.mkdir()
    for index in range(3):
        pixels = np.random.RandomState(index).randint(0, 255, (20, 20 + 5 * index, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{index}.png")
    works = {**{kind: training(base, photos, kind) for kind in METHODS}, "pretrain": pretrain}
    failed = False
    for name, work in works.items():
        outcome = kill_runs(name, work, -(-options.kills // len(works)), options.seed, place)
        every = EVERY
        failed |= bool(outcome.differences) or outcome.most_lost > every
        summary = {
            "kind": name,
            "runs": outcome.runs,
            "kills": outcome.kills,
            "most_steps_lost": outcome.most_lost,
            "checkpoint_every": every,
            "phases": dict(outcome.phases),
            "differences": outcome.differences,
        }
        print(json.dumps(summary), flush=True)
    if not (failed or options.keep):
        import shutil

        shutil.rmtree(place)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
