"""The plot of subject fidelity against prompt fidelity: no method is best by one number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from finetune.report.svg import NUM_DRIFT_STEPS, figure, ink, inline, shortened, style

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 36, 88
"""Pixels around the plot's frame."""
_PLACES: Final = [
    (side * distance, rise)
    for distance, rise in (
        *((9, rise) for rise in (10, -10, 24, -24)),
        *((24, rise) for rise in (0, 38, -38)),
        *((9, rise) for rise in (52, -52, 72, -72)),
    )
    for side in (1, -1)
]
"""Where a name may stand from its point, in pixels, the nearest first."""


@dataclass(frozen=True)
class Span:
    """A number and both ends of its interval, which are the number itself where there is no interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """A row of the comparison in the plot."""

    name: str
    prompt: Span
    subject: Span
    drift: float | None = None
    """None for reference rows, and where drift could not be measured."""
    reference: bool = False
    """Drawn hollow."""


@dataclass(frozen=True)
class Axis:
    """What the plot is of."""

    prompt_encoder: str
    subject_encoder: str
    ceiling: float | None
    """Subject fidelity of the real photos among themselves."""


def drift_steps(drifts: Sequence[float]) -> list[float]:
    """The edges of the colours of drift: from 0 in equal round steps to the largest drift or above.

    Returns:
        `NUM_DRIFT_STEPS` + 1 rising numbers.
    """
    largest = max([*drifts, 1e-6])
    unit = 10.0 ** math.floor(math.log10(largest / NUM_DRIFT_STEPS))
    width = next(
        unit * factor
        for factor in (1, 2, 2.5, 5, 10, 20)
        if unit * factor * NUM_DRIFT_STEPS >= largest
    )
    return [width * step for step in range(NUM_DRIFT_STEPS + 1)]


def drift_step(drift: float, edges: Sequence[float]) -> int:
    """Which colour a drift has, from 0."""
    return sum(drift >= edge for edge in edges[1:-1])


def frontier(points: Sequence[Point]) -> list[Point]:
    """The methods that no other beats in both fidelities, by rising prompt fidelity."""
    methods = [point for point in points if not point.reference]

    def beaten(point: Point) -> bool:
        here = (point.prompt.mean, point.subject.mean)
        others = [(other.prompt.mean, other.subject.mean) for other in methods]
        return any(o != here and o[0] >= here[0] and o[1] >= here[1] for o in others)

    best = [point for point in methods if not beaten(point)]
    return sorted(best, key=lambda point: (point.prompt.mean, -point.subject.mean))


def pareto_svg(points: Sequence[Point], axis: Axis, *, width: int, height: int, prefix: str) -> str:
    """The plot as inline SVG; the mark of point i has the identifier `prefix-point-i`.

    Args:
        points: the rows, references too.
        axis: what it is of.
        width: pixels.
        height: pixels.
        prefix: stands before every identifier; a letter first.
    """
    with style(12 if width < 500 else 12.5):
        drawing = figure(width, height)
        inner = (width - _LEFT - _RIGHT) / width, (height - _TOP - _BOTTOM) / height
        axes = drawing.add_axes((_LEFT / width, _BOTTOM / height, *inner))
        axes.set_xlabel(f"prompt fidelity ({shortened(axis.prompt_encoder)}) →", loc="right")
        # Above the frame, not beside it: tick labels may take all the room that there is.
        above = f"↑ subject fidelity ({shortened(axis.subject_encoder)})"
        axes.set_title(above, loc="left", color=ink("--soft"), fontsize="medium", pad=12)
        axes.locator_params(nbins=5 if width < 500 else 8)
        _frame(axes, points, axis.ceiling)
        front = [(point.prompt.mean, point.subject.mean) for point in frontier(points)]
        if len(front) > 1:
            axes.plot(*zip(*front, strict=True), color=ink("--line"), linewidth=7, gid="front")
        edges = drift_steps([point.drift for point in points if point.drift is not None])
        for number, point in enumerate(points):
            _draw(axes, point, number, edges)
        _label(drawing, axes, points, taken=_ceiling(axes, axis.ceiling))
        if any(point.drift is not None for point in points):
            _drift_key(drawing, edges)
        return inline(
            drawing,
            prefix=prefix,
            title="Subject fidelity against prompt fidelity",
            description=_in_words(points, axis.ceiling),
        )


def _frame(axes: Axes, points: Sequence[Point], ceiling: float | None) -> None:
    """Set limits that show every interval and the ceiling."""
    axes.grid(color=ink("--line"), linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=6)
    xs = [end for point in points for end in (point.prompt.low, point.prompt.high)]
    ys = [end for point in points for end in (point.subject.low, point.subject.high)]
    ys += [] if ceiling is None else [ceiling]
    for values, limit in ((xs, axes.set_xlim), (ys, axes.set_ylim)):
        low, high = min(values, default=0.0), max(values, default=1.0)
        margin = 0.1 * (high - low) or 0.05
        limit(low - margin, high + margin)


def _draw(axes: Axes, point: Point, number: int, edges: Sequence[float]) -> None:
    """Draw a point and the bars of both its intervals."""
    drift, x, y = point.drift, point.prompt.mean, point.subject.mean
    color = ink("--soft") if drift is None else ink(f"--drift-{drift_step(drift, edges)}")
    across, along = [point.prompt.low, point.prompt.high], [point.subject.low, point.subject.high]
    axes.plot(across, [y, y], color=color, linewidth=1.8, gid=f"across-{number}", zorder=2)
    axes.plot([x, x], along, color=color, linewidth=1.8, gid=f"along-{number}", zorder=2)
    axes.plot(
        [x],
        [y],
        marker="o",
        markersize=8 if point.reference else 11,
        markerfacecolor=ink("--paper") if point.reference else color,
        markeredgecolor=color if point.reference else ink("--paper"),
        markeredgewidth=1.6,
        linestyle="none",
        zorder=3,
        gid=f"point-{number}",
    )


def _ceiling(axes: Axes, ceiling: float | None) -> list[Bbox]:
    """Draw the dashed line of the real photos; returns the room that it and its label take."""
    if ceiling is None:
        return []
    axes.axhline(ceiling, color=ink("--soft"), linewidth=1, dashes=(4, 4), zorder=1, gid="ceiling")
    label = axes.annotate(
        "real photos among themselves",
        (1, ceiling),
        (-2, 4),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        ha="right",
        color=ink("--soft"),
        fontsize="small",
    )
    left, right = axes.get_window_extent().intervalx
    y = axes.transData.transform((0, ceiling))[1]
    return [label.get_window_extent(), Bbox.from_extents(left, y - 3, right, y + 3)]


def _label(drawing: Figure, axes: Axes, points: Sequence[Point], taken: list[Bbox]) -> None:
    """Write each row's name near its point, where it covers least of other names, points and bars."""
    for point in points:
        taken += _occupied(axes, point)
    frame = Bbox.from_extents(_LEFT, _BOTTOM, drawing.bbox.width, drawing.bbox.height)
    for number, point in enumerate(points):
        drift = "" if point.drift is None else f"\ndrift {point.drift:.2f}"
        label = axes.annotate(
            shortened(point.name) + drift,
            (point.prompt.mean, point.subject.mean),
            (0, 0),
            textcoords="offset points",
            color=ink("--soft") if point.reference else ink("--ink"),
            fontsize="small",
            linespacing=1.15,
            va="center",
            zorder=4,
            gid=f"name-{number}",
        )
        place = _best_place(label, taken, frame)
        label.set_position(place)
        label.set_horizontalalignment("left" if place[0] > 0 else "right")


def _best_place(label: Annotation, taken: list[Bbox], frame: Bbox) -> tuple[float, float]:
    """The place of a left-aligned label at offset 0 that costs least; its room there is added to `taken`."""
    here = label.get_window_extent()
    boxes = [here.translated(x if x > 0 else x - here.width, y) for x, y in _PLACES]
    costs = [_cost(box, place, taken, frame) for box, place in zip(boxes, _PLACES, strict=True)]
    best = costs.index(min(costs))
    taken.append(boxes[best])
    return _PLACES[best]


def _cost(box: Bbox, place: tuple[float, float], taken: Sequence[Bbox], frame: Bbox) -> float:
    """Area that a label in `box` covers or loses outside `frame`, and a little for its distance."""
    covered = sum(_common_area(box, other) for other in taken)
    lost = box.width * box.height - _common_area(box, frame)
    return covered + 4 * lost + 0.5 * (abs(place[0]) + abs(place[1]))


def _common_area(one: Bbox, other: Bbox) -> float:
    common = Bbox.intersection(one, other)
    return 0.0 if common is None else common.width * common.height


def _occupied(axes: Axes, point: Point) -> list[Bbox]:
    """What a point and its bars cover, in pixels."""
    corners = [
        (point.prompt.low, point.subject.low),
        (point.prompt.mean, point.subject.mean),
        (point.prompt.high, point.subject.high),
    ]
    (left, bottom), (x, y), (right, top) = axes.transData.transform(corners)
    return [
        Bbox.from_extents(x - 7, y - 7, x + 7, y + 7),
        Bbox.from_extents(left, y - 2, right, y + 2),
        Bbox.from_extents(x - 2, bottom, x + 2, top),
    ]


def _drift_key(drawing: Figure, edges: Sequence[float]) -> None:
    """Show below the plot which colour is which drift."""
    width, height = drawing.bbox.width, drawing.bbox.height
    axes = drawing.add_axes((_LEFT / width, 24 / height, min(230, width - 160) / width, 8 / height))
    for step, (low, high) in enumerate(pairwise(edges)):
        axes.axvspan(low, high, color=ink(f"--drift-{step}"), linewidth=0, gid=f"key-{step}")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_yticks([])
    axes.set_xticks([edges[0], edges[-1]], ["drift 0, as the base", f"{edges[-1]:g}"])
    axes.tick_params(length=0, labelsize="small")
    axes.spines[:].set_visible(False)
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")


def _in_words(points: Sequence[Point], ceiling: float | None) -> str:
    parts = [
        f"{point.name}: prompt fidelity {point.prompt.mean:.3f}, subject fidelity "
        f"{point.subject.mean:.3f}" + ("" if point.drift is None else f", drift {point.drift:.3f}")
        for point in points
    ]
    if ceiling is not None:
        parts.append(f"real photos among themselves: subject fidelity {ceiling:.3f}")
    return "; ".join(parts) + "."
