"""Matplotlib figures as inline SVG whose text stays text and whose colours are the page's own.

A page with a strict content security policy allows no `style` attribute, and one that follows the reader's
light or dark scheme cannot hold fixed colours. So figures are drawn in the stand-in colours of `INKS`, and
what matplotlib writes is rewritten: styles become presentation attributes, stand-ins become CSS variables,
identifiers get a prefix that makes them unique on the page, and metadata goes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from xml.etree import ElementTree

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

NUM_SERIES: Final = 8
"""Colours for methods; the ninth method shares the first one's and has another marker."""
NUM_DRIFT_STEPS: Final = 7

INKS: Final[dict[str, str]] = {
    "#010101": "--ink",
    "#010102": "--soft",
    "#010103": "--line",
    "#010104": "--paper",
    "#010105": "--accent",
    **{f"#0102{i:02x}": f"--series-{i}" for i in range(NUM_SERIES)},
    **{f"#0103{i:02x}": f"--drift-{i}" for i in range(NUM_DRIFT_STEPS)},
}
"""Stand-in colour -> CSS variable."""

_STAND_INS: Final = {variable: color for color, variable in INKS.items()}
_URL: Final = re.compile(r"url\(#([^)]+)\)")
_FONT_KEYS: Final = {"font", "font-family"}  # the page's own font is used


def ink(variable: str) -> str:
    """The stand-in to draw with so that the figure shows the CSS variable `variable`, such as "--ink"."""
    return _STAND_INS[variable]


@contextmanager
def style(font_size: float) -> Iterator[None]:
    """The look of all figures: text as text, a quiet frame, no drawing state left behind.

    Args:
        font_size: pixels of the figure's own size.
    """
    soft, line = ink("--soft"), ink("--line")
    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "finetune",
            "font.size": font_size,
            "text.color": ink("--ink"),
            "text.parse_math": False,
            "axes.edgecolor": line,
            "axes.labelcolor": soft,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.unicode_minus": True,
            "axes.linewidth": 1.0,
            "axes.facecolor": "none",
            "figure.facecolor": "none",
            "xtick.color": line,
            "ytick.color": line,
            "xtick.labelcolor": soft,
            "ytick.labelcolor": soft,
        }
    ):
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure of `width` by `height` pixels; one unit of its SVG is one pixel."""
    drawing = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasSVG(drawing)
    return drawing


def inline(drawing: Figure, *, prefix: str, title: str, description: str) -> str:
    """The figure as an `<svg>` element for an HTML page.

    Args:
        drawing: drawn with the colours of `ink` only.
        prefix: stands before every identifier; must differ between figures of one page. An artist with
            `set_gid("x")` has the identifier `prefix-x`.
        title: the figure's name, for those who do not see it.
        description: what is to be seen, in a sentence.
    """
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    drawing.savefig(buffer, format="svg", metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}style", "}metadata")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = _attributes(element, prefix)
    _drop_unused_identifiers(root, prefix)
    labels = {"title": title, "desc": description}
    for place, (tag, text) in enumerate(labels.items()):
        label = ElementTree.Element(tag, {"id": f"{prefix}-{tag}"})
        label.text = text
        root.insert(place, label)
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "width": width,
        "height": height,
        "role": "img",
        "aria-labelledby": f"{prefix}-title",
        "aria-describedby": f"{prefix}-desc",
        "stroke-linejoin": "round",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _attributes(element: ElementTree.Element, prefix: str) -> dict[str, str]:
    """The element's attributes with its style spread out and its references prefixed."""
    found = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    for declaration in found.pop("style", "").split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name and name not in _FONT_KEYS:
            found[name] = value
    if element.tag == "text" and "fill" not in found:
        raise ValueError(f"The text {element.text!r} is drawn in a colour of its own.")
    for name, value in found.items():
        if name == "id":
            found[name] = f"{prefix}-{value}"
        elif name == "href":
            found[name] = f"#{prefix}-{value.removeprefix('#')}"
        elif value.startswith("#"):
            found[name] = f"var({INKS[value]})"
        else:
            found[name] = _URL.sub(rf"url(#{prefix}-\1)", value)
    return found


def _drop_unused_identifiers(root: ElementTree.Element, prefix: str) -> None:
    """Keep the identifiers that are referred to and those that our own artists carry."""
    used = set()
    for element in root.iter():
        used |= {
            value.removeprefix("#") for name, value in element.attrib.items() if name == "href"
        }
        used |= {match for value in element.attrib.values() for match in _URL.findall(value)}
    automatic = re.compile(
        rf"{re.escape(prefix)}-(figure|axes|patch|text|line2d|xtick|ytick|matplotlib\.axis|"
        r"LineCollection|PathCollection|FillBetweenPolyCollection)_?.*"
    )
    for element in root.iter():
        name = element.attrib.get("id")
        if name is not None and name not in used and automatic.fullmatch(name):
            del element.attrib["id"]


def shortened(name: str, length: int = 30) -> str:
    """`name`, cut to fit into a plot."""
    return name if len(name) <= length else f"{name[: length - 1]}…"
