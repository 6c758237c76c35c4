"""Solids as signed distance fields on one grid, and the triangle meshes of their surfaces.

Distances are in world units, negative inside. The smooth minimum is the polynomial one of Inigo Quilez,
"smooth minimum" (2013). What the solids stand for is said in `bodies` and `dressing`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import marching_cubes

Array = NDArray[Any]
Point = tuple[float, float, float]

FLOOR = -0.65
"""Height of the ground under a subject."""
_GRID_POINTS = 54
_GRID_HALF_WIDTH = 1.25


@dataclass(frozen=True)
class Mesh:
    """Triangles: `vertices` [V, 3], `faces` [F, 3], outward `normals` [V, 3]."""

    vertices: Array
    faces: NDArray[np.uint32]
    normals: Array


@functools.cache
def grid() -> Array:
    """Sample positions, [N, N, N, 3]."""
    axis = np.linspace(-_GRID_HALF_WIDTH, _GRID_HALF_WIDTH, _GRID_POINTS, dtype=np.float32)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)


def coordinates() -> tuple[Array, Array, Array]:
    """x, y and z of the sample positions, each [N, N, N]."""
    x, y, z = np.moveaxis(grid(), -1, 0)
    return x, y, z


def vector(values: Point) -> Array:
    """A point as a float32 array [3]."""
    return np.array(values, np.float32)


def union(parts: Iterable[Array]) -> Array:
    """Distance to the union of solids, with sharp seams."""
    return functools.reduce(np.minimum, parts)


def smooth_union(a: Array, b: Array, radius: float = 0.1) -> Array:
    """Distance to the union of two solids, blended over `radius` where they meet."""
    blend = np.clip(0.5 + 0.5 * (b - a) / radius, 0.0, 1.0)
    joined: Array = b * (1 - blend) + a * blend - radius * blend * (1 - blend)
    return joined


def ellipsoid(center: Point, radii: Point) -> Array:
    """Approximate signed distance to an axis-aligned ellipsoid."""
    scaled = (grid() - vector(center)) / vector(radii)
    distance: Array = (np.sqrt((scaled * scaled).sum(-1)) - 1) * np.float32(min(radii))
    return distance


def capsule(start: Point, end: Point, radius: float) -> Array:
    """Signed distance to a cylinder with round ends."""
    axis = vector(end) - vector(start)
    offset = grid() - vector(start)
    along = np.clip((offset @ axis) / (axis @ axis), 0.0, 1.0)
    away = offset - along[..., None] * axis
    distance: Array = np.sqrt((away * away).sum(-1)) - np.float32(radius)
    return distance


def rounded_box(center: Point, half_size: Point, rounding: float) -> Array:
    """Signed distance to a box whose edges are rounded."""
    outside = np.abs(grid() - vector(center)) - vector(half_size) + np.float32(rounding)
    distance: Array = (
        np.sqrt((np.maximum(outside, 0) ** 2).sum(-1))
        + np.minimum(outside.max(-1), 0)
        - np.float32(rounding)
    )
    return distance


def ring(center: Point, radius: float, thickness: float, *, height: float = 1.0) -> Array:
    """Signed distance to an upright ring in the plane of x and z, `height` times as high as wide."""
    x, y, z = coordinates()
    flat = np.sqrt((x - center[0]) ** 2 + ((z - center[2]) / height) ** 2) - radius
    distance: Array = np.sqrt(flat**2 + (y - center[1]) ** 2) - np.float32(thickness)
    return distance


def cylinder(center: Point, radius: float, half_height: float) -> Array:
    """Signed distance to an upright cylinder."""
    x, y, z = coordinates()
    around = np.sqrt((x - center[0]) ** 2 + (y - center[1]) ** 2) - radius
    distance: Array = np.maximum(around, np.abs(z - center[2]) - half_height)
    return distance


def to_mesh(distance: Array) -> Mesh:
    """The surface where `distance` is zero, by marching cubes."""
    spacing = 2 * _GRID_HALF_WIDTH / (_GRID_POINTS - 1)
    vertices, faces, normals, _ = marching_cubes(distance, 0.0, spacing=(spacing,) * 3)
    return Mesh(
        vertices=np.asarray(vertices - _GRID_HALF_WIDTH, np.float32),
        faces=np.asarray(faces, np.uint32),
        normals=np.asarray(-normals, np.float32),
    )
