"""The study of DreamBooth's findings: its configuration, and what is made of its results."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from report_results import ENCODER, Wanted, results_in
from scipy import stats

from data_prep.clay.subjects import STUDY
from data_prep.clay.world import ANIMALS, CLASSES, all_words
from finetune.compare.config import CompareConfig
from finetune.compare.plan import method_runs
from finetune.config import build_run_config, read_yaml, validate
from finetune.errors import ArtifactError
from finetune.results import Cell, Results, write_results
from methods import load_method

ROOT = Path(__file__).resolve().parents[1]
CLAY = ROOT / "configs" / "clay"
ROWS = ("dreambooth", "dreambooth without prior", "dreambooth with wrong noun", "textual inversion")
Values = Mapping[str, Mapping[str, Sequence[float | None]]]
"""Score id -> row -> a value per subject, the same for each of its pictures; None for none."""


@pytest.fixture(scope="module")
def study(load_script: Callable[[Path], ModuleType]) -> Any:
    return load_script(ROOT / "benchmarks" / "clay" / "study.py")


def results_of(folder: Path, values: Values, *, methods: Sequence[str] = ROWS) -> Results:
    """Four subjects, two test prompts of two pictures; values are equal within a subject."""
    subjects = ("ann", "bob", "cy", "dee")
    drawn = results_in(folder, Wanted(methods=methods, subjects=subjects, steps=()))

    def scored(cell: Cell) -> Cell:
        if cell.row not in methods:
            return cell
        kept = {}
        for id, by_row in values.items():
            level = by_row.get(cell.row, [None] * 4)[subjects.index(cell.subject)]
            if level is not None:
                table = cell.scores[f"{id}/{ENCODER}"]
                kept[f"{id}/{ENCODER}"] = tuple((level,) * len(line) for line in table)
        return cell.model_copy(update={"scores": kept})

    return drawn.model_copy(update={"cells": tuple(map(scored, drawn.cells))})


def test_a_finding_is_the_paired_difference_with_student_s_interval(
    study: Any, tmp_path: Path
) -> None:
    """Of three claims about subject fidelity, so each at 1 - 0.05 / 3; the one about leak at 95 %."""
    values = {
        "subject_fidelity": {
            "dreambooth": [0.7, 0.8, 0.6, 0.7],
            "textual inversion": [0.6, 0.6, 0.3, 0.5],  # differences 0.1, 0.2, 0.3, 0.2
            "dreambooth without prior": [0.5, 0.6, 0.4, 0.5],  # 0.2 each: the paper says below 0
            "dreambooth with wrong noun": [0.2, 0.9, 0.9, 0.1],  # 0.5, -0.1, -0.3, 0.6
        },
        "class_leak": {
            "dreambooth": [0.3, 0.2, 0.3, 0.2],
            "dreambooth without prior": [0.4, 0.4, 0.6, 0.4],  # -0.1, -0.2, -0.3, -0.2
        },
    }
    found = {
        (f.claim.score, f.claim.other): f for f in study.findings(results_of(tmp_path, values))
    }
    spread = math.sqrt((0.1**2 + 0.1**2) / 3) / math.sqrt(4)

    def check(score: str, other: str, mean: float, half: float, outcome: str) -> None:
        finding = found[score, other]
        assert finding.outcome == outcome
        measured = finding.difference.interval
        assert measured.mean == pytest.approx(mean)
        assert (measured.low, measured.high) == pytest.approx((mean - half, mean + half))

    third = float(stats.t.ppf(1 - 0.05 / 6, 3)) * spread
    whole = float(stats.t.ppf(0.975, 3)) * spread
    check("subject_fidelity", "textual inversion", 0.2, third, "reproduced")
    check("subject_fidelity", "dreambooth without prior", 0.2, 0.0, "reversed")
    check("class_leak", "dreambooth without prior", -0.2, whole, "reproduced")
    open_one = found["subject_fidelity", "dreambooth with wrong noun"]
    assert open_one.outcome == "cannot tell"
    assert open_one.difference.interval.mean == pytest.approx(0.175)
    assert "would settle it" in open_one.difference.needed


def test_what_failed_is_left_out_of_both_rows_and_what_is_missing_is_not_measured(
    study: Any, tmp_path: Path
) -> None:
    values = {
        "class_drift": {
            "dreambooth": [0.1, 0.1, 0.2, 0.9],
            "dreambooth without prior": [0.2, 0.3, 0.3, None],
        },
        "diversity": {"dreambooth": [0.1, 0.1, 0.2, 0.9]},
    }
    found = {f.claim.score: f for f in study.findings(results_of(tmp_path, values))}
    assert found["class_drift"].difference.interval.mean == pytest.approx(-0.4 / 3)
    assert found["class_drift"].difference.interval.speaks_of.startswith("subjects like these 3")
    assert found["diversity"].outcome == "not measured"
    assert found["prompt_fidelity"].outcome == "not measured"


def test_results_of_another_comparison_are_refused(study: Any, tmp_path: Path) -> None:
    other = results_of(tmp_path, {}, methods=("dreambooth", "lora"))
    with pytest.raises(ArtifactError, match=r"no row .* without prior, .* and textual inversion"):
        study.findings(other)


def test_published_differences_are_on_the_side_that_is_expected(study: Any) -> None:
    for claim in study.CLAIMS:
        for name, ours, other in claim.published:
            assert (ours > other) == (claim.expected == "higher"), name


def test_findings_are_written_between_the_marks_and_nowhere_else(
    study: Any, tmp_path: Path
) -> None:
    values = {
        "diversity": {
            "dreambooth": [0.5, 0.6, 0.5, 0.6],
            "dreambooth without prior": [0.3, 0.4, 0.4, 0.5],  # 0.2, 0.2, 0.1, 0.1
        }
    }
    results = results_of(tmp_path, values)
    write_results(results, tmp_path)
    page = tmp_path / "docs" / "study.md"
    page.parent.mkdir()
    page.write_text(f"Before.\n\n{study.BEGIN}\nOld.\n{study.END}\n\nAfter.\n", encoding="utf-8")
    study.publish(tmp_path, page, minutes=51)
    text = page.read_text("utf-8")
    assert text.startswith(f"Before.\n\n{study.BEGIN}\n\nOf 7 differences: 6 not measured and 1 ")
    assert text.endswith(f"\n\n{study.END}\n\nAfter.\n")
    assert "Old." not in text
    half = float(stats.t.ppf(0.975, 3)) * math.sqrt(4 * 0.05**2 / 3) / 2
    assert (
        "| `dreambooth without prior` | diversity, clay-clip | DIV 0.391 against 0.371 (Table 3, Imagen) "
        f"| +0.150 (+{0.15 - half:.3f} to +{0.15 + half:.3f}) | **reproduced** |"
    ) in text
    assert "everything 51 min" in text
    kept = page.with_suffix(".json")
    assert json.loads(kept.read_text("utf-8")) == results.model_dump(mode="json")
    study.publish(kept, page, minutes=51)  # from what was kept, the same again
    assert page.read_text("utf-8") == text
    page.write_text("No marks.", encoding="utf-8")
    with pytest.raises(ArtifactError, match="lacks the lines <!-- findings"):
        study.publish(kept, page)
    assert study.BEGIN in (ROOT / "docs" / "study.md").read_text("utf-8")


@pytest.fixture(scope="module")
def config() -> CompareConfig:
    path = CLAY / "study.yaml"
    assert path.read_text("utf-8").startswith("# ")
    return validate(CompareConfig, read_yaml(path), str(path))


@pytest.mark.parametrize("name", ["study.yaml", "compare.yaml"])
def test_rows_have_the_settings_of_their_methods_own_files(name: str) -> None:
    comparison = validate(CompareConfig, read_yaml(CLAY / name), name)
    named = method_runs(comparison, load_method)
    runs = {row.replace(" ", "_"): run for row, run in named.items()}
    for kind in ("dreambooth", "lora", "textual_inversion"):
        values = read_yaml(CLAY / f"{kind}.yaml")
        if name == "study.yaml":  # half the steps, and LoRA's rate for those
            values["training"]["num_steps"] //= 2
            values["method"]["learning_rate"] *= 2 if kind == "lora" else 1
        own = build_run_config(values, load_method, kind)
        for section in ("method", "prior", "loss", "optimizer", "training", "sampling"):
            assert getattr(runs[kind], section) == getattr(own, section), (kind, section)
        assert runs[kind].data.prompt == own.data.prompt


def test_dreambooth_s_variants_differ_from_it_in_one_thing_each(config: CompareConfig) -> None:
    right = config.methods["dreambooth"]
    assert config.methods["dreambooth without prior"] == {**right, "prior": {"kind": "none"}}
    wrong = dict(config.methods["dreambooth with wrong noun"])
    nouns = wrong.pop("class_noun")
    assert wrong == right
    assert set(nouns) == set(STUDY)
    true = {identity.class_noun for identity in STUDY.values()}
    for name, noun in nouns.items():
        assert (noun in ANIMALS) != (STUDY[name].class_noun in ANIMALS), name
        assert noun in true, "its class pictures would be made for this row alone"


def test_the_study_is_as_large_as_it_says_in_words_the_base_knows(config: CompareConfig) -> None:
    assert (len(STUDY), len(config.prompts), config.num_images) == (8, 12, 4)
    assert {identity.class_noun for identity in STUDY.values()} <= set(CLASSES)
    for template in config.prompts:
        words = template.replace("{subject}", "dog").split()
        assert set(words) <= set(all_words()), template
