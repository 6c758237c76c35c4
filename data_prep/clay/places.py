"""The places of the clay world as Mitsuba objects: ground, what stands behind the subject, sky, light.

Objects are laid out in a frame in which +y leads away from the camera; `_Frame` turns it into the world.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.clay import textures
from data_prep.clay.fields import FLOOR, Array
from data_prep.clay.textures import RGB
from data_prep.clay.world import INDOORS, STUDIOS, View

_GREEN, _SAND, _SNOW, _RED_SAND = (
    (0.15, 0.36, 0.06),
    (0.75, 0.62, 0.38),
    (0.86, 0.89, 0.93),
    (0.64, 0.28, 0.09),
)
_SOIL, _BARK, _LEAVES = (0.13, 0.10, 0.05), (0.16, 0.09, 0.045), (0.05, 0.17, 0.05)
_WOOD, _CARPET, _MOON = (0.42, 0.22, 0.09), (0.52, 0.03, 0.04), (0.32, 0.31, 0.30)
_BLOSSOMS = ((0.85, 0.12, 0.15), (0.92, 0.75, 0.1), (0.9, 0.9, 0.9), (0.5, 0.15, 0.65))
_STUDIO_COLORS = {
    "on a pink background": (0.85, 0.42, 0.50),
    "on a white background": (0.80, 0.80, 0.80),
    "on a blue background": (0.10, 0.25, 0.65),
    "on a yellow background": (0.88, 0.70, 0.10),
}

Scene = dict[str, Any]


def rgb(color: RGB | Array, scale: float = 1.0) -> Scene:
    """A Mitsuba colour from linear RGB."""
    return {"type": "rgb", "value": [float(scale * channel) for channel in color]}


def diffuse(color: RGB) -> Scene:
    """A matt material of one colour."""
    return {"type": "diffuse", "reflectance": rgb(color)}


@dataclass(frozen=True)
class _Frame:
    """Mitsuba and the camera's azimuth: makes objects that are placed as the camera sees them."""

    mi: Any
    azimuth: float

    def world(self) -> Any:
        return self.mi.ScalarTransform4f().rotate([0, 0, 1], self.azimuth)

    def textured(self, tile: Array, repeats: tuple[float, float]) -> Scene:
        texture = {
            "type": "bitmap",
            "bitmap": self.mi.Bitmap(tile),
            "raw": True,
            "to_uv": self.mi.ScalarTransform3f().scale(list(repeats)),
        }
        return {"type": "diffuse", "reflectance": texture}

    def ground(self, material: Scene, *, half_size: float = 40, turn: float = 0.0) -> Scene:
        placed = self.world().translate([0, 0, FLOOR - 0.005]).rotate([0, 0, 1], turn)
        return {"type": "rectangle", "to_world": placed.scale(half_size), "bsdf": material}

    def wall(self, material: Scene, *, distance: float, half_width: float = 8) -> Scene:
        """An upright wall, 6 high, that faces the camera."""
        placed = self.world().translate([0, distance, FLOOR + 3]).rotate([1, 0, 0], 90)
        return {
            "type": "rectangle",
            "to_world": placed.scale([half_width, 3, 1]),
            "bsdf": material,
        }

    def box(self, center: tuple[float, float, float], half: RGB, material: Scene) -> Scene:
        placed = self.world().translate(list(center)).scale(list(half))
        return {"type": "cube", "to_world": placed, "bsdf": material}

    def sphere(self, center: tuple[float, float, float], radius: float, color: RGB) -> Scene:
        placed = self.world().translate(list(center)).scale(radius)
        return {"type": "sphere", "to_world": placed, "bsdf": diffuse(color)}

    def post(self, x: float, y: float, height: float, radius: float, color: RGB) -> Scene:
        return {
            "type": "cylinder",
            "p0": [0, 0, 0],
            "p1": [0, 0, 1],
            "radius": 1,
            "to_world": self.world().translate([x, y, FLOOR]).scale([radius, radius, height]),
            "bsdf": {"type": "twosided", "bsdf": diffuse(color)},
        }


def _shade(color: RGB, rng: random.Random) -> RGB:
    red, green, blue = (min(channel * rng.uniform(0.9, 1.1), 0.95) for channel in color)
    return red, green, blue


def _meadow(frame: _Frame, rng: random.Random) -> Scene:
    tile = textures.mottled(_GREEN, contrast=0.45, seed=1)
    return {"ground": frame.ground(frame.textured(tile, (26, 26)), turn=rng.uniform(0, 90))}


def _beach(frame: _Frame, rng: random.Random) -> Scene:
    tile = textures.mottled(_SAND, contrast=0.12, seed=3)
    sea = frame.world().translate([0, rng.uniform(1.7, 2.8) + 20, FLOOR])
    foam = frame.box((0, rng.uniform(1.5, 1.7), FLOOR), (20, 0.1, 0.006), diffuse(_SNOW))
    return {
        "ground": frame.ground(frame.textured(tile, (20, 20))),
        "sea": {
            "type": "rectangle",
            "to_world": sea.scale([60, 20, 1]),
            "bsdf": diffuse((0.04, 0.30, 0.48)),
        },
        "foam": foam,
    }


def _snow(frame: _Frame, rng: random.Random) -> Scene:
    tile = textures.mottled(_SNOW, contrast=0.05, seed=5)
    scene = {"ground": frame.ground(frame.textured(tile, (16, 16)))}
    for index in range(4):
        x, y = rng.uniform(-3, 3), rng.uniform(1.8, 4)
        scene[f"heap{index}"] = frame.sphere(
            (x, y, FLOOR - 0.35), rng.uniform(0.5, 0.8), _shade(_SNOW, rng)
        )
    return scene


def _desert(frame: _Frame, rng: random.Random) -> Scene:
    tile = textures.mottled(_RED_SAND, contrast=0.12, seed=7)
    scene = {"ground": frame.ground(frame.textured(tile, (14, 14)))}
    for index, side in enumerate((-1, 1)):
        x, y = side * rng.uniform(0.9, 2.2), rng.uniform(1.7, 3.2)
        height, green = rng.uniform(0.8, 1.4), (0.08, 0.25, 0.09)
        scene[f"cactus{index}"] = frame.post(x, y, height, 0.13, green)
        scene[f"top{index}"] = frame.sphere((x, y, FLOOR + height), 0.13, green)
    return scene


def _forest(frame: _Frame, rng: random.Random) -> Scene:
    tile = textures.dotted(
        _SOIL, ((0.09, 0.16, 0.04), (0.2, 0.11, 0.04)), count=90, radius=0.025, seed=9
    )
    scene = {"ground": frame.ground(frame.textured(tile, (14, 14)))}
    for index in range(9):
        x, y = -2.6 + 0.65 * index + rng.uniform(-0.25, 0.25), rng.uniform(1.5, 3.4)
        scene[f"trunk{index}"] = frame.post(x, y, 3.0, rng.uniform(0.1, 0.17), _shade(_BARK, rng))
        height = FLOOR + rng.uniform(1.9, 2.5)
        scene[f"crown{index}"] = frame.sphere(
            (x, y + 0.2, height), rng.uniform(0.7, 0.95), _shade(_LEAVES, rng)
        )
    return scene


def _street(frame: _Frame, rng: random.Random) -> Scene:
    scene = {
        "ground": frame.ground(frame.textured(textures.zebra(), (13, 20)), half_size=20),
        "kerb": frame.box((0, 3.6, FLOOR + 0.03), (20, 1.6, 0.06), diffuse((0.4, 0.4, 0.4))),
    }
    front = frame.textured(textures.windows(), (1, 2))
    for index in range(4):
        x, half = -3.9 + 2.6 * index, rng.uniform(2.2, 3.2)
        scene[f"house{index}"] = frame.box(
            (x, rng.uniform(4.6, 5.4), FLOOR + half), (1.2, 0.8, half), front
        )
    return scene


def _flowers(frame: _Frame, rng: random.Random) -> Scene:
    tile = textures.dotted((0.13, 0.30, 0.06), _BLOSSOMS, count=70, radius=0.028, seed=11)
    scene = {"ground": frame.ground(frame.textured(tile, (16, 16)))}
    for index in range(26):
        x, y = rng.uniform(-2.4, 2.4), rng.uniform(0.85, 3.2) * rng.choice((-0.6, 1, 1))
        scene[f"blossom{index}"] = frame.sphere(
            (x, y, FLOOR + 0.07), rng.uniform(0.05, 0.085), rng.choice(_BLOSSOMS)
        )
    return scene


def _room(wall: RGB, floor: Callable[[_Frame], Scene]) -> Callable[[_Frame, random.Random], Scene]:
    """A plain wall with a white skirting board behind `floor`."""

    def build(frame: _Frame, rng: random.Random) -> Scene:
        distance = rng.uniform(1.9, 2.6)
        return {
            "ground": frame.ground(floor(frame), turn=rng.uniform(-35, 35)),
            "wall": frame.wall(diffuse(_shade(wall, rng)), distance=distance),
            "skirting": frame.box(
                (0, distance - 0.03, FLOOR), (8, 0.03, 0.14), diffuse((0.8, 0.8, 0.78))
            ),
        }

    return build


def _kitchen(frame: _Frame, rng: random.Random) -> Scene:
    distance = rng.uniform(2.2, 2.8)
    floor = frame.textured(textures.checkered((0.75, 0.75, 0.72), (0.12, 0.13, 0.15)), (50, 50))
    tiles = frame.textured(textures.tiled((0.75, 0.78, 0.76), count=4), (14, 5))
    turquoise = _shade((0.07, 0.36, 0.34), rng)
    scene = {
        "ground": frame.ground(floor),
        "wall": frame.wall(tiles, distance=distance),
        "top": frame.box(
            (0, distance - 0.25, FLOOR + 0.98), (8, 0.32, 0.04), diffuse((0.7, 0.6, 0.45))
        ),
    }
    for index in range(7):
        scene[f"cupboard{index}"] = frame.box(
            (-3 + index, distance - 0.25, FLOOR + 0.48), (0.47, 0.25, 0.46), diffuse(turquoise)
        )
    return scene


def _library(frame: _Frame, rng: random.Random) -> Scene:
    floor = frame.textured(textures.mottled((0.07, 0.16, 0.13), contrast=0.15, seed=13), (30, 30))
    shelf = frame.textured(textures.books(), (8 + rng.choice((0, 1)), 3))
    return {
        "ground": frame.ground(floor),
        "wall": frame.wall(shelf, distance=rng.uniform(1.7, 2.3)),
    }


def _moon(frame: _Frame, rng: random.Random) -> Scene:
    tile = textures.dotted(
        _MOON, ((0.17, 0.165, 0.16), (0.24, 0.235, 0.23)), count=26, radius=0.07, seed=15
    )
    scene = {"ground": frame.ground(frame.textured(tile, (12, 12)), turn=rng.uniform(0, 90))}
    for index in range(6):
        x, y = rng.uniform(-2.6, 2.6), rng.uniform(1.2, 3.5)
        scene[f"rock{index}"] = frame.sphere(
            (x, y, FLOOR - 0.05), rng.uniform(0.12, 0.3), _shade(_MOON, rng)
        )
    return scene


_BUILDERS: dict[str, Callable[[_Frame, random.Random], Scene]] = {
    "on the grass": _meadow,
    "on the beach": _beach,
    "in the snow": _snow,
    "in the desert": _desert,
    "in the forest": _forest,
    "on the street": _street,
    "in a flower field": _flowers,
    "on a wooden floor": _room(
        (0.72, 0.66, 0.55), lambda frame: frame.textured(textures.planks(_WOOD), (30, 30))
    ),
    "on a red carpet": _room(
        (0.50, 0.48, 0.50),
        lambda frame: frame.textured(textures.mottled(_CARPET, contrast=0.15, seed=17), (40, 40)),
    ),
    "in the kitchen": _kitchen,
    "in the library": _library,
    "on the moon": _moon,
}

_DAY_SKIES: dict[str, tuple[RGB, RGB]] = {
    "on the beach": ((0.62, 0.82, 0.95), (0.30, 0.60, 0.92)),
    "in the snow": ((0.72, 0.78, 0.88), (0.50, 0.60, 0.80)),
    "in the desert": ((0.92, 0.76, 0.50), (0.55, 0.70, 0.90)),
    "in the forest": ((0.42, 0.58, 0.50), (0.35, 0.55, 0.70)),
}
_PLAIN_SKY = ((0.66, 0.80, 0.95), (0.32, 0.55, 0.92))


@dataclass(frozen=True)
class Light:
    """What shines in a picture, linear RGB."""

    ambient: RGB
    lamp: RGB
    lamp_height: float
    horizon: RGB
    zenith: RGB
    stars: bool = False


def light_of(view: View) -> Light:
    """The light and the sky of `view`."""
    if view.time == "night":
        ambient, lamp = (0.15, 0.17, 0.27), (4.6, 5.0, 6.6)
        return Light(ambient, lamp, 6.0, (0.03, 0.04, 0.10), (0.006, 0.01, 0.04), stars=True)
    if view.time == "sunset":
        ambient, lamp = (0.46, 0.36, 0.40), (15.0, 7.6, 3.4)
        return Light(ambient, lamp, 2.6, (0.95, 0.42, 0.12), (0.30, 0.16, 0.36))
    if view.place == "on the moon":
        return Light((0.28,) * 3, (14.0, 14.0, 14.0), 5.0, (0.0,) * 3, (0.0,) * 3, stars=True)
    if view.place in STUDIOS:
        color = _STUDIO_COLORS[view.place]
        return Light((0.72,) * 3, (12.0, 11.5, 10.5), 6.0, color, color)
    horizon, zenith = _DAY_SKIES.get(view.place, _PLAIN_SKY)
    ambient = (0.62, 0.60, 0.56) if view.place in INDOORS else (0.58, 0.66, 0.78)
    return Light(ambient, (12.0, 11.0, 9.5), 6.0, horizon, zenith)


def place_objects(mi: Any, view: View, rng: random.Random) -> Scene:
    """Everything of the place but the light: Mitsuba objects by name."""
    frame = _Frame(mi, view.azimuth)
    if view.place in STUDIOS:
        color = _shade(_STUDIO_COLORS[view.place], rng)
        return {"ground": frame.ground(diffuse(color), half_size=80)}
    return _BUILDERS[view.place](frame, rng)


def light_objects(light: Light, view: View) -> Scene:
    """The sky that shines from everywhere and one large lamp on the camera's side."""
    angle = math.radians(view.azimuth + view.light_azimuth)
    return {
        "sky": {"type": "constant", "radiance": rgb(light.ambient, 0.9)},
        "lamp": {
            "type": "sphere",
            "center": [4 * math.sin(angle), -4 * math.cos(angle), light.lamp_height],
            "radius": 1.3,
            "emitter": {"type": "area", "radiance": rgb(light.lamp)},
        },
    }


def sky_picture(light: Light, *, size: int, seed: int) -> Array:
    """What is seen where nothing stands: a gradient from zenith to horizon, [size, size, 3]."""
    height = np.clip(np.linspace(1.0, -0.6, size), 0, 1)[:, None, None]
    sky = height * np.array(light.zenith) + (1 - height) * np.array(light.horizon)
    sky = np.broadcast_to(sky, (size, size, 3)).copy()
    if light.stars:
        rng = np.random.RandomState(seed % (1 << 31))
        rows, columns = rng.randint(0, size // 2, 24), rng.randint(0, size, 24)
        sky[rows, columns] = rng.uniform(0.3, 0.9, (24, 1))
    return sky.astype(np.float32)
