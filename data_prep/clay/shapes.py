"""Solid shapes of the clay world: signed distance fields, turned into triangle meshes.

A subject is a smooth union of ellipsoids, capsules and rounded boxes on a grid; `build_body` gives
its parts. The smooth minimum is the polynomial one of Inigo Quilez, "smooth minimum" (2013). Painting
of vertices is here too, lights and cameras are in `render`.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from data_prep.clay.world import COLORS, Identity

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


@dataclass
class Body:
    """A subject's parts: painted and fixed-colour distance fields, eyes, and where to dress it."""

    painted: Array
    fixed: list[tuple[Array, Point]] = field(default_factory=list)
    """(distance field, linear RGB)."""
    eyes: list[tuple[Point, float]] = field(default_factory=list)
    """(centre, radius)."""
    head: tuple[Point, float] | None = None
    """(centre, radius), for a hat."""
    neck: tuple[Point, float] | None = None
    """(centre, radius), for a scarf."""


@functools.cache
def _grid() -> Array:
    """Sample positions, [N, N, N, 3]."""
    axis = np.linspace(-_GRID_HALF_WIDTH, _GRID_HALF_WIDTH, _GRID_POINTS, dtype=np.float32)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)


def _vector(values: Point) -> Array:
    return np.array(values, np.float32)


def smooth_union(a: Array, b: Array, radius: float = 0.1) -> Array:
    """Distance to the union of two solids, blended over `radius` where they meet."""
    blend = np.clip(0.5 + 0.5 * (b - a) / radius, 0.0, 1.0)
    union: Array = b * (1 - blend) + a * blend - radius * blend * (1 - blend)
    return union


def ellipsoid(center: Point, radii: Point) -> Array:
    """Approximate signed distance to an axis-aligned ellipsoid."""
    scaled = (_grid() - _vector(center)) / _vector(radii)
    distance: Array = (np.sqrt((scaled * scaled).sum(-1)) - 1) * np.float32(min(radii))
    return distance


def capsule(start: Point, end: Point, radius: float) -> Array:
    """Signed distance to a cylinder with round ends."""
    axis = _vector(end) - _vector(start)
    offset = _grid() - _vector(start)
    along = np.clip((offset @ axis) / (axis @ axis), 0.0, 1.0)
    away = offset - along[..., None] * axis
    distance: Array = np.sqrt((away * away).sum(-1)) - np.float32(radius)
    return distance


def rounded_box(center: Point, half_size: Point, rounding: float) -> Array:
    """Signed distance to a box whose edges are rounded."""
    outside = np.abs(_grid() - _vector(center)) - _vector(half_size) + np.float32(rounding)
    distance: Array = (
        np.sqrt((np.maximum(outside, 0) ** 2).sum(-1))
        + np.minimum(outside.max(-1), 0)
        - np.float32(rounding)
    )
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


def paint(vertices: Array, identity: Identity) -> Array:
    """Linear RGB per vertex [V, 3]: the identity's colours laid out in its pattern."""
    base = np.clip(_vector(COLORS[identity.color]) * _vector(identity.tint), 0, 0.95)
    second = np.clip(_vector(COLORS[identity.color2]) * _vector(identity.tint2), 0, 0.95)
    rng = np.random.RandomState(identity.paint_seed % (1 << 31))
    x, z = vertices[:, 0], vertices[:, 2]
    if identity.pattern == "spots":
        centers = vertices[rng.randint(len(vertices), size=9)]
        nearest = np.linalg.norm(vertices[:, None] - centers[None], axis=-1).min(1)
        marked = nearest < 0.15
    elif identity.pattern == "stripes":
        marked = np.sin(x * rng.uniform(13, 19) + np.sin(z * 6) * 0.8) > 0.3
    elif identity.pattern == "belly":
        marked = z < np.quantile(z, 0.42)
    else:
        marked = np.zeros(len(vertices), bool)
    return np.where(marked[:, None], second, base).astype(np.float32)


@dataclass(frozen=True)
class _Quadruped:
    """What tells one four-legged class from another; lengths relative to a middling animal."""

    ears: str
    tail: str
    snout: float
    length: float = 1.0
    leg: float = 1.0
    head: float = 1.0
    thickness: float = 1.0
    neck: float = 1.0


def _ear(kind: str, side: int, hx: float, hz: float, hr: float, size: float) -> Array:
    if kind == "floppy":
        return ellipsoid((hx - 0.05, side * hr * 0.98, hz + 0.02), (0.1, 0.06, 0.21 * size))
    if kind == "pointed":
        tip = (hx - 0.04, side * hr * 0.8, hz + hr * 0.95 + 0.1 * size)
        return capsule((hx - 0.02, side * hr * 0.6, hz + hr * 0.6), tip, 0.06)
    if kind == "long":
        tip = (hx - 0.12, side * hr * 0.55, min(hz + hr * 0.8 + 0.38 * size, 1.12))
        return capsule((hx - 0.03, side * hr * 0.4, hz + hr * 0.7), tip, 0.075)
    return ellipsoid(
        (hx - 0.02, side * hr * 0.75, hz + hr * 0.75), (0.065, 0.11 * size, 0.11 * size)
    )


def _tail(kind: str, length: float, height: float, size: float) -> list[Array]:
    if kind == "up":
        tip = (-length - 0.25 * size, 0.0, height + 0.35 * size)
        return [capsule((-length * 0.9, 0.0, height + 0.05), tip, 0.06)]
    if kind == "long":
        bend = (-length - 0.3 * size, 0.0, height + 0.1)
        tip = (-length - 0.35 * size, 0.0, height + 0.45 * size)
        return [capsule((-length * 0.9, 0.0, height), bend, 0.05), capsule(bend, tip, 0.05)]
    return [ellipsoid((-length - 0.03, 0.0, height + 0.08), (0.12, 0.12, 0.12))]


def _quadruped(plan: _Quadruped, rng: random.Random) -> Body:
    vary = rng.uniform
    length = vary(0.42, 0.6) * plan.length
    girth = vary(0.26, 0.36)
    leg = vary(0.3, 0.52) * plan.leg
    hr = vary(0.23, 0.3) * plan.head
    cz = FLOOR + leg + girth * 0.6
    solid = ellipsoid((0, 0, cz), (length, girth * 0.95, girth))
    leg_radius = vary(0.08, 0.115) * plan.thickness
    for x in (-length * 0.62, length * 0.62):
        for y in (-girth * 0.5, girth * 0.5):
            foot = (x, y, FLOOR + leg_radius)
            solid = smooth_union(solid, capsule((x, y, cz - 0.1), foot, leg_radius))
    hx, hz = length + vary(0.02, 0.12), cz + vary(0.3, 0.42) * plan.neck
    throat = capsule((length * 0.6, 0, cz + 0.1), (hx, 0, hz), 0.13 * plan.thickness)
    solid = smooth_union(solid, throat)
    solid = smooth_union(solid, ellipsoid((hx, 0, hz), (hr, hr * 0.95, hr * 0.92)))
    snout = plan.snout * vary(0.8, 1.2)
    nose_x = hx + hr * 0.75 + snout * 0.3
    muzzle = ellipsoid((nose_x, 0, hz - hr * 0.2), (max(snout, 0.08), 0.11, 0.1))
    solid = smooth_union(solid, muzzle, 0.07)
    ear_size = vary(0.8, 1.25)
    for side in (-1, 1):
        solid = smooth_union(solid, _ear(plan.ears, side, hx, hz, hr, ear_size), 0.05)
    for part in _tail(plan.tail, length, cz, vary(0.8, 1.3)):
        solid = smooth_union(solid, part, 0.06)
    eye = 0.04 * vary(0.9, 1.3)
    eyes = [((hx + hr * 0.75, side * hr * 0.5, hz + hr * 0.28), eye) for side in (-1, 1)]
    eyes.append(((nose_x + max(snout, 0.08), 0, hz - hr * 0.15), 0.05))
    return Body(solid, [], eyes, ((hx, 0, hz), hr), ((length * 0.82, 0, cz + 0.22), 0.21))


def _duck(rng: random.Random) -> Body:
    vary = rng.uniform
    length = vary(0.42, 0.52)
    solid = ellipsoid((0, 0, -0.3), (length, vary(0.3, 0.38), vary(0.28, 0.34)))
    hx, hz, hr = length * 0.75, vary(0.22, 0.4), vary(0.22, 0.28)
    solid = smooth_union(solid, capsule((length * 0.5, 0, -0.1), (hx, 0, hz), 0.15))
    solid = smooth_union(solid, ellipsoid((hx, 0, hz), (hr, hr, hr)))
    rump = capsule((-length * 0.8, 0, -0.2), (-length - 0.15, 0, vary(-0.05, 0.15)), 0.08)
    solid = smooth_union(solid, rump)
    orange = ellipsoid((hx + hr + 0.06, 0, hz - 0.04), (vary(0.14, 0.2), 0.11, 0.055))
    for side in (-1, 1):
        orange = np.minimum(orange, ellipsoid((0.05, side * 0.15, -0.61), (0.17, 0.1, 0.05)))
    eyes = [((hx + hr * 0.7, side * hr * 0.62, hz + hr * 0.25), 0.045) for side in (-1, 1)]
    neck = ((hx - 0.03, 0.0, 0.08), 0.18)
    return Body(solid, [(orange, (0.9, 0.4, 0.03))], eyes, ((hx, 0, hz), hr), neck)


def _car(rng: random.Random) -> Body:
    vary = rng.uniform
    length, height, cabin = vary(0.6, 0.8), vary(0.15, 0.21), vary(0.3, 0.45)
    solid = rounded_box((0, 0, -0.32), (length, 0.36, height), 0.1)
    roof = (vary(-0.2, 0.05), 0.0, -0.32 + height + 0.14)
    solid = smooth_union(solid, rounded_box(roof, (cabin, 0.3, vary(0.15, 0.21)), 0.1), 0.06)
    radius = vary(0.16, 0.21)
    wheels = [
        capsule((x, y - 0.04, -0.48), (x, y + 0.04, -0.48), radius)
        for x in (-length * 0.6, length * 0.6)
        for y in (-0.35, 0.35)
    ]
    lamps = [ellipsoid((length, y, -0.3), (0.05, 0.08, 0.08)) for y in (-0.2, 0.2)]
    return Body(
        solid,
        [
            (functools.reduce(np.minimum, wheels), (0.03, 0.03, 0.03)),
            (functools.reduce(np.minimum, lamps), (0.95, 0.9, 0.6)),
        ],
    )


def _mug(rng: random.Random) -> Body:
    vary = rng.uniform
    radius, height = vary(0.36, 0.48), vary(0.36, 0.5)
    x, y, z = np.moveaxis(_grid(), -1, 0)
    from_axis = np.sqrt(x**2 + y**2)
    cz = FLOOR + height
    outer = np.maximum(from_axis - radius, np.abs(z - cz) - height)
    inner = np.maximum(from_axis - (radius - 0.09), np.abs(z - (cz + 0.12)) - height)
    ring = np.sqrt((x - radius - 0.02) ** 2 + ((z - cz) / 1.2) ** 2) - vary(0.18, 0.25)
    handle = np.maximum(np.sqrt(ring**2 + y**2) - 0.07, -(from_axis - (radius - 0.04)))
    return Body(np.minimum(np.maximum(outer, -inner), handle).astype(np.float32))


def _robot(rng: random.Random) -> Body:
    vary = rng.uniform
    width, height = vary(0.28, 0.38), vary(0.25, 0.32)
    solid = rounded_box((0, 0, -0.12), (width * 0.8, width, height), 0.08)
    hr = vary(0.2, 0.27)
    hz = -0.12 + height + hr
    solid = np.minimum(solid, rounded_box((0, 0, hz), (hr, hr * 1.15, hr * 0.85), 0.07))
    solid = smooth_union(solid, capsule((0, 0, hz - hr), (0, 0, 0.0), 0.1), 0.04)
    top = min(hz + hr + 0.18, 1.1)
    solid = np.minimum(solid, capsule((0, 0, hz), (0, 0, top), 0.035))
    for side in (-1, 1):
        shoulder, hand = (0, side * (width + 0.06), 0.02), (0.12, side * (width + 0.1), -0.3)
        solid = np.minimum(solid, capsule(shoulder, hand, 0.08))
        leg = capsule((0, side * 0.16, -0.3), (0, side * 0.16, -0.56), 0.095)
        solid = np.minimum(solid, leg)
    antenna = ellipsoid((0, 0, top), (0.08, 0.08, 0.08))
    eyes = [((hr, side * hr * 0.5, hz + 0.03), 0.06) for side in (-1, 1)]
    neck = ((0.0, 0.0, -0.1 + height), 0.22)
    return Body(solid, [(antenna, (0.8, 0.05, 0.05))], eyes, ((0, 0, hz), hr), neck)


def _four_legged(plan: _Quadruped) -> Callable[[random.Random], Body]:
    return functools.partial(_quadruped, plan)


_BODIES: dict[str, Callable[[random.Random], Body]] = {
    "dog": _four_legged(_Quadruped("floppy", "up", snout=0.15)),
    "cat": _four_legged(_Quadruped("pointed", "long", snout=0.05, thickness=0.85)),
    "rabbit": _four_legged(_Quadruped("long", "bob", snout=0.04, length=0.75, leg=0.6, head=0.95)),
    "bear": _four_legged(
        _Quadruped("round", "bob", snout=0.1, thickness=1.45, length=0.95, head=1.15, leg=0.8)
    ),
    "horse": _four_legged(
        _Quadruped("pointed", "long", snout=0.18, leg=1.4, neck=1.35, thickness=0.9, head=0.75)
    ),
    "duck": _duck,
    "car": _car,
    "mug": _mug,
    "robot": _robot,
}


def build_body(identity: Identity) -> Body:
    """The distance fields of one subject; the same for every view of it."""
    return _BODIES[identity.class_noun](random.Random(identity.shape_seed))


def build_accessory(kind: str, body: Body) -> Array | None:
    """Distance field of a hat or scarf that fits `body`, or None where it has no head or neck."""
    if kind == "hat" and body.head is not None:
        (x, _, z), radius = body.head
        brim = min(z + radius * 0.85, 1.02)
        flat = ellipsoid((x - 0.02, 0, brim), (radius * 1.2, radius * 1.2, 0.06))
        crown = capsule(
            (x - 0.02, 0, brim), (x - 0.02, 0, min(brim + radius * 0.65, 1.1)), radius * 0.62
        )
        return np.minimum(flat, crown)
    if kind == "scarf" and body.neck is not None:
        (x, y, z), radius = body.neck
        around = ellipsoid((x, y, z), (radius * 1.05, radius * 1.05, 0.1))
        end = capsule((x + 0.1, 0.12, z - 0.05), (x + 0.16, 0.16, z - 0.32), 0.07)
        return np.minimum(around, end)
    return None
