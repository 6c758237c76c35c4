"""The arithmetic of benchmarks/subjects.py, on which the figures of personalisation rest."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.clay.subjects import TRAINING_PLACES
from finetune.encoders import load_encoder
from finetune.judge import Judge
from finetune.pretrain.judge import LABELS
from finetune.scores import embed_images
from finetune.statistics import difference, interval

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "subjects.py"
NUM_PLACES = 8


@pytest.fixture(scope="module")
def subjects(load_script: Callable[[Path], ModuleType]) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FILE.parent)
        yield load_script(FILE)


def noise(count: int, seed: int) -> list[Image.Image]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return [Image.fromarray(one) for one in pixels]


@pytest.mark.parametrize(("noun", "num_prompts"), [("dog", 12), ("teapot", 8)])
def test_similarity_is_of_places_and_accuracy_of_all_prompts(
    subjects: Any, tmp_path: Path, noun: str, num_prompts: int
) -> None:
    """A judge whose answers are always a dog on the beach with a hat."""
    judge = Judge(labels=LABELS, image_size=32, channels=(16,), depths=(1,), identity_dim=4).eval()
    answers = {"place": "on the beach", "accessory": "hat", "class": "dog"}
    with torch.no_grad():
        for name, answer in answers.items():
            judge.heads[name].weight.zero_()
            judge.heads[name].bias.zero_()[LABELS[name].index(answer)] = 1
    judge.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    photos = embed_images(encoder, noise(8, 1), [str(index) for index in range(8)])
    prompts = subjects.prompts_for(noun)
    assert len(prompts) == num_prompts
    made, of_class = noise(3 * num_prompts, 2), noise(12, 3)
    shown = subjects.Pictures(prompts, made, of_class)
    found = subjects.measure(subjects.Yardstick(judge, encoder, photos, noun), shown)
    assert found.similarity.shape == found.right.shape == (12, 3)
    expected = (judge.embed_images(made) @ judge.embed_images(noise(8, 1)).T).mean(1).numpy()
    np.testing.assert_allclose(found.similarity[:NUM_PLACES].ravel(), expected[:24], atol=1e-5)
    assert np.isnan(found.similarity[NUM_PLACES:]).all()
    told = found.to_dict()
    assert told["prompt_accuracy"] == pytest.approx(2 / 12 if noun == "dog" else 1 / 8)
    assert told["new_place_accuracy"] == pytest.approx(1 / 6)
    assert told["class_accuracy"] == (1.0 if noun == "dog" else 0.0)


def test_new_places_are_those_of_no_training_photo(subjects: Any) -> None:
    new = [prompt for prompt in subjects.PROMPTS if prompt.is_new_place]
    assert len(new) == 6
    assert not {prompt.value for prompt in new} & set(TRAINING_PLACES)


@pytest.mark.parametrize("num_prompts", [8, 12])
def test_subjects_are_pooled_with_intervals_over_subjects_and_prompts(
    subjects: Any, num_prompts: int
) -> None:
    """Base at 0.2, photos at 0.6: a similarity of 0.5 is 0.75 of the way. Things wear nothing."""
    generator = np.random.default_rng(0)

    def measured(level: float, share: float) -> Any:
        similarity, right = np.full((2, 12, 3), np.nan)
        similarity[:NUM_PLACES] = level + generator.normal(0, 0.05, (NUM_PLACES, 3))
        right[:num_prompts] = generator.random((num_prompts, 3)) < share
        return subjects.Measured(similarity, right, 0.2, 1.0)

    floors = [measured(0.2, 0.9) for _ in range(5)]
    rows = {"lora": [measured(0.5, 0.8) for _ in range(5)]}
    found = subjects.pooled(rows, floors, [0.6] * 5)["lora"]
    scaled = []
    for one, floor in zip(rows["lora"], floors, strict=True):
        low = np.nanmean(floor.similarity)
        scaled.append((one.similarity[:NUM_PLACES] - low) / (0.6 - low))
    assert found["normalised"]["mean"] == pytest.approx(np.mean(scaled))
    assert found["normalised"]["mean"] == pytest.approx(0.75, abs=0.05)
    by_hand = interval(np.stack(scaled)[:, None])
    assert found["normalised"]["low"] == pytest.approx(by_hand.low)
    assert "subjects like these 5 and prompts like these 8" in found["normalised"]["speaks_of"]
    own, theirs = (
        np.stack([one.right[:num_prompts] for one in group])[:, None]
        for group in (rows["lora"], floors)
    )
    assert found["prompt_accuracy"]["mean"] == pytest.approx(own.mean())
    parts = [
        {"frozen base": floor.to_dict(), "real_real": 0.6, "lora": one.to_dict()}
        for one, floor in zip(rows["lora"], floors, strict=True)
    ]
    read = subjects.summary([subjects.Row("lora", "lora")], json.loads(json.dumps(parts)))["lora"]
    assert read["normalised"]["low"] == pytest.approx(found["normalised"]["low"], abs=1e-3)
    del read["normalised"], found["normalised"]  # similarities are rounded
    assert read == found
    above = found["prompt_accuracy_above_base"]
    assert above["mean"] == pytest.approx(own.mean() - theirs.mean())
    assert above["low"] == pytest.approx(difference(own, theirs).low)


SUBJECTS = FILE.parents[1] / "examples" / "subjects"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--subjects", "dog", "zebra"], "no zebra in .* which holds cat, dog, duck"),
        (["--folder", "nowhere"], "no subject in nowhere, which holds none"),
        (["--methods", "lora", "training.num_step=3"], "Did you mean 'num_steps'"),
        (["--method", "lora", "--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_what_is_asked_for_is_checked_before_anything_is_trained(
    subjects: Any,
    given: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Changes of the configuration are none of the names before them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["subjects.py", "--output", "all.json", *given])
    with pytest.raises(SystemExit) as end:
        subjects.main()
    assert end.value.code == 2
    assert re.search(told, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_subject_is_known_by_its_files(subjects: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(SUBJECTS / "dog", tmp_path / "dog")
    first = subjects.Subject.read(folder)
    assert first.class_noun == "dog"
    assert first.fingerprint() == subjects.Subject.read(SUBJECTS / "dog").fingerprint()
    next((folder / "held_out").glob("*.jpg")).write_bytes(b"other")
    assert first.fingerprint() != subjects.Subject.read(SUBJECTS / "dog").fingerprint()
