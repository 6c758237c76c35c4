"""Pictures for docs/clay.md: what exists in the clay world, each with its words.

python benchmarks/clay/gallery.py
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import measures
from PIL import Image, ImageDraw, ImageFont

from data_prep.clay import world


def scene(number: int, class_noun: str, **changes: object) -> measures.Scene:
    """A photo by day of a plain subject of `class_noun`; `changes` to identity or view by name."""
    rng = random.Random(f"gallery {number}")
    identity = world.sample_identity(rng, class_noun=class_noun)
    view = world.plain_view(rng, identity, place="on a white background")
    view = replace(view, azimuth=rng.uniform(0, 40))
    for name, value in changes.items():
        if hasattr(identity, name):
            identity = replace(identity, **{name: value})
        else:
            view = replace(view, **{name: value})
    return identity, view


def sheet(scenes: Sequence[measures.Scene], labels: Sequence[str], columns: int) -> Image.Image:
    """Renders in rows of `columns`, each with its label underneath."""
    with tempfile.TemporaryDirectory() as folder:
        images = measures.rendered(scenes, Path(folder))
    font, height = ImageFont.load_default(size=12), 128 + 20
    whole = Image.new("RGB", (columns * 132 - 4, -(-len(images) // columns) * height), "white")
    draw = ImageDraw.Draw(whole)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        left, top = index % columns * 132, index // columns * height
        whole.paste(image, (left, top))
        draw.text((left + 64, top + 138), label, fill="black", font=font, anchor="mm")
    return whole


def pages() -> dict[str, Image.Image]:
    """Name -> sheet."""
    nouns = list(world.CLASSES)
    classes = [scene(i, noun, place="on the grass") for i, noun in enumerate(nouns)]
    places = [scene(0, "dog", place=place) for place in world.PLACES]
    patterns = [
        scene(7, noun, color="white", color2="blue", pattern=pattern, place="on a red carpet")
        for noun in ("cat", "teapot")
        for pattern in world.PATTERNS
    ]
    worn = [
        scene(4, noun, accessory=(kind, "red"), color="gray", pattern="plain")
        for noun in ("rabbit", "penguin")
        for kind in world.ACCESSORIES
    ]
    styles = [
        scene(9, noun, style=style, place="in a flower field", color="orange")
        for noun in ("elephant", "boat")
        for style in world.STYLES
    ]
    times = [scene(3, "car", place="on the street", time=time, color="red") for time in world.TIMES]
    identity, _ = scene(12, "horse", color="brown", pattern="patches", color2="white")
    views = [
        (identity, world.sample_view(random.Random(i), identity, place=world.PLACES[i]))
        for i in range(8)
    ]
    return {
        "classes": sheet(classes, nouns, 9),
        "places": sheet(places, world.PLACES, 8),
        "patterns": sheet(patterns, list(world.PATTERNS) * 2, 5),
        "accessories": sheet(worn, list(world.ACCESSORIES) * 2, 4),
        "styles": sheet(styles, list(world.STYLES) * 2, 5),
        "times": sheet(times, list(world.TIMES), 3),
        "views": sheet(views, [""] * 8, 8),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=measures.ROOT / "docs" / "clay")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in pages().items():
        page.save(folder / f"{name}.png")


if __name__ == "__main__":
    main()
