"""Learning curves of rows from those of their cells, by hand."""

from __future__ import annotations

import pytest

from finetune.checkpoint_rule import Limits
from finetune.compare.summaries import curve_of
from finetune.results import Cell, CurvePoint, Made, Results, Row, Rule, Subject

LIMITS = Limits(max_drift=0.5, max_copy_share=0.25, min_prompt_fidelity=0.75)
ROW = Row(name="lora", kind="method")


def looked(step: int, subject: float | None, *, drift: float = 0.0) -> CurvePoint:
    scores = {
        "subject_fidelity/net": subject,
        "prompt_fidelity/net": 0.5,
        "drift/net": drift,
        "copy/net": 0.5,
        "copy_share/net": 0.0,
    }
    return CurvePoint(step=step, scores=scores, pictures=())


def results_of(**curves: list[CurvePoint]) -> Results:
    """A row on as many subjects as there are curves; the frozen base's noise is 0.2 on each."""
    return Results(
        title="",
        made=Made(command="", made_by="", python="", platform="", device="", threads=1, versions={}),
        base=None,
        budget=None,
        rule=Rule(text="", limits=LIMITS.model_dump()),
        num_images=1,
        seeds=(0,),
        sampling={},
        subjects=tuple(
            Subject(name=name, class_noun="dog", kind="live", photos=(), prompts=())
            for name in curves
        ),
        encoders=(),
        scores=(),
        rows=(ROW,),
        cells=tuple(
            Cell(
                row="lora", subject=name, seed=0, status="finished", curve=tuple(curve),
                curve_scale={"prompt_fidelity": 0.5, "noise": 0.2},
            )
            for name, curve in curves.items()
        ),
        summaries=(), differences=(), curves=(), verdict=(), settings={},
    )  # fmt: skip


def test_a_run_that_went_on_alone_does_not_speak_for_the_row() -> None:
    """`rex` ended at 20; from then on `tom` alone gets better, and breaks the limits."""
    curve = curve_of(
        results_of(
            rex=[looked(10, 0.6), looked(20, 0.4)],
            tom=[looked(10, 0.4), looked(20, 0.5), looked(30, 0.9), looked(40, 0.9, drift=1.0)],
        ),
        ROW,
    )
    assert curve is not None
    assert curve.steps == (10, 20)
    means = [estimate.mean for estimate in curve.scores["subject_fidelity/net"]]
    assert means == pytest.approx([0.5, 0.45])
    assert (curve.recommended_step, curve.overfits_from) == (10, None)
    assert curve.limits == pytest.approx(
        {"drift/net": 0.1, "copy_share/net": 0.25, "prompt_fidelity/net": 0.375}
    )


def test_a_step_without_a_number_is_none_of_the_curve_s() -> None:
    curve = curve_of(results_of(rex=[looked(10, 0.6), looked(20, None)]), ROW)
    assert curve is not None
    assert curve.steps == (10,)
    assert curve_of(results_of(rex=[looked(10, 0.6)], tom=[looked(20, 0.6)]), ROW) is None
    assert curve_of(results_of(rex=[]), ROW) is None
