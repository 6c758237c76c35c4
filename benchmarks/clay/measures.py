"""What the clay benchmarks share: shares with intervals, judged pictures, kernel distance, renders."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from scipy.stats import binomtest

from data_prep.clay import world
from finetune.bases import EMBEDDED
from finetune.judge import Judge
from finetune.pretrain.judge import NOTHING, truth_of

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "clay" / "results.json"
Scene = tuple[world.Identity, world.View]


def load_judge() -> Judge:
    """The embedded judge."""
    return Judge.from_pretrained(EMBEDDED / "clay-judge")


def share(right: Sequence[bool]) -> dict[str, Any]:
    """A share in per cent with Wilson's 95 % interval (Wilson 1927)."""
    hits, count = sum(right), len(right)
    if not count:
        return {"share": None, "low": None, "high": None, "count": 0}
    interval = binomtest(hits, count).proportion_ci(method="wilson")
    low, high = round(100 * interval.low, 1), round(100 * interval.high, 1)
    return {"share": round(100 * hits / count, 1), "low": low, "high": high, "count": count}


def judged(judge: Judge, images: Sequence[Image.Image], scenes: Sequence[Scene]) -> dict[str, Any]:
    """Share of pictures in which the judge sees each attribute of its scene, where that can be seen.

    Most pictures wear nothing, so `accessory, where worn` counts the others alone, and `accessory present`
    asks for kind and colour of what is worn. `color, plain` leaves out the pictures that have two.
    """
    right: dict[str, list[bool]] = {name: [] for name in judge.labels}
    extra: dict[str, list[bool]] = {
        "accessory, where worn": [],
        "accessory present": [],
        "color, plain": [],
    }
    for told, (identity, view) in zip(judge.tell(images), scenes, strict=True):
        truth = truth_of(identity, view)
        for name, value in truth.items():
            if value is not None:
                right[name].append(told[name] == value)
        if truth["accessory"] != NOTHING:
            extra["accessory, where worn"].append(told["accessory"] == truth["accessory"])
        if truth["accessory_color"] is not None:
            both = ("accessory", "accessory_color")
            extra["accessory present"].append(all(told[name] == truth[name] for name in both))
        if truth["color"] is not None and identity.pattern == "plain":
            extra["color, plain"].append(told["color"] == truth["color"])
    return {name: share(values) for name, values in {**right, **extra}.items()}


def features(judge: Judge, images: Sequence[Image.Image], *, batch_size: int = 64) -> torch.Tensor:
    """Means of the judge's last map, [N, width]: what the kernel distance compares."""
    with torch.no_grad():
        parts = [
            judge.backbone(
                judge.pixel_values(images[start : start + batch_size])
            ).last_hidden_state.mean((2, 3))
            for start in range(0, len(images), batch_size)
        ]
    return torch.cat(parts).double()


def kernel_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Unbiased squared MMD with KID's kernel (x·y / d + 1)³ (Bińkowski et al. 2018, §4)."""

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def without_itself(x: torch.Tensor) -> torch.Tensor:
        values = kernel(x, x)
        return (values.sum() - values.diagonal().sum()) / (len(x) * (len(x) - 1))

    return float(without_itself(a) + without_itself(b) - 2 * kernel(a, b).mean())


def render_scene(job: tuple[Scene, Path]) -> None:
    """Render a scene into a file, unless it is there."""
    from data_prep.clay.render import build_model, encode_jpeg, render

    (identity, view), path = job
    if not path.is_file():
        partial = path.with_suffix(".partial")
        partial.write_bytes(encode_jpeg(render(build_model(identity), view)))
        partial.rename(path)


def rendered(scenes: Sequence[Scene], folder: Path) -> list[Image.Image]:
    """Pictures of `scenes`, rendered into `folder` by two processes where they are not there yet.

    A file's name is a hash of its scene, so that no picture of another scene is taken for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [hashlib.sha256(repr(scene).encode()).hexdigest()[:20] for scene in scenes]
    paths = [folder / f"{name}.jpg" for name in names]
    if not all(path.is_file() for path in paths):
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(render_scene, zip(scenes, paths, strict=True), chunksize=8))
    return [Image.open(path).convert("RGB") for path in paths]


def held_out_scenes(count: int, *, seed: int) -> list[Scene]:
    """Subjects and views as the world draws them, in combinations that training never shows."""
    rng, scenes = random.Random(f"held out {seed}"), []
    while len(scenes) < count:
        identity = world.sample_identity(rng)
        places = [
            place
            for place in world.PLACES
            if world.is_held_out(identity.class_noun, identity.color, place)
        ]
        if places:
            scenes.append((identity, world.sample_view(rng, identity, place=rng.choice(places))))
    return scenes


def record(name: str, values: dict[str, Any]) -> None:
    """Put `values` under `name` into results.json, with the day, and print them."""
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    results[name] = {"measured": time.strftime("%Y-%m-%d"), **values}
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(values, indent=1))
