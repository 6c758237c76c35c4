"""Numbers in words, and what the tables say of results."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from report_results import ENCODER, Wanted

from finetune.report import charts, tables
from finetune.report.numbers import (
    Whisker,
    count,
    interval,
    seconds,
    size,
    whiskers,
)
from finetune.report.page import facts
from finetune.results import REAL_PHOTOS, Cell, Costs, Difference, Estimate, Results, Trial

Make = Callable[[Wanted], Results]
MINUS = "\N{MINUS SIGN}"


def test_intervals_are_written_whole_or_not_at_all() -> None:
    assert interval(Estimate(mean=0.5, low=0.4, high=0.6)) == "0.400 to 0.600"
    assert (
        interval(Estimate(mean=0.0, low=-0.1, high=0.2), signed=True) == f"{MINUS}0.100 to +0.200"
    )
    assert interval(Estimate(mean=0.5)) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0123, "0.012 s"),
        (0.521, "0.52 s"),
        (9.949, "9.95 s"),
        (9.96, "10 s"),
        (119.4, "119 s"),
        (119.6, "2 min 0 s"),
        (725, "12 min 5 s"),
        (12_000, "3 h 20 min"),
    ],
)
def test_durations(value: float | None, text: str) -> None:
    assert seconds(value) == text


def test_counts_and_sizes() -> None:
    assert count(797_184) == "797\N{NARROW NO-BREAK SPACE}184"
    assert (count(None), count(12)) == ("–", "12")
    assert (size(None), size(3_190_000), size(512)) == ("–", "3.2 MB", "512 bytes")


def test_whiskers_share_one_scale() -> None:
    drawn = whiskers([Estimate(mean=1, low=0, high=2), Estimate(), Estimate(mean=4)])
    # 0 is at 3 percent, 4 at 97, so a unit takes 23.5.
    assert drawn == [Whisker(3, 26.5, 50), None, Whisker(97, 97, 97)]
    assert whiskers([Estimate(), Estimate()]) == [None, None]
    (one,) = whiskers([Estimate(mean=3)])
    assert one == Whisker(3, 3, 3)


def test_differences_have_zero_in_the_middle() -> None:
    drawn = whiskers([Estimate(mean=0.1, low=-0.1, high=0.2)], with_zero=True)
    # From -0.2 at 3 percent to 0.2 at 97: zero at 50, a tenth takes 23.5.
    assert drawn == [Whisker(26.5, 73.5, 97, 50)]


def test_the_better_row_is_named_whatever_is_better(make_results: Make) -> None:
    results = make_results(Wanted(steps=()))
    scores = {score.id: score for score in results.scores}

    def said(id: str, found: str) -> str:
        pair = Difference(
            score=f"{id}/{ENCODER}", row="a", other="b", estimate=Estimate(), conclusion=found
        )
        return tables.conclusion(pair, scores[id])

    assert said("subject_fidelity", "higher") == "a is better"
    assert said("subject_fidelity", "lower") == "b is better"
    assert said("class_drift", "higher") == "b is better"
    assert said("class_drift", "lower") == "a is better"
    assert said("diversity", "lower") == "b is higher"
    assert said("class_drift", "cannot tell") == "cannot tell"


def test_the_table_of_scores_holds_every_summary(make_results: Make) -> None:
    results = make_results(Wanted(num_photos=1))
    table = tables.score_table(results, results.scores)
    assert table is not None
    assert [name for name, _, _ in table.lines] == [row.name for row in results.rows]
    assert [reference for _, reference, _ in table.lines] == [True] * 3 + [False] * 2
    found = {(s.row, s.score): s.estimate for s in results.summaries}
    for name, _, figures in table.lines:
        for score, figure in zip(table.scores, figures, strict=True):
            estimate = found.get((name, score.key), Estimate())
            assert figure.mean == ("–" if estimate.mean is None else f"{estimate.mean:.3f}")
    (real,) = [figures for name, _, figures in table.lines if name == REAL_PHOTOS]
    assert real[0].note == 1
    assert table.notes == ("Too few photos to compare them with each other.",)
    assert table.speaks_of == ("this subject and prompts like these",)
    assert tables.score_table(results, []) is None


def test_costs_are_means_and_peaks_over_finished_cells(make_results: Make) -> None:
    results = make_results(
        Wanted(methods=("lora",), seeds=(0, 1, 2), failed=[("lora", "rex", 2)], steps=())
    )

    def priced(cell: Cell) -> Cell:
        if cell.row != "lora" or cell.status == "failed":
            return cell
        costs = Costs(
            train_seconds=100.0 + 20 * cell.seed,
            picture_seconds=None if cell.seed else 0.5,
            peak_memory_bytes=10**9 * (1 + cell.seed),
        )
        return cell.model_copy(
            update={
                "costs": costs,
                "num_steps": 200 + cell.seed,
                "kept_step": 150,
                "artifact_bytes": 1000,
            }
        )

    results = results.model_copy(update={"cells": tuple(map(priced, results.cells))})
    base, lora = tables.costs(results)
    assert (base.row, base.steps, base.train) == ("frozen base", "–", "83 s")
    assert (lora.num_cells, lora.train, lora.per_picture) == (2, "110 s", "0.50 s")
    assert (lora.memory, lora.steps, lora.kept) == ("2.0 GB", "200 to 201", "150")
    assert (lora.artifact, lora.trainable) == ("1.0 kB", "797\N{NARROW NO-BREAK SPACE}184")


def test_a_row_that_was_never_run_is_a_failure(make_results: Make) -> None:
    results = make_results(Wanted(methods=("lora",), steps=()))
    rows = tuple(
        row.model_copy(update={"error": "All its trials failed."}) if row.name == "lora" else row
        for row in results.rows
    )
    cells = tuple(cell for cell in results.cells if cell.row != "lora")
    (failure,) = tables.failures(results.model_copy(update={"rows": rows, "cells": cells}))
    assert (failure.row, failure.subject, failure.error) == (
        "lora",
        "all",
        "All its trials failed.",
    )


def test_plots_take_the_headline_scores(make_results: Make) -> None:
    results = make_results(Wanted())
    points, ceiling = charts.points(results)
    assert [point.name for point in points] == ["frozen base", "dreambooth", "lora"]
    assert ceiling == pytest.approx(0.8)
    found = {(s.row, s.score): s.estimate for s in results.summaries}
    lora = found["lora", f"subject_fidelity/{ENCODER}"]
    assert (points[2].subject.mean, points[2].subject.low) == (lora.mean, lora.low)
    assert points[2].drift == found["lora", f"class_drift/{ENCODER}"].mean
    assert [point.drift for point in points if point.reference] == [None]
    (panel,) = charts.panels(results)
    assert [(line.name, line.series, line.recommended) for line in panel.lines] == [
        ("dreambooth", 0, 50),
        ("lora", 1, 50),
    ]
    assert panel.limits == [0.08]
    others = tuple(score.model_copy(update={"headline": False}) for score in results.scores)
    bare = results.model_copy(update={"scores": others})
    assert charts.points(bare) == ([], None)
    assert charts.pareto(bare) == []


def test_curves_are_drawn_by_whatever_network_judged_them_and_name_it(make_results: Make) -> None:
    """Validation may have judges of its own; drift along training is a score of no table."""
    results = make_results(Wanted(methods=("lora",)))
    (panel,) = charts.panels(results)
    assert panel.title == "Subject fidelity ↑"
    (curve,) = results.curves
    (means,) = curve.scores.values()
    own = curve.model_copy(
        update={
            "scores": {f"drift/{ENCODER}": means, "subject_fidelity/dino-s16": means},
            "limits": {f"drift/{ENCODER}": 0.2},
        }
    )
    first, second = charts.panels(results.model_copy(update={"curves": (own,)}))
    assert first.title == "Subject fidelity ↑, by dino-s16"
    assert second.title == "Drift from the frozen base ↓"
    assert [line.means for line in first.lines] == [[estimate.mean for estimate in means]]
    assert second.limits == [0.2]


def test_trials_show_what_judged_them_and_that_the_chosen_one_broke_limits(
    make_results: Make,
) -> None:
    results = make_results(Wanted(methods=("lora",), steps=()))

    def trial(rate: float, subject: float, allowed: bool) -> Trial:
        scores = {
            "prompt_fidelity/clip-b32": 0.3,
            "subject_fidelity/dino-s16": subject,
            f"drift/{ENCODER}": 0.25,
            "copy/dino-s16": 0.9,
        }
        return Trial(
            settings={"method.learning_rate": 3.0 * rate, "training.num_steps": 200},
            status="finished",
            scores=scores,
            allowed=allowed,
        )

    tried = (trial(1e-4, 0.5, False), trial(1e-3, 0.6, False), trial(1e-5, 0.2, True))
    failed = Trial(settings={"method.learning_rate": 1.0}, status="failed", error="No memory.")

    def shown(chosen: int | None) -> tables.Trials:
        changes = {"trials": (*tried, failed), "chosen_trial": chosen}
        rows = tuple(
            row.model_copy(update=changes) if row.name == "lora" else row for row in results.rows
        )
        (found,) = tables.trials(results.model_copy(update={"rows": rows}))
        return found

    found = shown(0)
    assert found.scores == (
        "Subject fidelity ↑, by dino-s16",
        "Prompt fidelity ↑, by clip-b32",
        "Drift from the frozen base ↓",
    )
    assert found.lines[0] == (
        "learning_rate 0.0003, num_steps 200",
        ("0.500", "0.300", "0.250"),
        "chosen, though outside the limits",
        True,
    )
    assert [outcome for _, _, outcome, _ in found.lines[1:]] == [
        "outside the limits",
        "",
        "failed: No memory.",
    ]
    assert shown(2).lines[2][2:] == ("chosen", True)
    assert not shown(None).chosen


def test_facts_count_what_was_compared(make_results: Make) -> None:
    assert facts(make_results(Wanted(subjects=("rex", "bo"), seeds=(1, 2)))) == [
        "2 methods",
        "2 subjects",
        "2 prompts, 2 pictures each",
        "2 training seeds",
        "base clay",
    ]
