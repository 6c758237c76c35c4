"""Numbers about one picture: blur, bars at its edges, its backdrop, and where its subject is.

Each says what it measures, in which unit, and where it is silent. Nothing here knows what a picture shows:
the subject is told from the backdrop by its alpha channel, or by colour where the backdrop is plain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

_TILES = 8
_BLUR_WINDOW = 9
_SIDE = 64
"""Side in pixels of the small Lab picture in which backdrops are compared and subjects found."""
_RING = 8
"""Width in those pixels of the ring taken for backdrop: the top, and the sides but their lowest quarter."""
PLAIN_DISTANCE = 15.0
"""Lab units around its median within which a plain backdrop's colours lie."""
SUBJECT_DISTANCE = 20.0
"""Lab units from the backdrop's median beyond which a pixel is taken for subject."""

Lab = Float[np.ndarray, "64 64 3"]


def blur(image: Image.Image) -> float | None:
    """How blurred the sharpest places of a picture are, 0 (sharp) to 1; None if it has hardly any edges.

    The measure of Crété-Roffet et al., "The blur effect", 2007: the share of neighbouring differences that
    survives another blur of nine pixels. It is taken over a grid of 8 × 8 tiles and the sharpest tenth of
    the tiles with edges counts, so a soft background is no blur. In pixels of `image`: give it at the size
    it is trained at, and it does not depend on the file's. Film grain and noise pass for sharpness.
    """
    values = np.asarray(image.convert("L"), np.float32)
    height, width = ((side - 1) // _TILES for side in values.shape)
    if min(height, width) < _BLUR_WINDOW:
        return None
    total = np.zeros((_TILES, _TILES))
    lost = np.zeros((_TILES, _TILES))
    for axis in (0, 1):
        lines = np.moveaxis(values, axis, 0)
        padded = np.pad(lines, ((_BLUR_WINDOW // 2 + 1, _BLUR_WINDOW // 2), (0, 0)), mode="edge")
        sums = padded.astype(np.float64).cumsum(0)
        blurred = (sums[_BLUR_WINDOW:] - sums[:-_BLUR_WINDOW]) / _BLUR_WINDOW
        sharp_steps, blurred_steps = (
            np.abs(np.diff(lines, axis=0)),
            np.abs(np.diff(blurred, axis=0)),
        )
        for sums_of, steps in (
            (total, sharp_steps),
            (lost, np.maximum(0, sharp_steps - blurred_steps)),
        ):
            upright = np.moveaxis(steps, 0, axis)[: height * _TILES, : width * _TILES]
            sums_of += upright.reshape(_TILES, height, _TILES, width).sum((1, 3))
    has_edges = total / (height * width) > 1.0  # grey levels a pixel
    if has_edges.sum() < 4:
        return None
    return float(np.quantile(1 - lost[has_edges] / total[has_edges], 0.1))


def _bar(lines: Float[np.ndarray, "lines length 3"], max_share: float = 0.45) -> int:
    """How many of the first lines are one flat colour that ends at a straight edge."""
    color = np.median(lines[0], 0)
    if (np.abs(lines[0] - color).max(1) > 12).mean() >= 0.01:
        return 0
    differs = np.abs(lines - color).max(2) > 12
    flat = differs.mean(1) < 0.01
    depth = int(np.argmin(flat)) if not flat.all() else len(lines)
    if depth == 0 or depth > max_share * len(lines):
        return 0
    # Resizing and JPEG soften the edge over a line or two; beyond it the picture differs nearly everywhere.
    return depth if differs[min(depth + 2, len(lines) - 1)].mean() > 0.85 else 0


def bars(image: Image.Image) -> tuple[float, float]:
    """Shares of the height and of the width that are flat bars of one colour on both sides (letterbox)."""
    values = np.asarray(image, np.float32)
    shares = []
    for axis in (0, 1):
        lines = np.moveaxis(values, axis, 0)
        first, last = _bar(lines), _bar(lines[::-1])
        alike = np.abs(np.median(lines[0], 0) - np.median(lines[-1], 0)).max() < 12
        both = first and last and alike and min(first, last) >= 0.01 * len(lines)
        shares.append((first + last) / len(lines) if both else 0.0)
    return shares[0], shares[1]


def to_lab(image: Image.Image) -> Lab:
    """CIE Lab values (L 0 … 100) of a picture scaled to 64 × 64."""
    values = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX).convert("LAB"))
    lightness = values[..., :1].astype(np.float32) * (100 / 255)
    return np.concatenate([lightness, values[..., 1:].view(np.int8).astype(np.float32)], 2)


def _ring() -> Bool[np.ndarray, "64 64"]:
    ring = np.zeros((_SIDE, _SIDE), bool)
    ring[:_RING] = True
    ring[: _SIDE * 3 // 4, :_RING] = ring[: _SIDE * 3 // 4, -_RING:] = True
    return ring


@dataclass(frozen=True)
class Backdrop:
    """The colours around a picture's subject."""

    median: Float[np.ndarray, " 3"]
    plainness: float
    """Share of the ring that is near the median colour."""
    quantiles: Float[np.ndarray, "10 3"]
    """Of L, a and b over the ring."""

    def distance(self, other: Backdrop) -> float:
        """Mean distance of the quantiles, in Lab units: 0 for the same colours in the same shares."""
        return float(np.abs(self.quantiles - other.quantiles).mean())


def backdrop_of(lab: Lab) -> Backdrop:
    """The colours of the outer ring."""
    ring = lab[_ring()]
    median = np.median(ring, 0)
    near = np.linalg.norm(ring - median, axis=1) < PLAIN_DISTANCE
    quantiles = np.quantile(ring, np.linspace(0.05, 0.95, 10), axis=0).astype(np.float32)
    return Backdrop(median.astype(np.float32), float(near.mean()), quantiles)


def standing_out(lab: Lab) -> Float[np.ndarray, "64 64"]:
    """How far each pixel's colour is from the nearest fifth of the colours in the outer ring.

    In Lab units, less the 10 that are taken for grain and texture; 0 where the ring has the colour in
    plenty. A subject of the backdrop's colours is missed.
    """
    ring = lab[_ring()][::4]
    distances = np.linalg.norm(lab.reshape(-1, 1, 3) - ring, axis=2)
    fifth = np.partition(distances, len(ring) // 5, axis=1)[:, len(ring) // 5]
    away: Float[np.ndarray, "64 64"] = np.maximum(fifth - 10.0, 0).reshape(lab.shape[:2])
    return away


@dataclass(frozen=True)
class Subject:
    """Where a picture's subject is."""

    share: float
    """Of the picture's area."""
    edges: dict[str, float]
    """Share of the left, right, top and bottom edge that it covers."""


def subject_from_mask(mask: Float[np.ndarray, "height width"]) -> Subject:
    """From opacity or a mask, 0 … 1."""
    covered = mask > 0.5
    edges = {
        "left": covered[:, 0],
        "right": covered[:, -1],
        "top": covered[0],
        "bottom": covered[-1],
    }
    return Subject(
        float(covered.mean()), {name: float(edge.mean()) for name, edge in edges.items()}
    )


def subject_from_color(lab: Lab, backdrop: Backdrop) -> Subject:
    """What differs from a plain backdrop in colour. Means nothing where the backdrop is not plain.

    A subject of the backdrop's colour (white on white) is missed, other things count as subject.
    """
    away = np.linalg.norm(lab - backdrop.median, axis=2) > SUBJECT_DISTANCE
    return subject_from_mask(away.astype(np.float32))
