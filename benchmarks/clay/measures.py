"""What the clay benchmarks share: a record that goes on where it stopped, shares with intervals, judged
pictures, kernel distance, renders."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from scipy.stats import binomtest

from data_prep.clay import world
from finetune.bases import EMBEDDED
from finetune.encoders import EMBEDDED_CLIP, EMBEDDED_JUDGE
from finetune.files import read_json, sha256_of, write_json
from finetune.judge import Judge
from finetune.pretrain.judge import NOTHING, truth_of

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "clay" / "results"
Scene = tuple[world.Identity, world.View]


class Record:
    """Figures in a JSON file, part by part, so that a benchmark that was stopped goes on where it was.

    A part is taken over where the file is `about` the same and the part `of` the same; after a change of a
    benchmark itself, ask for all of it `anew`. A file about something else is replaced by the first part.
    """

    def __init__(self, path: Path, about: dict[str, Any], *, anew: bool = False) -> None:
        """`about` is plain JSON: networks by their fingerprints, settings."""
        self.path, self.about, self.anew = path, about, anew
        kept = read_json(path) if path.is_file() else {}
        self.parts: dict[str, Any] = kept["parts"] if kept.get("about") == about else {}

    def part(
        self, name: str, measure: Callable[[], dict[str, Any]], *, of: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """What `measure` finds, with the day: now, or when it was measured `of` the same."""
        kept = self.parts.get(name)
        if kept and kept["of"] == (of or {}) and not self.anew:
            print(f"{name}: was measured on {kept['measured']}", flush=True)
            return kept
        found = {"measured": time.strftime("%Y-%m-%d"), "of": of or {}, **measure()}
        self.parts[name] = found
        self._write()
        print(f"{name}: measured, see {self.path}", flush=True)
        return found

    def sum_up(self, summary: dict[str, Any]) -> None:
        """Write, and print, what follows from the parts."""
        self._write(summary)
        print(json.dumps(summary, indent=1))

    def _write(self, summary: dict[str, Any] | None = None) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"about": self.about, "parts": self.parts, "summary": summary})


def options(description: str) -> argparse.ArgumentParser:
    """A parser of the options that all these benchmarks have."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where renders go or are")
    parser.add_argument("--anew", action="store_true", help="measure what is recorded once more")
    return parser


def record(name: str, settings: dict[str, Any], *, anew: bool) -> Record:
    """The record of a benchmark of the embedded networks, which are about to be loaded."""
    networks = {part: fingerprint(part) for part in ("clay", EMBEDDED_CLIP, EMBEDDED_JUDGE)}
    return Record(RESULTS / f"{name}.json", {"networks": networks, **settings}, anew=anew)


def load_judge() -> Judge:
    """The embedded judge."""
    return Judge.from_pretrained(EMBEDDED / EMBEDDED_JUDGE)


def share(right: Sequence[bool]) -> dict[str, Any]:
    """A share in per cent with Wilson's 95 % interval (Wilson 1927), for pictures that are independent."""
    hits, count = sum(right), len(right)
    if not count:
        return {"share": None, "low": None, "high": None, "count": 0}
    interval = binomtest(hits, count).proportion_ci(method="wilson")
    low, high = round(100 * interval.low, 1), round(100 * interval.high, 1)
    return {"share": round(100 * hits / count, 1), "low": low, "high": high, "count": count}


def share_difference(first: Sequence[bool], second: Sequence[bool]) -> dict[str, Any]:
    """How many points the share of `first` is above that of `second`, of the same pictures or prompts.

    With the 95 % interval of Agresti & Min (2005, *Statistics in Medicine* 24): Wald's, with half a pair more
    of each kind.
    """
    won = sum(one and not other for one, other in zip(first, second, strict=True)) + 0.5
    lost = sum(other and not one for one, other in zip(first, second, strict=True)) + 0.5
    count = len(first) + 2
    half = 1.959964 * math.sqrt(won + lost - (won - lost) ** 2 / count) / count
    middle = (won - lost) / count
    return {
        "points": round(100 * (won - lost) / len(first), 1),
        "low": round(100 * (middle - half), 1),
        "high": round(100 * (middle + half), 1),
    }


Verdicts = dict[str, list[bool | None]]
"""Attribute -> a verdict per picture; None where the picture cannot tell."""


def verdicts(judge: Judge, images: Sequence[Image.Image], scenes: Sequence[Scene]) -> Verdicts:
    """Whether the judge sees each attribute of its scene in each picture.

    Most pictures wear nothing, so `accessory, where worn` counts the others alone, and `accessory present`
    asks for kind and colour of what is worn. `pattern, where told` leaves out the plain ones, for which
    captions have no word, `time, where told` the day, for which they have none either, and `color, plain`
    those with two colours; `pattern, in color` leaves out styles without colours, which hide what differs in
    nothing else.
    """
    rows = []
    for told, (identity, view) in zip(judge.tell(images), scenes, strict=True):
        truth = truth_of(identity, view)
        row = {
            name: None if value is None else told[name] == value for name, value in truth.items()
        }
        is_plain, is_worn = identity.pattern == "plain", truth["accessory"] != NOTHING
        row["accessory, where worn"] = row["accessory"] if is_worn else None
        seen = row["accessory_color"]
        row["accessory present"] = None if seen is None else bool(row["accessory"] and seen)
        row["pattern, where told"] = None if is_plain else row["pattern"]
        row["time, where told"] = None if view.time == "day" else row["time"]
        row["pattern, in color"] = None if row["color"] is None else row["pattern"]
        row["color, plain"] = row["color"] if is_plain else None
        rows.append(row)
    return {name: [row[name] for row in rows] for name in rows[0]}


def judged(judge: Judge, images: Sequence[Image.Image], scenes: Sequence[Scene]) -> dict[str, Any]:
    """Shares of `verdicts`, of the pictures that can tell."""
    found = verdicts(judge, images, scenes)
    return {name: share([v for v in row if v is not None]) for name, row in found.items()}


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
    """Render a scene into a file."""
    from data_prep.clay.render import build_model, encode_jpeg, render

    (identity, view), path = job
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial")  # of this process alone
    partial.write_bytes(encode_jpeg(render(build_model(identity), view)))
    partial.replace(path)


def rendered(scenes: Sequence[Scene], folder: Path) -> list[Image.Image]:
    """Pictures of `scenes`, rendered into `folder` by two processes where they are not there yet.

    A file's name is a hash of its scene, so that no picture of another scene is taken for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [hashlib.sha256(repr(scene).encode()).hexdigest()[:20] for scene in scenes]
    paths = [folder / f"{name}.jpg" for name in names]
    missing = {p: scene for scene, p in zip(scenes, paths, strict=True) if not p.is_file()}
    if missing:
        jobs = [(scene, path) for path, scene in missing.items()]
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(render_scene, jobs, chunksize=8))
    return [Image.open(path).convert("RGB") for path in paths]


def held_out_scenes(count: int, *, seed: int, wearing: bool = False) -> list[Scene]:
    """Subjects and views as the world draws them, in combinations that training never shows.

    With `wearing` only those in which something is worn whose colour shows.
    """
    rng, scenes = random.Random(f"held out {seed}"), list[Scene]()
    while len(scenes) < count:
        identity = world.sample_identity(rng)
        places = [
            place
            for place in world.PLACES
            if world.is_held_out(identity.class_noun, identity.color, place)
        ]
        if not places:
            continue
        view = world.sample_view(rng, identity, place=rng.choice(places))
        if not wearing or truth_of(identity, view)["accessory_color"] is not None:
            scenes.append((identity, view))
    return scenes


def fingerprint(name: str) -> str:
    """First digits of a SHA-256 over the weights of an embedded base or encoder."""
    files = sorted((EMBEDDED / name).rglob("*.safetensors"))
    return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()[:16]
