"""Pictures of clay subjects: a path-traced scene per view, cleaned of noise, in one of four styles.

Mitsuba 3 (scalar variant, one thread: results are the same bit for bit wherever they are made)
traces few paths per pixel. What remains of the noise is filtered out of the light alone: the picture
is divided by the surface colours, which the tracer gives without noise, smoothed where normals and
depth agree, and multiplied back (irradiance filtering with a cross-bilateral filter; see Bako et
al., "Kernel-Predicting Convolutional Networks for Denoising Monte Carlo Renderings", 2017, §3).
"""

from __future__ import annotations

import functools
import io
import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from data_prep.clay.shapes import (
    FLOOR,
    Array,
    Body,
    Mesh,
    build_accessory,
    build_body,
    paint,
    to_mesh,
)
from data_prep.clay.world import COLORS, Identity, View

SIZE = 128
"""Width and height of a picture in pixels."""
SAMPLES_PER_PIXEL = 8
"""Light paths per pixel; the noise-free layers take half as many."""

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class _Place:
    """Ground and sky, linear RGB; `kind` picks extras (sea, planks, no horizon, night light)."""

    ground: RGB
    sky: RGB
    kind: str = "outdoors"


_PLACES = {
    "on the grass": _Place((0.16, 0.36, 0.06), (0.45, 0.65, 0.95), "grass"),
    "on the beach": _Place((0.75, 0.60, 0.36), (0.45, 0.75, 0.92), "beach"),
    "in the snow": _Place((0.85, 0.88, 0.92), (0.55, 0.64, 0.80)),
    "at night": _Place((0.06, 0.08, 0.16), (0.008, 0.012, 0.05), "night"),
    "on a wooden floor": _Place((0.42, 0.22, 0.09), (0.72, 0.66, 0.56), "planks"),
    "on a red carpet": _Place((0.50, 0.03, 0.04), (0.50, 0.45, 0.42)),
    "in the desert": _Place((0.62, 0.30, 0.10), (0.90, 0.66, 0.36)),
    "on a pink background": _Place((0.85, 0.42, 0.50), (0.85, 0.42, 0.50), "studio"),
    "on a white background": _Place((0.80, 0.80, 0.80), (0.80, 0.80, 0.80), "studio"),
    "on a blue background": _Place((0.10, 0.25, 0.65), (0.10, 0.25, 0.65), "studio"),
}


@functools.cache
def _mitsuba() -> Any:
    try:
        import drjit
        import mitsuba
    except ImportError as error:
        raise ModuleNotFoundError(
            "Rendering the clay world needs Mitsuba: pip install 'finetune-subject[clay]'"
        ) from error
    mitsuba.set_variant("scalar_rgb")
    mitsuba.set_log_level(mitsuba.LogLevel.Error)
    drjit.set_thread_count(1)
    return mitsuba


@dataclass(frozen=True)
class Model:
    """A subject's meshes, ready to be placed before a camera as often as one likes."""

    identity: Identity
    body: Body
    painted: Mesh
    colors: Array
    fixed: list[tuple[Mesh, RGB]]


def build_model(identity: Identity) -> Model:
    """The meshes of `identity`; the costly half of a picture, shared by all of its views."""
    body = build_body(identity)
    painted = to_mesh(body.painted)
    return Model(
        identity=identity,
        body=body,
        painted=painted,
        colors=paint(painted.vertices, identity),
        fixed=[(to_mesh(distance), color) for distance, color in body.fixed],
    )


def _rgb(color: RGB | NDArray[Any], scale: float = 1.0) -> dict[str, Any]:
    return {"type": "rgb", "value": [float(scale * channel) for channel in color]}


def _mesh_object(
    name: str, mesh: Mesh, *, colors: Array | None = None, color: RGB = (0, 0, 0)
) -> Any:
    mi = _mitsuba()
    surface = _rgb(color) if colors is None else {"type": "mesh_attribute", "name": "vertex_color"}
    properties = mi.Properties()
    properties["mesh_bsdf"] = mi.load_dict({"type": "diffuse", "reflectance": surface})
    shape = mi.Mesh(name, len(mesh.vertices), len(mesh.faces), properties, has_vertex_normals=True)
    if colors is not None:
        shape.add_attribute("vertex_color", 3, colors.ravel())
    parameters = mi.traverse(shape)
    parameters["vertex_positions"] = mesh.vertices.ravel()
    parameters["vertex_normals"] = mesh.normals.ravel()
    parameters["faces"] = mesh.faces.ravel()
    parameters.update()
    return shape


@functools.cache
def _planks() -> Array:
    """A tile of floorboards, [256, 256, 3], linear RGB: four boards, their seams and their grain."""
    rng = np.random.RandomState(5)
    tile = np.ones((256, 256), np.float32)
    for board in range(4):
        rows = slice(64 * board, 64 * board + 64)
        waves = np.sin(
            np.linspace(0, 9, 64)[:, None] + 0.7 * np.sin(np.linspace(0, 2 * math.pi, 256))
        )
        tile[rows] = rng.uniform(0.82, 1.15) * (1 + 0.05 * waves)
        tile[64 * board : 64 * board + 4] = 0.45
    return (tile[..., None] * np.array(_PLACES["on a wooden floor"].ground, np.float32)).astype(
        np.float32
    )


def _ground(place: _Place, rng: random.Random) -> dict[str, Any]:
    mi = _mitsuba()
    transform = mi.ScalarTransform4f().translate([0, 0, FLOOR - 0.005])
    reflectance: dict[str, Any]
    if place.kind == "planks":
        transform = transform.rotate([0, 0, 1], rng.uniform(-40, 40))
        reflectance = {
            "type": "bitmap",
            "bitmap": mi.Bitmap(_planks()),
            "raw": True,
            "to_uv": mi.ScalarTransform3f().scale([30, 30]),
        }
    else:
        shade = [min(channel * rng.uniform(0.9, 1.1), 1.0) for channel in place.ground]
        reflectance = _rgb(shade)  # type: ignore[arg-type]
    return {
        "type": "rectangle",
        "to_world": transform.scale(40 if place.kind != "studio" else 80),
        "bsdf": {"type": "diffuse", "reflectance": reflectance},
    }


def _scene(model: Model, view: View, *, size: int) -> Any:
    mi = _mitsuba()
    place, rng = _PLACES[view.place], random.Random(view.seed)
    film = {
        "type": "hdrfilm",
        "width": size,
        "height": size,
        "rfilter": {"type": "gaussian"},
        "pixel_format": "rgba",
    }
    azimuth, elevation = math.radians(view.azimuth), math.radians(view.elevation)
    origin = [
        view.distance * math.cos(elevation) * math.sin(azimuth),
        -view.distance * math.cos(elevation) * math.cos(azimuth),
        view.distance * math.sin(elevation) - 0.2,
    ]
    look_at = mi.ScalarTransform4f().look_at(origin=origin, target=list(view.look_at), up=[0, 0, 1])
    scene: dict[str, Any] = {
        "type": "scene",
        "sensor": {
            "type": "perspective",
            "fov": 34,
            "to_world": look_at,
            "film": film,
            "sampler": {"type": "multijitter"},
        },
        "ground": _ground(place, rng),
        "body": _mesh_object("body", model.painted, colors=model.colors),
    }
    for index, (mesh, color) in enumerate(model.fixed):
        scene[f"fixed{index}"] = _mesh_object(f"fixed{index}", mesh, color=color)
    eye_color = 0.8 if model.identity.color == "black" else 0.02
    for index, (center, radius) in enumerate(model.body.eyes):
        scene[f"eye{index}"] = {
            "type": "sphere",
            "center": [float(value) for value in center],
            "radius": radius,
            "bsdf": {"type": "diffuse", "reflectance": _rgb((eye_color,) * 3)},
        }
    if view.accessory is not None:
        kind, color_name = view.accessory
        worn = build_accessory(kind, model.body)
        if worn is not None:
            scene["accessory"] = _mesh_object("accessory", to_mesh(worn), color=COLORS[color_name])
    if place.kind == "beach":
        outwards = math.degrees(math.atan2(-origin[1], -origin[0]))
        sea = mi.ScalarTransform4f().rotate([0, 0, 1], outwards)
        scene["sea"] = {
            "type": "rectangle",
            "to_world": sea.translate([rng.uniform(2.5, 4) + 20, 0, FLOOR]).scale([20, 60, 1]),
            "bsdf": {"type": "diffuse", "reflectance": _rgb((0.05, 0.3, 0.45))},
        }
    night, studio = place.kind == "night", place.kind == "studio"
    ambient = (0.15, 0.19, 0.36) if night else (0.8, 0.8, 0.8) if studio else place.sky
    scene["sky"] = {"type": "constant", "radiance": _rgb(ambient, 0.9)}
    light = azimuth + math.radians(view.light_azimuth)
    scene["lamp"] = {
        "type": "sphere",
        "center": [4 * math.sin(light), -4 * math.cos(light), 6.0],
        "radius": 1.3,
        "emitter": {
            "type": "area",
            "radiance": _rgb((3.6, 4.3, 6.8) if night else (12.0, 11.0, 9.5)),
        },
    }
    return mi.load_dict(scene)


def _without_noise(color: Array, albedo: Array, normal: Array, depth: Array) -> Array:
    """`color` [H, W, 3] with its light smoothed within surfaces; two passes of a 5 × 5 à-trous filter."""
    surface = np.maximum(albedo, 0.02)
    light = color / surface
    inverse_depth = np.where(depth > 0, 1 / np.maximum(depth, 1e-3), 0)[..., None]
    for step in (1, 2):
        total, weights = np.zeros_like(light), np.zeros((*light.shape[:2], 1), np.float32)
        for dy in (-2, -1, 0, 1, 2):
            for dx in (-2, -1, 0, 1, 2):
                shift = (dy * step, dx * step)

                def moved(image: Array, shift: tuple[int, int] = shift) -> Array:
                    return np.roll(image, shift, (0, 1))

                unlike = ((normal - moved(normal)) ** 2).sum(-1, keepdims=True) * 12
                unlike += np.abs(inverse_depth - moved(inverse_depth)) * 60
                unlike += ((albedo - moved(albedo)) ** 2).sum(-1, keepdims=True) * 20
                unlike += 0.25 * np.abs(light - moved(light)).mean(-1, keepdims=True) * 8
                weight = np.exp(-unlike - (dx * dx + dy * dy) / 4)
                total += weight * moved(light)
                weights += weight
        light = total / weights
    return light * surface


def _stylized(picture: Image.Image, style: str) -> Image.Image:
    if style == "pencil sketch":
        gray = ImageOps.grayscale(picture)
        blurred = ImageOps.invert(gray).filter(ImageFilter.GaussianBlur(4))
        base, dodge = np.asarray(gray, np.float32), np.asarray(blurred, np.float32)
        lines = np.clip(base * 255 / (256 - dodge), 0, 255)
        shaded = np.clip(lines - 0.45 * (255 - base), 0, 255)
        return Image.fromarray(shaded.astype(np.uint8)).convert("RGB")
    if style == "pixel art":
        width, height = picture.size
        small = picture.resize((width // 4, height // 4), Image.Resampling.BOX)
        return small.quantize(24).convert("RGB").resize(picture.size, Image.Resampling.NEAREST)
    if style == "watercolor painting":
        washed = picture.filter(ImageFilter.ModeFilter(5)).filter(ImageFilter.SMOOTH_MORE)
        return Image.blend(washed, Image.new("RGB", washed.size, (255, 250, 240)), 0.3)
    return picture


def render(
    model: Model, view: View, *, size: int = SIZE, samples_per_pixel: int = SAMPLES_PER_PIXEL
) -> Image.Image:
    """The picture of `model` in `view`: RGB, `size` × `size`, the same for the same arguments."""
    mi = _mitsuba()
    scene, sky = _scene(model, view, size=size), _PLACES[view.place].sky
    path = mi.load_dict({"type": "path", "max_depth": 4, "hide_emitters": True})
    layers = mi.load_dict({"type": "aov", "aovs": "albedo:albedo,normal:sh_normal,depth:depth"})
    traced = np.array(mi.render(scene, integrator=path, spp=samples_per_pixel, seed=view.seed))
    surfaces = np.array(
        mi.render(scene, integrator=layers, spp=samples_per_pixel // 2, seed=view.seed)
    )
    albedo, normal, depth = np.split(surfaces[..., -7:], [3, 6], axis=-1)
    color = _without_noise(traced[..., :3], albedo, normal, depth[..., 0])
    color += (1 - traced[..., 3:]) * np.array(sky, np.float32)
    srgb = np.where(
        color <= 0.0031308, 12.92 * color, 1.055 * np.maximum(color, 1e-8) ** (1 / 2.4) - 0.055
    )
    picture = Image.fromarray((np.clip(srgb, 0, 1) * 255 + 0.5).astype(np.uint8))
    return _stylized(picture, view.style)


def encode_jpeg(picture: Image.Image) -> bytes:
    """JPEG file content at the quality in which the world is kept."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
