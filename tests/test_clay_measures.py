"""The arithmetic of the clay benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from data_prep.clay import world
from finetune.judge import Judge
from finetune.pretrain.judge import LABELS

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "clay" / "measures.py"


@pytest.fixture(scope="module")
def measures(load_script: Callable[[Path], ModuleType]) -> Any:
    return load_script(FILE)


def test_share_has_wilson_s_interval(measures: Any) -> None:
    """Wilson 1927 with z = 1.96: 8 of 10 lie in 49.0 ... 94.3 %."""
    z, n, p = 1.959964, 10, 0.8
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = measures.share([True] * 8 + [False] * 2)
    assert found["share"] == 80.0
    assert found["low"] == pytest.approx(100 * (centre - half), abs=0.06)
    assert found["high"] == pytest.approx(100 * (centre + half), abs=0.06)
    assert measures.share([])["count"] == 0


def test_kernel_distance_by_hand_and_without_bias(measures: Any) -> None:
    a, b = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    within_a, within_b = 1.0, 1.0  # (0 / 2 + 1)³ between the two of each
    between = ((2 / 2 + 1) ** 3 + 1 + 1 + 1) / 4
    assert measures.kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * between)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(40, 2, 60, 8, generator=generator).double()
    distances = torch.tensor([measures.kernel_distance(x, y) for x, y in drawn])
    error = float(distances.std()) / math.sqrt(len(distances))
    assert abs(float(distances.mean())) < 3 * error


def test_judged_counts_what_a_picture_can_tell(measures: Any) -> None:
    """A judge that always gives its first answers: a plain red dog on the grass by day, a photo."""
    judge = Judge(labels=LABELS, image_size=32, channels=(16,), depths=(1,), identity_dim=4).eval()
    for name, head in judge.heads.items():
        torch.nn.init.zeros_(head.weight)
        with torch.no_grad():
            head.bias.copy_(torch.arange(len(LABELS[name]), 0, -1).float())
    dog = world.Identity("dog", "red", "plain", "blue", 1, 2)
    bare = world.View(
        "on the grass", "day", "photo", None, world.Pose(), 0, 10, 3.5, (0, 0, 0), 0, 0
    )
    hat = replace(bare, accessory=("hat", "red"))
    sketch = replace(hat, style="pencil sketch")
    spotted = replace(dog, pattern="spots")
    scenes = [(dog, bare), (dog, hat), (dog, sketch), (spotted, bare)]
    found = measures.judged(judge, [Image.new("RGB", (32, 32))] * 4, scenes)
    right = {name: (entry["share"], entry["count"]) for name, entry in found.items()}
    assert right["class"] == (100.0, 4)
    assert right["color"] == (100.0, 3)  # a sketch has none
    assert right["color, plain"] == (100.0, 2)
    assert right["color2"] == (0.0, 1)
    assert right["pattern"] == (75.0, 4)
    assert right["accessory"] == (50.0, 4)
    assert right["accessory, where worn"] == (0.0, 2)
    assert right["accessory present"] == (0.0, 1)
    assert right["style"] == (75.0, 4)


def test_held_out_scenes_are_held_out_and_prefixes_of_longer_draws(measures: Any) -> None:
    scenes = measures.held_out_scenes(60, seed=3)
    assert scenes[:20] == measures.held_out_scenes(20, seed=3)
    for identity, view in scenes:
        assert world.is_held_out(identity.class_noun, identity.color, view.place)
    assert scenes[:20] != measures.held_out_scenes(20, seed=4)
