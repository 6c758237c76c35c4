"""What is done to a clay body: its paint, what it wears, and the pose it takes."""

from __future__ import annotations

import math

import numpy as np

from data_prep.clay.bodies import Body, Wearer
from data_prep.clay.fields import (
    Array,
    Mesh,
    Point,
    capsule,
    coordinates,
    cylinder,
    ellipsoid,
    grid,
    rounded_box,
    smooth_union,
    union,
    vector,
)
from data_prep.clay.world import COLORS, Identity, Pose

MARKED_SHARE = {"spots": 0.26, "stripes": 0.34, "belly": 0.4, "patches": 0.34}
"""Pattern -> share of a body's vertices that have the second colour."""


def _marks(vertices: Array, identity: Identity, *, upright: bool) -> Array:
    """How strongly each vertex [V] belongs to the second colour; the highest ones get it."""
    rng = np.random.RandomState(identity.paint_seed % (1 << 31))
    x, y, z = vertices.T
    if identity.pattern == "spots":
        candidates = vertices[rng.randint(len(vertices), size=300)]
        chosen: list[Array] = []
        nearest = np.full(len(candidates), np.inf)
        for _ in range(rng.randint(11, 17)):
            chosen.append(candidates[int(nearest.argmax())] if chosen else candidates[0])
            nearest = np.minimum(nearest, np.linalg.norm(candidates - chosen[-1], axis=1))
        sizes = rng.uniform(0.8, 1.2, len(chosen))
        apart = np.linalg.norm(vertices[:, None] - np.array(chosen)[None], axis=-1)
        return np.asarray(-(apart / sizes).min(1))
    if identity.pattern == "stripes":
        along, across = (z, x) if upright else (x, z)
        waves = along * rng.uniform(14, 19) + 0.8 * np.sin(across * 5 + rng.uniform(0, 6))
        return np.asarray(np.sin(waves + rng.uniform(0, 6)))
    if identity.pattern == "belly":
        return np.asarray(-z)
    cloud = np.zeros(len(vertices))
    for _ in range(6):
        direction = rng.normal(size=3)
        direction *= rng.uniform(4.5, 8) / np.linalg.norm(direction)
        cloud += np.sin(vertices @ direction + rng.uniform(0, 6.3))
    return cloud


def paint(vertices: Array, identity: Identity, *, upright: bool) -> Array:
    """Linear RGB per vertex [V, 3]: the identity's colours laid out in its pattern."""
    base = np.clip(vector(COLORS[identity.color]) * vector(identity.tint), 0, 0.95)
    second = np.clip(vector(COLORS[identity.color2]) * vector(identity.tint2), 0, 0.95)
    if identity.pattern == "plain":
        return np.broadcast_to(base, vertices.shape).astype(np.float32)
    marks = _marks(vertices, identity, upright=upright)
    marked = marks > np.quantile(marks, 1 - MARKED_SHARE[identity.pattern])
    return np.where(marked[:, None], second, base).astype(np.float32)


def _hat(wearer: Wearer) -> Array:
    (x, _, z), radius = wearer.head, wearer.head_radius
    brim = min(z + radius * 0.72, 0.92)
    height = min(max(radius * 0.75, 0.22), 1.18 - brim)
    flat = cylinder((x - 0.02, 0, brim), radius * 1.25, 0.045)
    crown = cylinder((x - 0.02, 0, brim + height / 2), radius * 0.78, height / 2)
    return smooth_union(flat, crown, 0.05)


def _scarf(body: Body, wearer: Wearer) -> Array:
    neck, axis = vector(wearer.neck), vector(wearer.head) - vector(wearer.neck)
    axis = axis / np.linalg.norm(axis)
    offset = grid() - neck
    band = np.maximum(np.abs(body.painted) - 0.075, np.abs(offset @ axis) - 0.09)
    near = np.sqrt((offset**2).sum(-1)) - 0.42
    knot = (wearer.neck[0] + 0.06, wearer.neck[1] - 0.22, wearer.neck[2])
    end = (knot[0] + 0.02, knot[1] - 0.06, knot[2] - 0.34)
    return union([np.maximum(band, near), capsule(knot, end, 0.075)])


def _glasses(body: Body, wearer: Wearer) -> Array:
    (x, _, z), radius = wearer.head, wearer.head_radius
    size = 0.15 * radius / 0.27
    height = body.eyes[0][0][2]
    lenses = [
        ellipsoid((ex + 0.02, ey * 1.1, ez), (0.07, size, size))
        for (ex, ey, ez), _ in body.eyes[:2]
    ]
    _, _, zs = coordinates()
    around = np.maximum(np.abs(body.painted) - 0.045, np.abs(zs - height) - 0.05)
    near = ellipsoid((x, 0, z), (radius * 1.3, radius * 1.35, radius * 1.3))
    return union([np.maximum(around, near), *lenses])


def _bag(body: Body, wearer: Wearer) -> Array:
    (x, y, z) = wearer.flank
    pouch = rounded_box((x, y - 0.05, z - 0.02), (0.2, 0.11, 0.17), 0.05)
    xs, _, _ = coordinates()
    strap = np.maximum(np.abs(body.painted) - 0.04, np.abs(xs - x) - 0.05)
    return union([pouch, strap])


def build_accessory(kind: str, body: Body) -> Array:
    """Distance field of a hat, scarf, bag or glasses on `body`, which must be a wearer's."""
    if body.wearer is None:
        raise ValueError("This body wears nothing.")
    if kind == "hat":
        return _hat(body.wearer)
    if kind == "scarf":
        return _scarf(body, body.wearer)
    if kind == "glasses":
        return _glasses(body, body.wearer)
    return _bag(body, body.wearer)


def _turn(pose: Pose) -> Array:
    """The head's rotation, [3, 3]: first up or down, then left or right."""
    yaw, pitch = math.radians(pose.head_yaw), math.radians(pose.head_pitch)
    up = np.array(
        [[math.cos(pitch), 0, -math.sin(pitch)], [0, 1, 0], [math.sin(pitch), 0, math.cos(pitch)]]
    )
    around = np.array(
        [[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]]
    )
    return around @ up


def _bend(points: Array, normals: Array, wearer: Wearer, pose: Pose) -> tuple[Array, Array]:
    """`points` and `normals` [V, 3] of a body in rest, moved into `pose` by linear skinning."""
    neck, axis = vector(wearer.neck), vector(wearer.head) - vector(wearer.neck)
    along = np.clip(((points - neck) @ axis / (axis @ axis) + 0.35) / 0.9, 0, 1)
    weight = (along * along * (3 - 2 * along))[:, None]
    turn = _turn(pose).astype(np.float32)
    moved = points + weight * ((points - neck) @ turn.T + neck - points)
    turned = normals + weight * (normals @ turn.T - normals)
    below = np.clip(wearer.hip - points[:, 2], 0, None)
    side = np.sign(points[:, 1]) * (np.sign(points[:, 0]) if wearer.four_legged else 1)
    moved[:, 0] += math.tan(math.radians(pose.stride)) * below * side
    return moved.astype(np.float32), turned.astype(np.float32)


def posed_mesh(mesh: Mesh, body: Body, pose: Pose) -> Mesh:
    """`mesh`, a part of `body` or something it wears, in `pose`; things keep still."""
    if body.wearer is None:
        return mesh
    vertices, normals = _bend(mesh.vertices, mesh.normals, body.wearer, pose)
    return Mesh(vertices, mesh.faces, normals)


def posed_point(point: Point, body: Body, pose: Pose) -> Point:
    """Where `point` of `body` is in `pose`."""
    if body.wearer is None:
        return point
    moved, _ = _bend(vector(point)[None], np.zeros((1, 3), np.float32), body.wearer, pose)
    x, y, z = moved[0].tolist()
    return x, y, z
