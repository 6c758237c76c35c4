"""The bodies of the clay world: what makes a dog a dog, drawn with proportions of its own.

A subject is a smooth union of ellipsoids, capsules and rounded boxes; it stands on the floor, looks
along +x, and its -y side is the one that cameras see.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from data_prep.clay.fields import (
    FLOOR,
    Array,
    Point,
    capsule,
    coordinates,
    cylinder,
    ellipsoid,
    ring,
    rounded_box,
    smooth_union,
    union,
)
from data_prep.clay.world import Identity

_ORANGE, _DARK, _GLASS = (0.9, 0.4, 0.03), (0.03, 0.03, 0.03), (0.10, 0.16, 0.22)
_PALE, _WOOD, _METAL = (0.9, 0.88, 0.8), (0.25, 0.12, 0.05), (0.3, 0.3, 0.32)


@dataclass
class Wearer:
    """Where a body is dressed and how it moves."""

    head: Point
    """Centre of the head."""
    head_radius: float
    neck: Point
    """Where a scarf lies, and where the head turns."""
    flank: Point
    """Where a bag hangs, on the side that cameras see."""
    hip: float
    """Height below which legs swing."""
    four_legged: bool


@dataclass
class Body:
    """A subject's parts: painted and fixed-colour distance fields, eyes, and how it is dressed."""

    painted: Array
    fixed: list[tuple[Array, Point]] = field(default_factory=list)
    """(distance field, linear RGB)."""
    eyes: list[tuple[Point, float]] = field(default_factory=list)
    """(centre, radius); the first two are eyes, a third is a nose."""
    wearer: Wearer | None = None
    upright: bool = False
    """Higher than long; stripes run around it."""


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
    girth: float = 1.0
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
    if kind == "fan":
        return ellipsoid((hx - 0.16, side * hr * 1.3, hz), (0.2 * size, 0.055, 0.27 * size))
    return ellipsoid(
        (hx - 0.02, side * hr * 0.75, hz + hr * 0.75), (0.065, 0.11 * size, 0.11 * size)
    )


def _tail(kind: str, length: float, height: float, size: float) -> list[Array]:
    start = (-length * 0.9, 0.0, height + 0.05)
    if kind == "up":
        return [capsule(start, (-length - 0.25 * size, 0.0, height + 0.35 * size), 0.06)]
    if kind == "long":
        bend = (-length - 0.3 * size, 0.0, height + 0.1)
        tip = (-length - 0.35 * size, 0.0, height + 0.45 * size)
        return [capsule(start, bend, 0.05), capsule(bend, tip, 0.05)]
    if kind == "down":
        return [capsule(start, (-length - 0.16 * size, 0.0, height - 0.35), 0.055)]
    return [ellipsoid((-length - 0.03, 0.0, height + 0.08), (0.12, 0.12, 0.12))]


def _quadruped(plan: _Quadruped, rng: random.Random) -> Body:
    vary = rng.uniform
    length, girth = vary(0.42, 0.6) * plan.length, vary(0.26, 0.36) * plan.girth
    leg, hr = vary(0.3, 0.52) * plan.leg, vary(0.23, 0.3) * plan.head
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
    eye = 0.04 * vary(0.9, 1.3)
    eyes = [((hx + hr * 0.75, side * hr * 0.5, hz + hr * 0.28), eye) for side in (-1, 1)]
    fixed = []
    if plan.ears == "fan":
        knee = (hx + hr + 0.1, 0.0, hz - 0.3)
        solid = smooth_union(solid, capsule((hx + hr * 0.7, 0, hz - hr * 0.2), knee, 0.1), 0.08)
        tip = (min(hx + hr + 0.2, 1.12), 0.0, FLOOR + vary(0.12, 0.3))
        solid = smooth_union(solid, capsule(knee, tip, 0.075), 0.06)
        fixed = [
            (capsule((hx + hr * 0.6, y, hz - 0.2), (hx + hr + 0.12, y, hz - 0.3), 0.045), _PALE)
            for y in (-0.14, 0.14)
        ]
    else:
        snout = plan.snout * vary(0.8, 1.2)
        nose_x = hx + hr * 0.75 + snout * 0.3
        muzzle = ellipsoid((nose_x, 0, hz - hr * 0.2), (max(snout, 0.08), 0.11, 0.1))
        solid = smooth_union(solid, muzzle, 0.07)
        eyes.append(((nose_x + max(snout, 0.08), 0, hz - hr * 0.15), 0.05))
    ear_size = vary(0.8, 1.25)
    for side in (-1, 1):
        solid = smooth_union(solid, _ear(plan.ears, side, hx, hz, hr, ear_size), 0.05)
    for part in _tail(plan.tail, length, cz, vary(0.8, 1.3)):
        solid = smooth_union(solid, part, 0.06)
    neck = (0.45 * length + 0.55 * hx, 0.0, 0.45 * cz + 0.55 * hz)
    flank = (-0.1 * length, -girth * 0.98, cz - 0.02)
    hip = cz - girth * 0.75
    return Body(solid, fixed, eyes, Wearer((hx, 0, hz), hr, neck, flank, hip, True))


def _duck(rng: random.Random) -> Body:
    vary = rng.uniform
    length, width = vary(0.42, 0.52), vary(0.3, 0.38)
    solid = ellipsoid((0, 0, -0.3), (length, width, vary(0.28, 0.34)))
    hx, hz, hr = length * 0.75, vary(0.25, 0.42), vary(0.22, 0.28)
    solid = smooth_union(solid, capsule((length * 0.5, 0, -0.1), (hx, 0, hz), 0.15))
    solid = smooth_union(solid, ellipsoid((hx, 0, hz), (hr, hr, hr)))
    rump = capsule((-length * 0.8, 0, -0.2), (-length - 0.15, 0, vary(-0.05, 0.15)), 0.08)
    solid = smooth_union(solid, rump)
    orange = ellipsoid((hx + hr + 0.06, 0, hz - 0.04), (vary(0.14, 0.2), 0.11, 0.055))
    for side in (-1, 1):
        orange = np.minimum(orange, ellipsoid((0.05, side * 0.15, -0.61), (0.17, 0.1, 0.05)))
    eyes = [((hx + hr * 0.7, side * hr * 0.62, hz + hr * 0.25), 0.045) for side in (-1, 1)]
    neck = (hx - 0.06, 0.0, 0.5 * (hz - 0.1))
    wearer = Wearer((hx, 0, hz), hr, neck, (-0.1, -width, -0.28), -0.9, False)
    return Body(solid, [(orange, _ORANGE)], eyes, wearer)


def _penguin(rng: random.Random) -> Body:
    vary = rng.uniform
    width, height, hr = vary(0.3, 0.37), vary(0.44, 0.52), vary(0.24, 0.29)
    cz = FLOOR + 0.06 + height
    solid = ellipsoid((0, 0, cz), (width * 0.9, width, height))
    hz = cz + height * 0.72 + hr * 0.5
    solid = smooth_union(solid, ellipsoid((0.04, 0, hz), (hr, hr * 0.97, hr * 0.95)), 0.12)
    for side in (-1, 1):
        hand = (vary(-0.12, 0.02), side * (width + 0.17), cz - 0.2)
        arm = capsule((0, side * width * 0.8, cz + 0.2), hand, 0.085)
        solid = smooth_union(solid, arm, 0.05)
    front = ellipsoid((width * 0.35, 0, cz - 0.08), (width * 0.66, width * 0.72, height * 0.78))
    orange = ellipsoid((0.04 + hr + 0.05, 0, hz - 0.03), (0.15, 0.07, 0.055))
    for side in (-1, 1):
        foot = ellipsoid((0.14, side * 0.16, FLOOR + 0.05), (0.2, 0.12, 0.055))
        orange = np.minimum(orange, foot)
    eyes = [((0.04 + hr * 0.8, side * hr * 0.5, hz + hr * 0.25), 0.045) for side in (-1, 1)]
    neck = (0.02, 0.0, cz + height * 0.72)
    wearer = Wearer((0.04, 0, hz), hr, neck, (0.05, -width - 0.06, cz - 0.3), -0.9, False)
    return Body(solid, [(front, _PALE), (orange, _ORANGE)], eyes, wearer, upright=True)


def _turtle(rng: random.Random) -> Body:
    vary = rng.uniform
    length, width, height = vary(0.5, 0.62), vary(0.44, 0.52), vary(0.4, 0.56)
    _, _, z = coordinates()
    bottom = FLOOR + 0.17
    shell = np.maximum(ellipsoid((0, 0, bottom), (length, width, height)), bottom - z)
    shell = smooth_union(
        shell, ellipsoid((0, 0, bottom + 0.02), (length * 1.12, width * 1.12, 0.08)), 0.05
    )
    hx, hr = length + vary(0.18, 0.26), vary(0.18, 0.22)
    hz = bottom + vary(0.2, 0.36)
    skin = smooth_union(
        capsule((length * 0.5, 0, bottom + 0.02), (hx, 0, hz), 0.11),
        ellipsoid((hx, 0, hz), (hr * 1.1, hr, hr)),
    )
    for x in (-length * 0.62, length * 0.62):
        for y in (-width * 0.72, width * 0.72):
            skin = np.minimum(skin, capsule((x * 0.9, y * 0.8, bottom), (x, y, FLOOR + 0.1), 0.12))
    tail = capsule((-length * 0.9, 0, bottom), (-length - 0.2, 0, bottom - 0.05), 0.06)
    solid = np.minimum(shell, np.minimum(skin, tail))
    eyes = [((hx + hr * 0.75, side * hr * 0.6, hz + hr * 0.3), 0.042) for side in (-1, 1)]
    neck = (0.5 * (length + hx), 0.0, 0.4 * bottom + 0.6 * hz - 0.03)
    flank = (-0.05, -width * 0.92, bottom + 0.16)
    return Body(solid, [], eyes, Wearer((hx, 0, hz), hr, neck, flank, bottom - 0.02, True))


def _frog(rng: random.Random) -> Body:
    vary = rng.uniform
    length, width, height = vary(0.42, 0.52), vary(0.36, 0.44), vary(0.24, 0.3)
    cz = FLOOR + height + 0.05
    solid = ellipsoid((-0.08, 0, cz), (length, width, height))
    hx, hz, hr = 0.3, cz + vary(0.16, 0.26), vary(0.3, 0.36)
    solid = smooth_union(solid, ellipsoid((hx, 0, hz), (hr, hr * 1.15, hr * 0.68)), 0.12)
    bulge, radius = hz + hr * 0.62, vary(0.12, 0.15)
    eyes = []
    for side in (-1, 1):
        y = side * hr * 0.68
        solid = smooth_union(solid, ellipsoid((hx + 0.05, y, bulge), (radius,) * 3), 0.04)
        eyes.append(((hx + 0.05 + radius * 0.62, y * 1.12, bulge + 0.02), radius * 0.55))
        thigh = ellipsoid((-0.28, side * width * 0.95, cz - 0.02), (0.29, 0.15, 0.21))
        solid = smooth_union(solid, thigh, 0.05)
        sole = side * (width + 0.06)
        foot = capsule((-0.3, sole, FLOOR + 0.08), (0.12, sole * 1.12, FLOOR + 0.05), 0.075)
        solid = smooth_union(solid, foot, 0.06)
        arm = capsule((0.28, side * 0.27, cz), (0.42, side * 0.36, FLOOR + 0.07), 0.08)
        solid = smooth_union(solid, arm, 0.05)
    neck = (0.16, 0.0, 0.45 * cz + 0.55 * hz - 0.05)
    flank = (-0.12, -width * 1.05, cz + 0.16)
    return Body(solid, [], eyes, Wearer((hx, 0, hz + 0.04), hr * 0.95, neck, flank, -0.9, True))


def _wheels(axles: tuple[float, ...], half_track: float, radius: float) -> Array:
    return union(
        capsule((x, y - 0.04, FLOOR + radius), (x, y + 0.04, FLOOR + radius), radius)
        for x in axles
        for y in (-half_track, half_track)
    )


def _lamps(x: float, half_track: float, z: float) -> Array:
    return union(ellipsoid((x, y, z), (0.05, 0.08, 0.08)) for y in (-half_track, half_track))


def _car(rng: random.Random) -> Body:
    vary = rng.uniform
    length, height, cabin = vary(0.6, 0.8), vary(0.15, 0.21), vary(0.3, 0.42)
    solid = rounded_box((0, 0, -0.32), (length, 0.36, height), 0.1)
    x, top = vary(-0.2, 0.05), vary(0.17, 0.22)
    roof_z = -0.32 + height + 0.12
    solid = smooth_union(solid, rounded_box((x, 0, roof_z), (cabin, 0.3, top), 0.1), 0.06)
    sides = [rounded_box((x, 0, roof_z + 0.05), (cabin * 0.72, 0.31, top * 0.5), 0.05)]
    sides.append(rounded_box((x, 0, roof_z + 0.05), (cabin + 0.01, 0.22, top * 0.5), 0.05))
    axles = (-length * 0.6, length * 0.6)
    fixed = [(union(sides), _GLASS), (_wheels(axles, 0.35, vary(0.16, 0.21)), _DARK)]
    return Body(solid, [*fixed, (_lamps(length, 0.2, -0.3), _PALE)])


def _bus(rng: random.Random) -> Body:
    vary = rng.uniform
    length, width, height = vary(0.7, 0.84), vary(0.28, 0.34), vary(0.32, 0.42)
    cz = FLOOR + 0.16 + height
    solid = rounded_box((0, 0, cz), (length, width, height), 0.07)
    count = rng.choice((3, 4, 5))
    step = 2 * length / count
    high, z = height * 0.3, cz + height * 0.38
    glass = [
        rounded_box((-length + (i + 0.5) * step, 0, z), (step * 0.38, width + 0.015, high), 0.03)
        for i in range(count)
    ]
    glass.append(rounded_box((length - 0.1, 0, z), (0.115, width * 0.82, high), 0.03))
    axles = (-length * 0.6, length * 0.6)
    fixed = [(union(glass), _GLASS), (_wheels(axles, width - 0.01, vary(0.15, 0.19)), _DARK)]
    return Body(solid, [*fixed, (_lamps(length, width * 0.6, FLOOR + 0.32), _PALE)])


def _boat(rng: random.Random) -> Body:
    vary = rng.uniform
    length, width, depth = vary(0.7, 0.86), vary(0.3, 0.38), vary(0.34, 0.42)
    _, _, z = coordinates()
    deck = FLOOR + depth
    hull = np.maximum(ellipsoid((0, 0, deck), (length, width, depth + 0.04)), z - deck)
    hull = np.maximum(hull, FLOOR - z)
    inside = ellipsoid((0, 0, deck + 0.05), (length * 0.86, width * 0.78, depth * 0.7))
    hull = np.maximum(hull, -inside)
    mast_x, top = vary(-0.05, 0.15), vary(0.62, 0.86)
    foot = deck + 0.12
    mainsail = _sail((mast_x - 0.04, foot), (mast_x - 0.04, top), (-length * 0.82, foot))
    jib = _sail((mast_x + 0.05, foot), (mast_x + 0.05, top * 0.75), (length * 0.78, foot))
    mast = capsule((mast_x, 0, FLOOR + 0.1), (mast_x, 0, top + 0.05), 0.04)
    return Body(union([hull, mainsail, jib]), [(mast, _WOOD)])


def _sail(low: tuple[float, float], high: tuple[float, float], far: tuple[float, float]) -> Array:
    """A thin triangle in the plane of x and z."""
    x, y, z = coordinates()
    corners = [low, high, far]
    middle = np.mean(corners, axis=0)
    distance = np.abs(y) - 0.04
    for (x0, z0), (x1, z1) in zip(corners, corners[1:] + corners[:1], strict=True):
        normal = np.array([z1 - z0, x0 - x1]) / np.hypot(x1 - x0, z1 - z0)
        if normal @ (middle - (x0, z0)) > 0:
            normal = -normal
        distance = np.maximum(distance, normal[0] * (x - x0) + normal[1] * (z - z0))
    return np.asarray(distance, np.float32)


def _rocket(rng: random.Random) -> Body:
    vary = rng.uniform
    radius, height = vary(0.23, 0.3), vary(0.54, 0.66)
    cz = FLOOR + 0.22 + height * 0.92
    _, _, z = coordinates()
    solid = np.maximum(ellipsoid((0, 0, cz), (radius, radius, height)), FLOOR + 0.2 - z)
    reach = radius + vary(0.16, 0.26)
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        root = (dx * radius * 0.7, dy * radius * 0.7, FLOOR + 0.45)
        fin = capsule(root, (dx * reach, dy * reach, FLOOR + 0.09), 0.07)
        solid = smooth_union(solid, fin, 0.06)
    nozzle = cylinder((0, 0, FLOOR + 0.14), radius * 0.55, 0.1)
    window, side = vary(0.1, 0.14), radius * 0.93
    glass = union(
        ellipsoid((x, y, cz + 0.18), (window,) * 3)
        for x, y in ((0, -side), (side * 0.86, -side * 0.5))
    )
    return Body(solid, [(nozzle, _METAL), (glass, _GLASS)], upright=True)


def _mug(rng: random.Random) -> Body:
    vary = rng.uniform
    radius, height = vary(0.36, 0.48), vary(0.36, 0.5)
    cz = FLOOR + height
    outer = cylinder((0, 0, cz), radius, height)
    inner = cylinder((0, 0, cz + 0.12), radius - 0.09, height)
    handle = ring((radius + 0.02, 0, cz), vary(0.18, 0.25), 0.07, height=1.2)
    handle = np.maximum(handle, -cylinder((0, 0, cz), radius - 0.04, 2.0))
    return Body(np.minimum(np.maximum(outer, -inner), handle), upright=True)


def _teapot(rng: random.Random) -> Body:
    vary = rng.uniform
    radius, height = vary(0.4, 0.5), vary(0.34, 0.44)
    cz = FLOOR + height
    solid = ellipsoid((0, 0, cz), (radius, radius, height))
    solid = smooth_union(solid, cylinder((0, 0, FLOOR + 0.05), radius * 0.6, 0.05), 0.05)
    tip = (radius + vary(0.28, 0.38), 0.0, cz + vary(0.2, 0.32))
    solid = smooth_union(solid, capsule((radius * 0.8, 0, cz - 0.08), tip, 0.075), 0.08)
    grip = ring((-radius - 0.02, 0, cz), vary(0.19, 0.25), 0.06, height=1.25)
    solid = np.minimum(solid, np.maximum(grip, -ellipsoid((0, 0, cz), (radius * 0.9,) * 3)))
    lid = cz + height * 0.9
    solid = smooth_union(solid, ellipsoid((0, 0, lid), (radius * 0.52, radius * 0.52, 0.08)), 0.03)
    knob = (ellipsoid((0, 0, lid + 0.14), (0.085,) * 3), _WOOD)
    return Body(solid, [knob], upright=True)


def _chair(rng: random.Random) -> Body:
    vary = rng.uniform
    width, seat, back = vary(0.32, 0.42), FLOOR + vary(0.42, 0.55), vary(0.3, 0.44)
    thickness, leg = vary(0.055, 0.08), vary(0.055, 0.075)
    solid = rounded_box((0, 0, seat), (width, width, thickness), 0.03)
    for x in (-width + leg, width - leg):
        for y in (-width + leg, width - leg):
            half = (seat - FLOOR) / 2
            solid = np.minimum(solid, rounded_box((x, y, FLOOR + half), (leg, leg, half), 0.03))
    rest = rounded_box((-width + leg, 0, seat + back), (leg, width, back), 0.04)
    if rng.random() < 0.5:
        gap = rounded_box((-width, 0, seat + back * 0.85), (0.3, width * 0.55, back * 0.45), 0.05)
        rest = np.maximum(rest, -gap)
    return Body(np.minimum(solid, rest))


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
    neck = (0.0, 0.0, hz - hr * 0.86)
    wearer = Wearer((0, 0, hz), hr * 1.1, neck, (0.02, -width - 0.16, -0.36), -0.42, False)
    return Body(solid, [(antenna, (0.8, 0.05, 0.05))], eyes, wearer, upright=True)


def _four_legged(plan: _Quadruped) -> Callable[[random.Random], Body]:
    return functools.partial(_quadruped, plan)


_BODIES: dict[str, Callable[[random.Random], Body]] = {
    "dog": _four_legged(_Quadruped("floppy", "up", snout=0.17)),
    "cat": _four_legged(_Quadruped("pointed", "long", snout=0.05, thickness=0.85)),
    "rabbit": _four_legged(_Quadruped("long", "bob", snout=0.04, length=0.75, leg=0.6, head=0.95)),
    "bear": _four_legged(
        _Quadruped("round", "bob", snout=0.1, thickness=1.45, length=0.95, head=1.15, leg=0.8)
    ),
    "horse": _four_legged(
        _Quadruped("pointed", "down", snout=0.2, leg=1.25, neck=1.3, thickness=0.9, head=0.72)
    ),
    "elephant": _four_legged(
        _Quadruped(
            "fan", "down", snout=0, thickness=1.5, length=0.92, girth=1.25, neck=0.75, head=0.95
        )
    ),
    "duck": _duck,
    "penguin": _penguin,
    "turtle": _turtle,
    "frog": _frog,
    "car": _car,
    "bus": _bus,
    "boat": _boat,
    "rocket": _rocket,
    "mug": _mug,
    "teapot": _teapot,
    "chair": _chair,
    "robot": _robot,
}


def build_body(identity: Identity) -> Body:
    """The distance fields of one subject; the same for every view of it."""
    return _BODIES[identity.class_noun](random.Random(identity.shape_seed))
