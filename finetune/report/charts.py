"""From results to plots: which numbers stand where in the two of them."""

from __future__ import annotations

from collections.abc import Iterable

from finetune.report.curves import Line, Panel, curves_svg
from finetune.report.numbers import ARROWS
from finetune.report.pareto import Axis, Point, Span, pareto_svg
from finetune.results import REAL_PHOTOS, Estimate, Results
from finetune.scores import CURVES, ScoreInfo


def _span(estimate: Estimate | None) -> Span | None:
    """The mean and both ends; None where there is no mean."""
    if estimate is None or estimate.mean is None:
        return None
    mean, low, high = estimate.mean, estimate.low, estimate.high
    return Span(mean, mean if low is None else low, mean if high is None else high)


def points(results: Results) -> tuple[list[Point], float | None]:
    """The rows of the plot of fidelities, and the real photos' subject fidelity.

    Rows without both fidelities are not in it.
    """
    subject, prompt = results.score("subject_fidelity"), results.score("prompt_fidelity")
    drift = results.score("class_drift")
    if subject is None or prompt is None:
        return [], None
    spans = {(s.row, s.score): _span(s.estimate) for s in results.summaries}
    found = []
    for row in results.rows:
        y, x = spans.get((row.name, subject.key)), spans.get((row.name, prompt.key))
        if x is None or y is None:
            continue
        reference = row.kind == "reference"
        moved = None if drift is None or reference else spans.get((row.name, drift.key))
        found.append(Point(row.name, x, y, None if moved is None else moved.mean, reference))
    ceiling = spans.get((REAL_PHOTOS, subject.key))
    return found, None if ceiling is None else ceiling.mean


def pareto(results: Results) -> list[tuple[str, str]]:
    """The plot of fidelities for wide and for narrow pages; [] without a point.

    Returns:
        ("wide", SVG) and ("narrow", SVG).
    """
    rows, ceiling = points(results)
    subject, prompt = results.score("subject_fidelity"), results.score("prompt_fidelity")
    if not rows or subject is None or prompt is None:
        return []
    axis = Axis(prompt.encoder, subject.encoder, ceiling)
    return [
        ("wide", pareto_svg(rows, axis, width=860, height=540, prefix="pareto-wide")),
        ("narrow", pareto_svg(rows, axis, width=358, height=440, prefix="pareto-narrow")),
    ]


def curve_keys(results: Results, found: Iterable[str]) -> list[tuple[str, ScoreInfo, str]]:
    """Which of the score keys `found` are of the scores along training, in their order.

    Returns:
        Key, score, and the encoder's name where it is not the one of the tables: validation may have judges
        of its own.
    """
    usual = {score.id: score.encoder for score in results.scores if score.headline}
    usual["drift"] = usual.get("class_drift", "")
    keys = list(dict.fromkeys(found))
    return [
        (key, info, "" if encoder == usual.get(id) else encoder)
        for id, info in CURVES.items()
        for key in keys
        for own, _, encoder in [key.partition("/")]
        if own == id
    ]


def panels(results: Results) -> list[Panel]:
    """The plots along training: one for each score, by each encoder, that any learning curve has."""
    series = {
        row.name: number
        for number, row in enumerate(row for row in results.rows if row.kind != "reference")
    }
    found = []
    for key, score, encoder in curve_keys(results, (k for c in results.curves for k in c.scores)):
        lines = [
            Line(
                curve.row,
                series[curve.row],
                curve.steps,
                [estimate.mean for estimate in curve.scores[key]],
                [estimate.low for estimate in curve.scores[key]],
                [estimate.high for estimate in curve.scores[key]],
                curve.recommended_step,
                curve.overfits_from,
            )
            for curve in results.curves
            if curve.scores.get(key)
        ]
        if any(mean is not None for line in lines for mean in line.means):
            given = [curve.limits.get(key) for curve in results.curves]
            limits = sorted({limit for limit in given if limit is not None})
            by = f", by {encoder}" if encoder else ""
            found.append(Panel(f"{score.title} {ARROWS[score.better]}{by}", lines, limits))
    return found


def curves(results: Results) -> list[tuple[str, str]]:
    """The plots along training for wide and for narrow pages; [] without a curve."""
    found = panels(results)
    if not found:
        return []
    return [
        ("wide", curves_svg(found, num_columns=2, width=860, prefix="curves-wide")),
        ("narrow", curves_svg(found, num_columns=1, width=358, prefix="curves-narrow")),
    ]
