"""The arithmetic of the clay benchmarks."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from data_prep.clay import dataset, world
from finetune.judge import Judge
from finetune.pretrain.judge import LABELS

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "clay"


@pytest.fixture(scope="module")
def scripts(load_script: Callable[[Path], ModuleType]) -> Iterator[Callable[[str], Any]]:
    """The benchmarks by name, which import each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield lambda name: load_script(FOLDER / f"{name}.py")


@pytest.fixture(scope="module")
def measures(scripts: Callable[[str], Any]) -> Any:
    return scripts("measures")


@pytest.fixture(scope="module")
def first_answers() -> Judge:
    """A judge that always gives its first answers: a plain red dog on the grass by day, a photo."""
    judge = Judge(labels=LABELS, image_size=32, channels=(16,), depths=(1,), identity_dim=4).eval()
    for name, head in judge.heads.items():
        torch.nn.init.zeros_(head.weight)
        with torch.no_grad():
            head.bias.copy_(torch.arange(len(LABELS[name]), 0, -1).float())
    return judge.requires_grad_(False)


DOG = world.Identity("dog", "red", "plain", "blue", 1, 2)
BARE = world.View("on the grass", "day", "photo", None, world.Pose(), 0, 10, 3.5, (0, 0, 0), 0, 0)


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


def test_a_paired_difference_by_hand(measures: Any) -> None:
    """Agresti & Min 2005: of ten pairs three won, one lost; 3.5 and 1.5 of 12 with half a pair of each."""
    first, second = [True] * 3 + [False] + [True] * 6, [False] * 3 + [True] + [True] * 6
    found = measures.share_difference(first, second)
    error = math.sqrt(3.5 + 1.5 - (3.5 - 1.5) ** 2 / 12) / 12
    assert found["points"] == 20.0
    assert found["low"] == pytest.approx(100 * (2 / 12 - 1.959964 * error), abs=0.06)
    assert found["high"] == pytest.approx(100 * (2 / 12 + 1.959964 * error), abs=0.06)
    same = measures.share_difference([True, False], [True, False])
    assert (same["points"], same["low"]) == (0.0, -same["high"])


def test_judged_counts_what_a_picture_can_tell(measures: Any, first_answers: Judge) -> None:
    hat = replace(BARE, accessory=("hat", "red"))
    sketch = replace(hat, style="pencil sketch")
    spotted = replace(DOG, pattern="spots")
    scenes = [(DOG, BARE), (DOG, hat), (DOG, sketch), (spotted, BARE)]
    found = measures.judged(first_answers, [Image.new("RGB", (32, 32))] * 4, scenes)
    right = {name: (entry["share"], entry["count"]) for name, entry in found.items()}
    assert right["class"] == (100.0, 4)
    assert right["color"] == (100.0, 3)  # a sketch has none
    assert right["color, plain"] == (100.0, 2)
    assert right["color2"] == (0.0, 1)
    assert right["pattern"] == (75.0, 4)
    assert right["pattern, where told"] == (0.0, 1)
    assert right["pattern, in color"] == (66.7, 3)
    assert right["accessory"] == (50.0, 4)
    assert right["accessory, where worn"] == (0.0, 2)
    assert right["accessory present"] == (0.0, 1)
    assert right["style"] == (75.0, 4)
    assert right["time"] == (100.0, 3)
    assert right["time, where told"] == (None, 0)
    at_night = replace(BARE, time="night")
    found = measures.judged(first_answers, [Image.new("RGB", (32, 32))], [(DOG, at_night)])
    assert (found["time, where told"]["share"], found["time, where told"]["count"]) == (0.0, 1)


def test_a_prompt_is_not_judged_by_what_it_cannot_say(
    scripts: Callable[[str], Any], first_answers: Judge
) -> None:
    found = scripts("base").obedience(
        first_answers, [Image.new("RGB", (32, 32))] * 2, [(DOG, BARE)] * 2
    )
    assert not {"pattern", "pattern, in color", "time", "accessory"} & set(found)
    for name in ("pattern", "time"):
        assert found[f"{name}, where told"]["count"] == 0
    assert found["accessory, where worn"]["count"] == 0
    assert found["class"]["share"] == 100.0


def test_spread_is_the_distance_of_right_pictures_of_one_prompt(
    scripts: Callable[[str], Any], first_answers: Judge
) -> None:
    """The judge sees plain red dogs: a cat, a blue one and one with spots are none of these."""
    base = scripts("base")
    wrong = {"class_noun": "cat"}, {"color": "blue"}, {"pattern": "spots"}
    scenes = [(DOG, BARE), *((replace(DOG, **other), BARE) for other in wrong)]
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), np.uint8)
    images = [Image.fromarray(pixels) for pixels in noise]
    embeds = first_answers.embed_images(images[:8]).numpy()
    pairs = [1 - embeds[i] @ embeds[j] for i in range(8) for j in range(i)]
    distances, counts = base.spread(first_answers, images, scenes)
    assert distances[0] == pytest.approx(np.mean(pairs), abs=1e-6)
    assert all(math.isnan(distance) for distance in distances[1:])
    assert counts == [True] * 8 + [False] * 24
    whole = base.ratio([0.2, 0.4, math.nan], [0.5, 0.5, 0.5])
    assert (whole["pictures"], whole["renders"], whole["ratio"], whole["prompts"]) == (
        0.3,
        0.5,
        0.6,
        2,
    )
    assert (whole["low"], whole["high"]) == (0.4, 0.8)
    assert base.ratio([0.2, math.nan], [math.nan, 0.5])["ratio"] is None


def test_too_few_training_renders_are_noticed_before_anything_is_loaded(
    scripts: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    renders = str(tmp_path / "clay")
    monkeypatch.setattr(
        sys, "argv", ["base.py", "--folder", str(tmp_path), "--training-renders", renders]
    )
    with pytest.raises(SystemExit) as end:
        scripts("base").main()
    assert end.value.code == 2
    assert f"as many as that in {renders}/images" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_record_goes_on_where_it_stopped(measures: Any, tmp_path: Path) -> None:
    path, about, calls = tmp_path / "results" / "base.json", {"network": "a", "pictures": 8}, []

    def measure() -> dict[str, Any]:
        calls.append(len(calls))
        return {"share": calls[-1]}

    def shares(*names: str, **options: Any) -> list[int]:
        record = measures.Record(path, {**about, **options.pop("other", {})}, **options)
        return [record.part(name, measure, of={"prompts": 3})["share"] for name in names]

    assert shares("first", "second") == [0, 1]
    assert shares("first", "second", "third") == [0, 1, 2]
    assert shares("second", anew=True) == [3]
    assert shares("first", "second") == [0, 3]  # what was not asked for anew is kept
    record = measures.Record(path, about)
    assert record.part("first", measure, of={"prompts": 4})["share"] == 4
    record.sum_up({"mean": 2.0})
    assert measures.read_json(path)["summary"] == {"mean": 2.0}
    assert shares("first", other={"network": "b"}) == [5]
    assert list(measures.read_json(path)["parts"]) == ["first"]


def test_two_processes_may_render_the_same_scene(measures: Any, tmp_path: Path) -> None:
    """One is at it, under a name that the other does not take."""
    pytest.importorskip("mitsuba")
    path = tmp_path / "0123.jpg"
    others = [tmp_path / "0123.partial", tmp_path / f".0123.{os.getpid() + 1}.partial"]
    for other in others:
        other.write_bytes(b"half of one")
    measures.render_scene(((DOG, BARE), path))
    with Image.open(path) as image:
        assert image.size == (128, 128)
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


def test_samplers_are_compared_pair_by_pair_on_scenes_with_enough_worn(
    scripts: Callable[[str], Any],
) -> None:
    sampling = scripts("sampling")
    scenes = sampling.scenes_of(20)
    assert len(scenes) == 20
    assert all(view.accessory and view.style != "pencil sketch" for _, view in scenes[10:])
    plain: dict[str, list[bool | None]] = {name: [True] * 4 for name in sampling.ATTRIBUTES}
    worse = {**plain, "color": [False, True, None, True]}
    first, second = sampling.Outcome(plain, 1.0), sampling.Outcome(worse, 2.0)
    assert second.shares()["color"]["count"] == 3
    assert second.shares()["seconds_per_picture"] == 2.0
    read = sampling.Outcome.from_dict(json.loads(json.dumps(second.to_dict())))
    assert read == second
    found = sampling.compared({"first": first, "second": read})["second"]["points above first"]
    assert found["color"]["points"] == pytest.approx(-33.3)
    assert found["class"]["points"] == 0.0


def test_correlation_with_the_truth_has_student_s_interval_over_groups(
    scripts: Callable[[str], Any],
) -> None:
    truth = np.array([0, 0, 1, 1])
    scores = ([0.0, 0.1, 0.2, 0.3], [0.0, 0.2, 0.1, 0.3], [0.3, 0.2, 0.1, 0.0])
    rank = [spearmanr(truth, score).statistic for score in scores]
    found = scripts("truth").correlations([(truth, np.array(score)) for score in scores])
    half = 4.302653 * np.std(rank, ddof=1) / math.sqrt(3)  # two degrees of freedom
    assert found["spearman_of_pictures"] == pytest.approx(np.mean(rank), abs=6e-4)
    assert found["high"] - found["low"] == pytest.approx(2 * half, abs=2e-3)
    assert found["spearman_of_grades"] == pytest.approx(1 / 3, abs=6e-4)


def test_the_judge_sees_each_unseen_subject_once(scripts: Callable[[str], Any]) -> None:
    judge = scripts("judge")
    scenes = judge.unseen_scenes(300)
    assert len({identity for identity, _ in scenes}) == 300
    training = {dataset.draw(0, index)[0] for index in range(300)}
    assert not training & {identity for identity, _ in scenes}
    assert len(set(judge.CLASSES)) == 6


def test_renders_are_found_again_by_their_scene(measures: Any, tmp_path: Path) -> None:
    """Another pose, or another order, is another file; what is there is not rendered once more."""
    turned = replace(BARE, azimuth=20)
    for number, view in enumerate((BARE, turned)):
        name = hashlib.sha256(repr((DOG, view)).encode()).hexdigest()[:20]
        Image.new("RGB", (8, 8), (100 * number,) * 3).save(tmp_path / f"{name}.jpg")
    found = measures.rendered([(DOG, turned), (DOG, BARE)], tmp_path)
    assert [image.getpixel((0, 0))[0] for image in found] == [100, 0]


def test_held_out_scenes_are_held_out_and_prefixes_of_longer_draws(measures: Any) -> None:
    scenes = measures.held_out_scenes(60, seed=3)
    assert scenes[:20] == measures.held_out_scenes(20, seed=3)
    for identity, view in scenes:
        assert world.is_held_out(identity.class_noun, identity.color, view.place)
    assert scenes[:20] != measures.held_out_scenes(20, seed=4)
