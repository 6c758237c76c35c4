"""The plots of scores along training, one small plot a score, all methods in each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import LineStyleType

from finetune.report.svg import NUM_SERIES, figure, ink, inline, shortened, style

_LEFT, _RIGHT, _TOP, _BOTTOM, _GAP = 46, 12, 30, 34, 28
"""Pixels around each plot, and between rows of plots."""
_DASHES: Final[tuple[LineStyleType, ...]] = ("solid", (0, (5, 2)), (0, (1, 1.5)))
_KEY_LINE = 18
_MOST_TICKS = 6
"""Up to so many steps are each named below a plot."""


@dataclass(frozen=True)
class Line:
    """One method in one plot."""

    name: str
    series: int
    """The method's number on the page; says which colour it has."""
    steps: Sequence[int]
    means: Sequence[float | None]
    lows: Sequence[float | None]
    highs: Sequence[float | None]
    recommended: int | None = None
    """Ringed."""
    overfits_from: int | None = None
    """Faded from here on."""


@dataclass(frozen=True)
class Panel:
    """One score along training."""

    title: str
    lines: Sequence[Line]
    limits: Sequence[float] = ()
    """Of the checkpoint rule, dashed."""


def series_color(series: int) -> str:
    """The stand-in colour of a method."""
    return ink(f"--series-{series % NUM_SERIES}")


def curves_svg(panels: Sequence[Panel], *, num_columns: int, width: int, prefix: str) -> str:
    """The plots as inline SVG; a line's mean has the identifier `prefix-line-PANEL-SERIES`.

    Args:
        panels: one plot each, drawn row by row.
        num_columns: plots side by side.
        width: pixels of the whole figure; its height follows.
        prefix: stands before every identifier; a letter first.
    """
    with style(11):
        names = {line.series: line.name for panel in panels for line in panel.lines}
        key_height = _KEY_LINE * (len(names) if num_columns == 1 else math.ceil(len(names) / 3))
        num_rows = math.ceil(len(panels) / num_columns)
        each = width / num_columns
        plot_height = 0.62 * (each - _LEFT - _RIGHT)
        row_height = _TOP + plot_height + _BOTTOM + _GAP
        height = num_rows * row_height - _GAP + key_height + 12
        drawing = figure(width, height)
        _key(drawing, names, columns=1 if num_columns == 1 else 3)
        for number, panel in enumerate(panels):
            row, column = divmod(number, num_columns)
            bottom = height - key_height - 12 - row * row_height - _TOP - plot_height
            place = (column * each + _LEFT) / width, bottom / height
            size = (each - _LEFT - _RIGHT) / width, plot_height / height
            axes = drawing.add_axes((*place, *size))
            _draw(axes, panel, number)
        return inline(
            drawing,
            prefix=prefix,
            title="Scores along training",
            description=_in_words(panels),
        )


def _key(drawing: Figure, names: dict[int, str], *, columns: int) -> None:
    """Name every method's line on top."""
    width, height = drawing.bbox.width, drawing.bbox.height
    axes = drawing.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0))
    for number, (series, name) in enumerate(names.items()):
        row, column = divmod(number, columns)
        x, y = _LEFT + column * (width - _LEFT) / columns, 10 + row * _KEY_LINE
        axes.plot(
            [x, x + 22], [y, y], color=series_color(series), linewidth=2, linestyle=_dashes(series)
        )
        axes.text(x + 29, y, shortened(name, 34 if columns > 1 else 44), va="center_baseline")


def _dashes(series: int) -> LineStyleType:
    """Methods of one colour differ in their dashes."""
    return _DASHES[series // NUM_SERIES % len(_DASHES)]


def _draw(axes: Axes, panel: Panel, number: int) -> None:
    """Draw one plot: means, intervals as bands, rings at recommended steps."""
    axes.set_title(panel.title, loc="left", color=ink("--ink"), fontsize=12, pad=10)
    axes.grid(color=ink("--line"), linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5)
    axes.locator_params(nbins=5)
    looked = sorted({step for line in panel.lines for step in line.steps})
    if len(looked) <= _MOST_TICKS:
        axes.set_xticks(looked)
    for line in panel.lines:
        known = [
            (step, mean, mean if low is None else low, mean if high is None else high)
            for step, mean, low, high in zip(
                line.steps, line.means, line.lows, line.highs, strict=True
            )
            if mean is not None
        ]
        if not known:
            continue
        steps, means, lows, highs = (list(column) for column in zip(*known, strict=True))
        color, name = series_color(line.series), f"{number}-{line.series}"
        axes.fill_between(
            steps, lows, highs, color=color, alpha=0.14, linewidth=0, gid=f"band-{name}"
        )
        axes.plot(
            steps,
            means,
            color=color,
            gid=f"line-{name}",
            linewidth=2,
            linestyle=_dashes(line.series),
        )
        _ring(axes, line, dict(zip(steps, means, strict=True)), name)
    for count, limit in enumerate(panel.limits):
        axes.axhline(
            limit, color=ink("--soft"), linewidth=1, dashes=(4, 4), gid=f"limit-{number}-{count}"
        )
    axes.set_xlabel("steps", loc="right")
    axes.margins(x=0.04, y=0.1)


def _ring(axes: Axes, line: Line, mean_at: dict[int, float], name: str) -> None:
    """Mark the recommended step by a ring and the step from which the method overfits by a cross."""
    marks = ((line.recommended, "o", "recommended", 9), (line.overfits_from, "x", "overfits", 7))
    for step, marker, word, size in marks:
        if step in mean_at and step is not None:
            axes.plot(
                [step],
                [mean_at[step]],
                marker=marker,
                markersize=size,
                markerfacecolor=ink("--paper"),
                markeredgecolor=series_color(line.series),
                markeredgewidth=2,
                linestyle="none",
                zorder=5,
                gid=f"{word}-{name}",
            )


def _in_words(panels: Sequence[Panel]) -> str:
    parts = []
    for panel in panels:
        for line in panel.lines:
            known = [
                (step, mean)
                for step, mean in zip(line.steps, line.means, strict=True)
                if mean is not None
            ]
            if known:
                (first, start), (last, end) = known[0], known[-1]
                parts.append(
                    f"{panel.title}, {line.name}: {start:.3f} at step {first}, {end:.3f} at step {last}"
                )
    return "; ".join(parts) + "." if parts else "No values."
