"""Looking along training: points, the kept checkpoint, early stopping, resuming, a budget of seconds."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from finetune import train as train_module
from finetune.config import RunConfig, build_run_config
from finetune.errors import ConfigError
from finetune.run import (
    RunFolder,
    build_yardstick,
    preflight,
    prepare_folder,
    prepare_training,
    run_training,
)
from finetune.train import TrainResult
from finetune.validation import Validation, ValidationConfig
from methods import load_method

SCORERS = {"subject": ["clay-clip"], "prompt": "clay-clip"}
PROMPTS = ["a {subject} at night", "a photo of a {class}"]


@pytest.fixture
def start(run_values: Any, tiny_base: Any) -> Any:
    """Trains a LoRA with validation; hands back what came of it and what was learnt."""

    def run(
        output: Path,
        *,
        resume: bool = False,
        num_steps: int = 6,
        kind: str = "lora",
        **sections: Any,
    ) -> tuple[TrainResult, dict[str, torch.Tensor]]:
        validation = {"scorers": SCORERS, "prompts": PROMPTS, **sections.pop("validation", {})}
        training = {"num_steps": num_steps, "batch_size": 1, **sections.pop("training", {})}
        values = run_values(
            kind, output=str(output), prior={"kind": "none"},
            validation=validation, training=training, **sections,
        )  # fmt: skip
        config = build_run_config(values, load_method, "test")
        method = load_method(kind)(config.method)
        preflight(tiny_base, method, config)
        prepared = prepare_training(tiny_base, method, config)
        try:
            prepare_folder(
                config,
                resume=resume,
                overwrite=False,
                allow_changes=("training.num_steps",) * resume,
            )
            result = run_training(tiny_base, method, config, prepared=prepared, resume=resume)
            return result, {k: v.clone() for k, v in method.state_dict(tiny_base).items()}
        finally:
            method.detach(tiny_base)

    return run


def points(run: Path) -> list[dict[str, Any]]:
    return list(json.loads((run / "validation" / "points.json").read_text()))


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


# Nothing that has been learnt keeps such a limit, so no look is ever allowed.
NEVER = {"max_drift": 1e-12}


def test_looking_changes_nothing_that_is_learnt(start: Any, tmp_path: Path) -> None:
    _, blind = start(tmp_path / "blind")
    result, seeing = start(tmp_path / "seeing", validation={"every": 2})
    assert_same(blind, seeing)
    assert [p["point"]["step"] for p in points(tmp_path / "seeing")] == [2, 4, 6]
    assert result.kept_step is None
    assert not list((tmp_path / "seeing").rglob("learnt.safetensors"))
    pictures = sorted(p.name for p in (tmp_path / "seeing/validation/step-000004").iterdir())
    assert pictures == ["00-00.png", "00-01.png", "01-00.png", "01-01.png"]


def test_patience_ends_a_run_and_the_recommended_weights_are_shipped(
    start: Any, tmp_path: Path
) -> None:
    """Where no look is allowed the least bad one is kept: the first, because drift grows."""
    patient = {"every": 1, "patience": 3, "limits": NEVER}
    result, learnt = start(tmp_path / "run", validation=patient)
    assert (result.step, result.finished, result.stopped_early) == (3, True, True)
    drifts = [p["point"]["drift"] for p in points(tmp_path / "run")]
    kept = drifts.index(min(drifts)) + 1
    assert result.kept_step == kept
    _, short = start(tmp_path / "short", num_steps=kept)
    assert_same(learnt, short)
    artifacts = [
        load_file(RunFolder(tmp_path / name).artifact / "pytorch_lora_weights.safetensors")
        for name in ("run", "short")
    ]
    assert_same(*artifacts)
    states = list((tmp_path / "run" / "validation").rglob("learnt.safetensors"))
    assert [path.parent.name for path in states] == [f"step-{kept:06d}"]


def test_the_last_step_is_looked_at_and_may_be_the_only_one(start: Any, tmp_path: Path) -> None:
    never = {"every": 100, "keep": "recommended", "limits": NEVER}
    result, _ = start(tmp_path / "run", num_steps=2, validation=never)
    assert [p["point"]["step"] for p in points(tmp_path / "run")] == [2]
    assert result.kept_step == 2
    longer = {"validation": {"every": 2}, "training": {"checkpoint_every": 1}}
    start(tmp_path / "longer", num_steps=3, **longer)
    assert [p["point"]["step"] for p in points(tmp_path / "longer")] == [2, 3]
    # Killed before its last look: that is made up for.
    path = tmp_path / "longer" / "validation" / "points.json"
    whole = path.read_text()
    path.write_text(json.dumps(points(tmp_path / "longer")[:1]))
    start(tmp_path / "longer", num_steps=3, resume=True, **longer)
    assert json.loads(path.read_text()) == json.loads(whole)


def test_a_signal_in_the_last_look_is_told_though_the_run_is_finished(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Validation.look

    def look(self: Validation, step: int) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        return real(self, step)

    monkeypatch.setattr(Validation, "look", look)
    result, _ = start(tmp_path / "run", num_steps=1, validation={"every": 1})
    assert (result.step, result.finished, result.signal) == (1, True, signal.SIGINT)


def test_looks_call_the_subject_what_it_was_taught_as(
    run_values: Any, tiny_base: Any, tmp_path: Path
) -> None:
    """A run that calls a dog a cat beside others that do not: they share what pictures are held against."""

    def config(class_noun: str) -> RunConfig:
        values = run_values(
            "lora", output=str(tmp_path / "run"), prior={"kind": "none"},
            data={"class_noun": class_noun},
            validation={"every": 1, "scorers": SCORERS, "prompts": PROMPTS},
        )  # fmt: skip
        return build_run_config(values, load_method, "test")

    yardstick = build_yardstick(tiny_base, config("dog"))
    run = config("cat")
    method = load_method("lora")(run.method)
    try:
        prepared = prepare_training(tiny_base, method, run, yardstick=yardstick)
        assert prepared.validation is not None
        prepared.validation.look(1)
        images = {
            noun: [np.asarray(image) for image in yardstick.pictures(tiny_base, f"sks {noun}")]
            for noun in ("cat", "dog")
        }
    finally:
        method.detach(tiny_base)
    assert method.subject_phrase("cat") == "sks cat"
    files = [path for row in prepared.validation.pictures_of(1) for path in row]
    made = [np.asarray(Image.open(path)) for path in files]
    assert np.array_equal(made, images["cat"])
    assert not np.array_equal(made, images["dog"])


@pytest.mark.parametrize("kind", ["textual_inversion", "dreambooth"])
def test_every_method_keeps_the_recommended_checkpoint(
    kind: str, start: Any, tmp_path: Path, tiny_base: Any
) -> None:
    keep = {"every": 1, "keep": "recommended", "limits": NEVER}
    result, learnt = start(tmp_path / "run", kind=kind, num_steps=2, validation=keep)
    assert result.kept_step in (1, 2)
    _, short = start(tmp_path / "short", kind=kind, num_steps=result.kept_step)
    assert_same(learnt, short)
    assert tiny_base.current_fingerprint() == tiny_base.fingerprint


def test_a_resumed_run_looks_and_keeps_as_an_unbroken_one(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "validation": {"every": 1, "keep": "recommended", "limits": NEVER},
        "training": {"checkpoint_every": 2},
    }
    whole, unbroken = start(tmp_path / "whole", **options)
    real = train_module.check_finite

    def killed(num_skipped: int, step: int, config: Any) -> None:
        real(num_skipped, step, config)
        if step == 4:  # after its checkpoint, before its look
            raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "check_finite", killed)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "broken", **options)
    monkeypatch.undo()
    assert [p["point"]["step"] for p in points(tmp_path / "broken")] == [1, 2, 3]
    result, resumed = start(tmp_path / "broken", resume=True, **options)
    assert (result.step, result.kept_step) == (whole.step, whole.kept_step)
    assert points(tmp_path / "broken") == points(tmp_path / "whole")
    assert_same(resumed, unbroken)


def test_a_budget_of_seconds_ends_after_the_step_that_spends_it(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that shows a second more whenever it is asked: two readings a step."""
    ticks = itertools.count()
    monkeypatch.setattr(train_module.time, "monotonic", lambda: float(next(ticks)))
    result, _ = start(tmp_path / "run", num_steps=50, training={"max_seconds": 3.5})
    assert (result.step, result.step_seconds) == (4, 4.0)
    assert result.finished
    assert result.stopped_early


def test_what_cannot_be_measured_or_timed_is_refused(run_values: Any, tiny_base: Any) -> None:
    for section, match in (
        ({"validation": {"patience": 3}}, r"validation\.patience counts looks"),
        ({"validation": {"every": 1, "prompts": ["a {subject}"]}}, "every prompt mentions"),
        ({"validation": {"every": 1, "prompts": ["a car"]}}, "no prompt mentions"),
        ({"training": {"max_seconds": 3}, "optimizer": {"schedule": "cosine"}}, "schedule cosine"),
    ):
        config = build_run_config(run_values("lora", **section), load_method, "test")
        with pytest.raises(ConfigError, match=match):
            preflight(tiny_base, load_method("lora")(config.method), config)


def test_prompts_may_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "validation.txt"
    path.write_text("a {subject} at sea\na photo of a {class}\n")
    config = ValidationConfig(prompts=str(path))
    assert config.templates() == ("a {subject} at sea", "a photo of a {class}")
