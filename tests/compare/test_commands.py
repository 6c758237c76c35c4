"""`finetune compare` and `finetune evaluate` as commands: files, exit codes, one sentence for mistakes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from finetune.cli import app
from finetune.config import merge
from finetune.results import read_results

Values = Callable[..., dict[str, Any]]


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(*arguments: str | Path) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.count("Error: ") == 1
    assert "Traceback" not in result.output
    return str(result.stderr).partition("Error: ")[2].strip()


@pytest.fixture
def config(values: Values, tmp_path: Path) -> Path:
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump(values()))
    return path


def test_a_comparison_its_continuation_its_merge_and_scores_of_its_pictures(
    config: Path, suite_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = invoke("compare", config)
    assert first.exit_code == 0, (first.output, first.exception)
    assert "rex, seed 0: low" in first.stdout
    assert f"Page: {out / 'report.html'}" in first.stdout
    for name in ("report.html", "grid.png", "results.json"):
        assert (out / name).stat().st_size > 1000
    before = (out / "comparison.json").read_bytes()
    assert "num_images: 2 → 1" in refusal("compare", config, "num_images=1")
    assert (out / "comparison.json").read_bytes() == before
    again = invoke("compare", config)
    assert again.exit_code == 0
    assert "seed 0: low" not in again.stdout

    both = tmp_path / "both"
    merged = invoke("compare", "--from", out, out, f"output={both}")
    assert merged.exit_code == 0, (merged.output, merged.exception)
    own, joined = read_results(out), read_results(both)
    assert joined.summaries == own.summaries
    assert joined.verdict == own.verdict
    assert "nothing is written over" in refusal("compare", "--from", out, f"output={both}")

    prompts = tmp_path / "prompts.txt"
    subject = own.subjects[0]
    prompts.write_text("".join(f"{prompt.template}\n" for prompt in subject.prompts))
    scored = invoke(
        "evaluate", out / "cells/low/rex/seed-0/pictures",
        "--subject", suite_folder / "rex", "--class-noun", "dog", "--prompts", prompts,
        "--base-pictures", out / "cells/frozen base/rex/seed-0/pictures",
        "--scorer", "clay-clip", "--prompt-scorer", "clay-clip", "--output", tmp_path / "scored",
    )  # fmt: skip
    assert scored.exit_code == 0, (scored.output, scored.exception)
    (theirs,) = read_results(tmp_path / "scored").cells_of("pictures")
    (ours,) = own.cells_of("low")
    assert theirs.scores == ours.scores
    assert read_results(tmp_path / "scored").subjects[0].name == "rex"
    means = {s.score: s.estimate for s in read_results(tmp_path / "scored").summaries
             if s.row == "pictures"}  # fmt: skip
    mean = means["class_drift/clay-clip"].mean
    assert re.search(rf"^pictures +Drift of the class +{mean:.3f}", scored.stdout, re.M)
    assert "class_drift/clay-clip" not in scored.stdout
    for remark in read_results(tmp_path / "scored").remarks:
        assert remark in scored.stdout


def test_a_comparison_of_which_a_row_failed_says_so_and_ends_with_code_3(
    config: Path, tmp_path: Path
) -> None:
    """All there is to compare failed, while it was tuned; the page says it too."""
    broken = {"method": {"learning_rate": 1e30}, "training": {"max_non_finite_steps": 1}}
    values = yaml.safe_load(config.read_text())
    values["methods"] = {"low": merge(values["methods"]["low"], broken)}
    tune = {"trials": 1, "learning_rate_factors": [1.0], "num_steps": [3]}
    config.write_text(yaml.safe_dump({**values, "tune": tune}))
    result = invoke("compare", config)
    assert result.exit_code == 3, (result.output, result.exception)
    assert "Failed: low: No trial of 1 succeeded" in result.stderr
    assert "--retry-failed" in result.stdout
    assert f"Page: {tmp_path / 'out' / 'report.html'}" in result.stdout
    assert "No trial of 1 succeeded" in (tmp_path / "out" / "report.html").read_text()


def test_mistakes_are_one_sentence_and_leave_nothing_behind(config: Path, tmp_path: Path) -> None:
    assert refusal("compare").startswith("Give a configuration")
    assert "is given 2 times" in refusal("compare", "--from", "a", "output=b", "output=c")
    assert "joining writes over nothing" in refusal("compare", "--from", "a", "--overwrite")
    message = refusal("compare", config, "scorers.subject=[dino-s15]")
    assert "There is no scorer 'dino-s15'" in message
    assert "Did you mean 'dino-s16'" in message
    judge = "validation.scorers.prompt=clip-b23"
    assert "no scorer 'clip-b23'" in refusal("compare", config, "validation.every=1", judge)
    (tmp_path / "weights").mkdir()
    judge = f"validation.scorers.subject=[dino-s16={tmp_path / 'weights'}]"
    assert "weights" in refusal("compare", config, "tune={trials: 1}", judge)
    message = refusal("compare", config, "prompts=[a dog]")
    assert message.startswith("prompts, number 1: 'a dog' does not mention {subject}")
    assert "subjects: " in refusal("compare", config, "subjects=[tom]")
    assert not (tmp_path / "out").exists()


def test_mistakes_in_an_evaluation(suite_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    pictures = suite_folder / "rex"  # 0.png, 1.png, 2.png: of prompts 0, 1 and 2
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a {subject} at sea\n")
    common: list[str | Path] = [
        "evaluate", pictures, "--subject", suite_folder / "rex", "--class-noun", "dog",
        "--prompts", prompts, "--output", tmp_path / "scored",
    ]  # fmt: skip
    assert "1.png is of prompt 1, but there are only 1" in refusal(*common)
    assert "not both" in refusal(*common, "--base", "clay", "--base-pictures", pictures)
    assert "'alive' is not one of live, object" in refusal(*common, "--kind", "alive")
    prompts.write_text("a {subject} at sea\na {subject} by day\na {subject} by night\n")
    assert "There is no scorer 'clip'" in refusal(*common, "--scorer", "clip")
    assert "--name: '../rex' cannot be" in refusal(*common, "--name", "../rex")
    small = tmp_path / "small"
    shutil.copytree(pictures, small)
    Image.new("RGB", (17, 17)).save(small / "0.png")
    wrong = refusal(*(small if a == pictures else a for a in common), "--base", tiny_folder)
    assert wrong.startswith(f"--base: small holds pictures of 17 × 17, and {tiny_folder} makes")
    assert not (tmp_path / "scored").exists()
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({"schema_version": 1}))
    assert "cannot be read as results of a comparison" in refusal("compare", "--from", broken)
