"""Pictures of clay subjects: a path-traced scene per view, cleaned of noise, in one of five styles.

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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from data_prep.clay.bodies import Body, build_body
from data_prep.clay.dressing import build_accessory, paint, posed_mesh, posed_point
from data_prep.clay.fields import Array, Mesh, to_mesh
from data_prep.clay.places import (
    diffuse,
    light_objects,
    light_of,
    place_objects,
    rgb,
    sky_picture,
)
from data_prep.clay.textures import RGB
from data_prep.clay.world import COLORS, Identity, View

SIZE = 128
"""Width and height of a picture in pixels."""
SAMPLES_PER_PIXEL = 6
"""Light paths per pixel; the noise-free layers take four."""


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
        colors=paint(painted.vertices, identity, upright=body.upright),
        fixed=[(to_mesh(distance), color) for distance, color in body.fixed],
    )


def _mesh_object(
    name: str, mesh: Mesh, *, colors: Array | None = None, color: RGB = (0, 0, 0)
) -> Any:
    mi = _mitsuba()
    surface = rgb(color) if colors is None else {"type": "mesh_attribute", "name": "vertex_color"}
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


def _subject_objects(model: Model, view: View) -> dict[str, Any]:
    """The subject in its pose with what it wears: Mitsuba objects by name."""
    body, pose = model.body, view.pose
    objects = {
        "body": _mesh_object("body", posed_mesh(model.painted, body, pose), colors=model.colors)
    }
    for index, (mesh, color) in enumerate(model.fixed):
        name = f"fixed{index}"
        objects[name] = _mesh_object(name, posed_mesh(mesh, body, pose), color=color)
    eye_color = 0.8 if model.identity.color == "black" else 0.02
    for index, (center, radius) in enumerate(body.eyes):
        objects[f"eye{index}"] = {
            "type": "sphere",
            "center": list(posed_point(center, body, pose)),
            "radius": radius,
            "bsdf": diffuse((eye_color,) * 3),
        }
    if view.accessory is not None:
        kind, color_name = view.accessory
        worn = posed_mesh(to_mesh(build_accessory(kind, body)), body, pose)
        objects["accessory"] = _mesh_object("accessory", worn, color=COLORS[color_name])
    return objects


def _sensor(view: View, *, size: int) -> dict[str, Any]:
    mi = _mitsuba()
    azimuth, elevation = math.radians(view.azimuth), math.radians(view.elevation)
    origin = [
        view.distance * math.cos(elevation) * math.sin(azimuth),
        -view.distance * math.cos(elevation) * math.cos(azimuth),
        view.distance * math.sin(elevation) - 0.2,
    ]
    look_at = mi.ScalarTransform4f().look_at(origin=origin, target=list(view.look_at), up=[0, 0, 1])
    film = {
        "type": "hdrfilm",
        "width": size,
        "height": size,
        "rfilter": {"type": "gaussian"},
        "pixel_format": "rgba",
    }
    return {
        "type": "perspective",
        "fov": 34,
        "to_world": look_at,
        "film": film,
        "sampler": {"type": "multijitter"},
    }


def _scene(model: Model, view: View, *, size: int) -> Any:
    mi = _mitsuba()
    return mi.load_dict(
        {
            "type": "scene",
            "sensor": _sensor(view, size=size),
            **place_objects(mi, view, random.Random(view.seed)),
            **light_objects(light_of(view), view),
            **_subject_objects(model, view),
        }
    )


def _sum_of_channels(image: Array) -> Array:
    """[H, W, 3] to [H, W, 1]; quicker than a reduction over so short an axis."""
    total: Array = image[..., 0] + image[..., 1] + image[..., 2]
    return total[..., None]


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

                neighbour = moved(light)
                unlike = 12 * _sum_of_channels((normal - moved(normal)) ** 2)
                unlike += 60 * np.abs(inverse_depth - moved(inverse_depth))
                unlike += 20 * _sum_of_channels((albedo - moved(albedo)) ** 2)
                unlike += 0.67 * _sum_of_channels(np.abs(light - neighbour))
                weight = np.exp(-unlike - (dx * dx + dy * dy) / 4)
                total += weight * neighbour
                weights += weight
        light = total / weights
    return light * surface


def _cartoon(picture: Image.Image) -> Image.Image:
    """Few flat, strong colours and dark outlines."""
    flat = picture.filter(ImageFilter.MedianFilter(5))
    gray = np.asarray(ImageOps.grayscale(flat), np.float32)
    slope = np.hypot(*np.gradient(gray))
    colors = np.asarray(flat.quantize(14).convert("RGB"), np.float32)
    strong = colors + 0.35 * (colors - colors.mean(-1, keepdims=True))
    ink = np.clip(1.25 - slope / 16, 0, 1)[..., None]
    return Image.fromarray(np.clip(strong * ink, 0, 255).astype(np.uint8))


def _stylized(picture: Image.Image, style: str) -> Image.Image:
    if style == "pencil sketch":
        gray = ImageOps.grayscale(picture)
        blurred = ImageOps.invert(gray).filter(ImageFilter.GaussianBlur(4))
        base, dodge = np.asarray(gray, np.float32), np.asarray(blurred, np.float32)
        lines = np.clip(base * 255 / (256 - dodge), 0, 255)
        shaded = np.clip(lines - 0.45 * (255 - base), 0, 255)
        return Image.fromarray(shaded.astype(np.uint8)).convert("RGB")
    if style == "cartoon":
        return _cartoon(picture)
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
    scene = _scene(model, view, size=size)
    path = mi.load_dict({"type": "path", "max_depth": 4, "hide_emitters": True})
    layers = mi.load_dict({"type": "aov", "aovs": "albedo:albedo,normal:sh_normal,depth:depth"})
    traced = np.array(mi.render(scene, integrator=path, spp=samples_per_pixel, seed=view.seed))
    surfaces = np.array(mi.render(scene, integrator=layers, spp=4, seed=view.seed))
    albedo, normal, depth = np.split(surfaces[..., -7:], [3, 6], axis=-1)
    color = _without_noise(traced[..., :3], albedo, normal, depth[..., 0])
    color += (1 - traced[..., 3:]) * sky_picture(light_of(view), size=size, seed=view.seed)
    srgb = np.where(
        color <= 0.0031308, 12.92 * color, 1.055 * np.maximum(color, 1e-8) ** (1 / 2.4) - 0.055
    )
    picture = Image.fromarray((np.clip(srgb, 0, 1) * 255 + 0.5).astype(np.uint8))
    return _stylized(picture, view.style)


def _render_alone(model: Model, view: View, *, size: int, samples_per_pixel: int) -> Array:
    """The subject and what it wears under an invisible white sky, [size, size, RGBA]."""
    mi = _mitsuba()
    alone = {
        "type": "scene",
        "sensor": _sensor(view, size=size),
        "sky": {"type": "constant"},
        **_subject_objects(model, view),
    }
    shape = mi.load_dict({"type": "path", "max_depth": 2, "hide_emitters": True})
    scene = mi.load_dict(alone)
    return np.array(mi.render(scene, integrator=shape, spp=samples_per_pixel, seed=view.seed))


def render_mask(model: Model, view: View, *, size: int = SIZE) -> Image.Image:
    """Where the subject is in `render`'s picture, with what it wears: 255 there, 0 elsewhere; mode L."""
    seen = _render_alone(model, view, size=size, samples_per_pixel=16)
    return Image.fromarray((np.clip(seen[..., 3], 0, 1) * 255 + 0.5).astype(np.uint8))


def render_cover(model: Model, view: View, *, cells: int = 8) -> Array:
    """What share of each square of `render`'s picture the subject covers, and what it wears.

    [2, cells, cells] in 0 ... 1. What is worn is a white thing on a black subject under a white sky, so it
    counts a little less where the subject shades it.
    """
    black = replace(
        model,
        identity=replace(model.identity, color="red"),  # black ones have bright eyes
        colors=np.zeros_like(model.colors),
        fixed=[(mesh, (0.0, 0.0, 0.0)) for mesh, _ in model.fixed],
    )
    if view.accessory is not None:
        view = replace(view, accessory=(view.accessory[0], "white"))
    seen = _render_alone(black, view, size=4 * cells, samples_per_pixel=6)
    worn = seen[..., 0] if view.accessory is not None else np.zeros_like(seen[..., 0])
    both = np.clip(np.stack([seen[..., 3], worn]), 0, 1)
    return both.reshape(2, cells, 4, cells, 4).mean((2, 4))


def encode_jpeg(picture: Image.Image) -> bytes:
    """JPEG file content at the quality in which the world is kept."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
