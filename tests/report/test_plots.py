"""The plots show the right numbers: positions are read back from the SVG by its own tick labels."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.lines import Line2D

from finetune.report import svg as svg_module
from finetune.report.curves import Line, Panel, curves_svg
from finetune.report.pareto import Axis, Point, Span, drift_step, drift_steps, frontier, pareto_svg
from finetune.report.svg import INKS, NUM_DRIFT_STEPS, figure, ink, inline, style

CSS = Path(svg_module.__file__).with_name("page.css").read_text("utf-8")
POINTS = [
    Point("frozen base", Span(0.31, 0.30, 0.32), Span(0.42, 0.40, 0.45), reference=True),
    Point("dreambooth", Span(0.285, 0.27, 0.295), Span(0.70, 0.66, 0.74), drift=0.18),
    Point("lora <i>&", Span(0.29, 0.28, 0.30), Span(0.68, 0.64, 0.71), drift=0.12),
    Point("textual inversion", Span(0.25, 0.24, 0.265), Span(0.55, 0.52, 0.58), drift=0.0),
]
AXIS = Axis("clip-b32", "dino-s16", 0.78)


def number_of(text: str) -> float | None:
    try:
        return float(text.replace("\N{MINUS SIGN}", "-"))
    except ValueError:
        return None


def scales(root: ElementTree.Element) -> tuple[np.poly1d, np.poly1d]:
    """Pixels to values, for x and y, from the labels of the ticks alone.

    Labels of the x axis share their height, those of the y axis share where they end. These stand a constant
    below their ticks, so only differences of y count.
    """
    rows, columns = defaultdict(list), defaultdict(list)
    for label in root.iter("text"):
        value = number_of("".join(label.itertext()))
        if value is not None:
            x, y = float(label.attrib["x"]), float(label.attrib["y"])
            if label.attrib.get("text-anchor") == "middle":
                rows[round(y, 2)].append((x, value))
            elif label.attrib.get("text-anchor") == "end":
                columns[round(x, 2)].append((y, value))
    across = max(rows.values(), key=len)
    along = max(columns.values(), key=len)
    fits = []
    for found in (across, along):
        pixels, values = np.array(found).T
        (fit, residuals, *_) = np.polyfit(pixels, values, 1, full=True)
        assert residuals.size == 0 or residuals[0] < 1e-6
        fits.append(np.poly1d(fit))
    return fits[0], fits[1]


def part(root: ElementTree.Element, name: str) -> ElementTree.Element:
    (found,) = [element for element in root.iter() if element.attrib.get("id") == name]
    return found


def ends(element: ElementTree.Element) -> list[tuple[float, float]]:
    """The corners of a line."""
    (path,) = [p for p in element.iter("path") if "clip-path" in p.attrib]
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.attrib["d"])]


def position(text: ElementTree.Element) -> tuple[float, float]:
    """Where a text stands: by its attributes or by its translation."""
    if "x" in text.attrib:
        return float(text.attrib["x"]), float(text.attrib["y"])
    x, y = re.findall(r"translate\((\S+) (\S+)\)", text.attrib["transform"])[0]
    return float(x), float(y)


def mark(root: ElementTree.Element, name: str) -> tuple[float, float]:
    (use,) = part(root, name).iter("use")
    return float(use.attrib["x"]), float(use.attrib["y"])


@pytest.mark.parametrize(("width", "height"), [(860, 540), (358, 440)])
def test_points_and_bars_stand_at_their_numbers(width: int, height: int) -> None:
    root = ElementTree.fromstring(pareto_svg(POINTS, AXIS, width=width, height=height, prefix="p"))
    to_x, to_y = scales(root)
    marks = [mark(root, f"p-point-{number}") for number in range(len(POINTS))]
    # Tick labels of the y axis hang a constant below their ticks; it cancels in differences.
    ((_, ceiling_y), _) = ends(part(root, "p-ceiling"))
    for number, (point, (x, y)) in enumerate(zip(POINTS, marks, strict=True)):
        assert to_x(x) == pytest.approx(point.prompt.mean, abs=1e-4)
        assert 0.78 + to_y(y) - to_y(ceiling_y) == pytest.approx(point.subject.mean, abs=1e-4)
        (left, y1), (right, y2) = ends(part(root, f"p-across-{number}"))
        assert y1 == y2 == pytest.approx(y, abs=1e-5)
        assert (to_x(left), to_x(right)) == pytest.approx(
            (point.prompt.low, point.prompt.high), abs=1e-4
        )
        (_, bottom), (_, top) = ends(part(root, f"p-along-{number}"))
        heights = to_y(bottom) - to_y(y), to_y(top) - to_y(y)
        below, above = (
            point.subject.low - point.subject.mean,
            point.subject.high - point.subject.mean,
        )
        assert heights == pytest.approx((below, above), abs=1e-4)


@pytest.mark.parametrize(("width", "height"), [(860, 540), (358, 440)])
def test_names_are_written_within_the_plot_and_apart(width: int, height: int) -> None:
    base, near = POINTS[0], Span(0.3, 0.295, 0.305)
    rows = [f"method {i}" for i in range(6)]
    crowd = [Point(n, near, Span(0.6 + i / 500, 0.59, 0.62), 0.1) for i, n in enumerate(rows)]
    drawn = pareto_svg([base, *crowd], AXIS, width=width, height=height, prefix="p")
    root = ElementTree.fromstring(drawn)
    boxes = []
    for number, point in enumerate([base, *crowd]):
        texts = list(part(root, f"p-name-{number}").iter("text"))
        assert "".join(texts[0].itertext()) == point.name
        for text in texts:
            x, y = position(text)
            length = 5.5 * len("".join(text.itertext()))  # letters are about that wide
            left = x - length if text.attrib.get("text-anchor") == "end" else x
            assert left > 0
            assert left + length < width + 10
            assert 0 < y < height - 80
            boxes.append((left, left + length, y))
    for one, (left, right, y) in enumerate(boxes):
        for other_left, other_right, other_y in boxes[one + 1 :]:
            assert abs(y - other_y) > 9 or left > other_right or other_left > right


def test_the_colour_is_the_drift() -> None:
    root = ElementTree.fromstring(pareto_svg(POINTS, AXIS, width=860, height=540, prefix="p"))
    edges = drift_steps([0.18, 0.12, 0.0])
    for number, point in enumerate(POINTS):
        fills = {u.attrib["fill"] for u in part(root, f"p-point-{number}").iter("use")}
        if point.drift is None:
            assert fills == {"var(--paper)"}
        else:
            assert fills == {f"var(--drift-{drift_step(point.drift, edges)})"}


def test_drift_steps_are_round_and_hold_every_drift() -> None:
    assert drift_steps([0.18]) == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35])
    assert drift_steps([0.14]) == pytest.approx([0.02 * i for i in range(8)])
    for largest in (1e-6, 0.0031, 0.07, 0.35, 0.36, 0.9, 1.0, 1.9):
        edges = drift_steps([largest])
        assert len(edges) == NUM_DRIFT_STEPS + 1
        assert edges[-1] >= largest
        assert edges[-1] <= 2.6 * largest  # no drift drowns in the first colour
        assert drift_step(0.0, edges) == 0
        assert drift_step(edges[-1], edges) == NUM_DRIFT_STEPS - 1
        assert drift_step(edges[2], edges) == 2
    assert len(drift_steps([])) == NUM_DRIFT_STEPS + 1
    assert len(drift_steps([0.0])) == NUM_DRIFT_STEPS + 1


def test_the_frontier_holds_what_none_beats() -> None:
    def at(name: str, x: float, y: float, reference: bool = False) -> Point:
        return Point(name, Span(x, x, x), Span(y, y, y), reference=reference)

    points = [
        at("a", 1, 5),
        at("b", 2, 4),
        at("c", 1.5, 3),
        at("d", 3, 1),
        at("e", 2, 1),
        at("r", 9, 9, True),
    ]
    assert [point.name for point in frontier(points)] == ["a", "b", "d"]
    assert [point.name for point in frontier([at("a", 1, 1), at("b", 1, 1)])] == ["a", "b"]
    assert frontier([]) == []


@pytest.mark.parametrize("num", [0, 1])
def test_few_points_without_drift_or_ceiling_are_drawn(num: int) -> None:
    points = [Point("a", Span(0.3, 0.3, 0.3), Span(0.5, 0.5, 0.5))][:num]
    root = ElementTree.fromstring(
        pareto_svg(points, Axis("a", "b", None), width=358, height=440, prefix="p")
    )
    ids = {element.attrib.get("id") for element in root.iter()}
    assert ("p-point-0" in ids) == bool(num)
    assert not {"p-ceiling", "p-key-0", "p-front"} & ids


def test_learning_curves_go_through_their_numbers() -> None:
    steps = [0, 50, 100, 150]
    lines = [
        Line(
            "a",
            0,
            steps,
            [0.4, 0.55, 0.6, 0.5],
            [0.3, 0.5, 0.5, 0.4],
            [0.5, 0.6, 0.7, 0.6],
            100,
            150,
        ),
        Line("b", 9, steps, [0.4, None, 0.42, 0.45], [None] * 4, [None] * 4),
    ]
    root = ElementTree.fromstring(
        curves_svg([Panel("subject fidelity", lines, [0.45])], num_columns=1, width=358, prefix="c")
    )
    to_x, to_y = scales(root)
    ((_, limit_y), _) = ends(part(root, "c-limit-0-0"))

    def values(name: str) -> list[tuple[float, float]]:
        corners = ends(part(root, name))
        return [(to_x(x), 0.45 + to_y(y) - to_y(limit_y)) for x, y in corners]

    assert np.array(values("c-line-0-0")) == pytest.approx(
        np.array([(0, 0.4), (50, 0.55), (100, 0.6), (150, 0.5)]), abs=0.01
    )
    assert np.array(values("c-line-0-9")) == pytest.approx(
        np.array([(0, 0.4), (100, 0.42), (150, 0.45)]), abs=0.01
    )
    ring, cross = mark(root, "c-recommended-0-0"), mark(root, "c-overfits-0-0")
    corners = ends(part(root, "c-line-0-0"))
    assert ring == pytest.approx(corners[2], abs=1e-4)
    assert cross == pytest.approx(corners[3], abs=1e-4)
    ids = {element.attrib.get("id") for element in root.iter()}
    assert not {"c-recommended-0-9", "c-overfits-0-9"} & ids
    strokes = [part(root, f"c-line-0-{series}").find("path") for series in (0, 9)]
    assert [s.attrib["stroke"] for s in strokes if s is not None] == [
        "var(--series-0)",
        "var(--series-1)",
    ]
    assert ["stroke-dasharray" in s.attrib for s in strokes if s is not None] == [False, True]


def test_a_curve_without_any_value_is_left_out() -> None:
    lines = [Line("a", 0, [1, 2], [None, None], [None, None], [None, None], recommended=1)]
    root = ElementTree.fromstring(
        curves_svg([Panel("drift", lines)], num_columns=2, width=860, prefix="c")
    )
    assert "c-line-0-0" not in {element.attrib.get("id") for element in root.iter()}
    assert "No values." in "".join(root.itertext())


def test_colours_not_of_the_page_are_refused() -> None:
    with style(12):
        drawing = figure(100, 100)
        drawing.add_artist(Line2D([0, 1], [0, 1], color="#ff0000"))
    with pytest.raises(KeyError, match="#ff0000"):
        inline(drawing, prefix="x", title="t", description="d")
    with pytest.raises(KeyError):
        ink("--no-such-colour")


def schemes() -> dict[str, dict[str, str]]:
    """The colours of both schemes in the style sheet."""
    light, dark = re.findall(r":root \{(.*?)\n *\}", CSS, re.DOTALL)
    found = {
        name: dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", block))
        for name, block in (("light", light), ("dark", dark))
    }
    assert found["light"].keys() == found["dark"].keys()
    return found


def luminance(color: str) -> float:
    """WCAG 2.2's relative luminance."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_marks_stand_out(scheme: str) -> None:
    colors = schemes()[scheme]
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    for text in ("--ink", "--soft", "--accent"):
        for ground in ("--paper", "--sheet", "--shade", "--wash"):
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    marks = [name for name in colors if name.startswith(("--drift", "--series"))]
    assert len(marks) == 15
    assert min(contrast(colors[name], colors["--paper"]) for name in marks) >= 3
    assert set(INKS.values()) <= set(colors)


def test_few_looks_are_each_named_below_the_curves() -> None:
    means = [0.1, 0.2, 0.3]
    lines = [Line("a", 0, [8, 16, 24], means, means, means)]
    drawn = curves_svg([Panel("drift", lines)], num_columns=2, width=860, prefix="c")
    texts = ["".join(text.itertext()) for text in ElementTree.fromstring(drawn).iter("text")]
    assert [text for text in texts if text.isdigit()] == ["8", "16", "24"]


@pytest.mark.parametrize(("width", "height"), [(860, 540), (358, 440)])
def test_names_keep_clear_of_the_photos_line_and_long_tick_labels_of_the_title(
    width: int, height: int
) -> None:
    """A point just below the line has its name below it; ticks such as -0.25 push no title out of sight."""
    points = [Point("method", Span(0.5, 0.4, 0.6), Span(0.35, -0.3, 0.7), drift=0.1)]
    axis = Axis("clip-b32", "dino-s16", ceiling=0.4)
    drawn = pareto_svg(points, axis, width=width, height=height, prefix="p")
    root = ElementTree.fromstring(drawn)
    ((_, line), _) = ends(part(root, "p-ceiling"))
    heights = [position(text)[1] for text in part(root, "p-name-0").iter("text")]
    assert min(heights) - 10 > line or max(heights) + 4 < line
    (title,) = [
        text for text in root.iter("text") if "".join(text.itertext()).startswith("↑ subject")
    ]
    assert title.attrib.get("text-anchor", "start") == "start"
    assert position(title)[0] > 0
    assert position(title)[1] > 10
