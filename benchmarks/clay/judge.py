"""How well the judge knows the truth, on renders of another world than it was trained on.

Attributes on 2,016 pictures of 672 unseen subjects, and identity: for one view of each of 200 unseen
subjects the nearest among other views of all 200, subjects of all classes and of one class only.

    python benchmarks/clay/judge.py --folder work/unseen
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import measures

from data_prep.clay import dataset, world
from finetune.judge import Judge

UNSEEN = 1
"""Seed of the unseen world."""


def two_views(count: int, class_noun: str | None) -> list[measures.Scene]:
    """Two photos each of `count` unseen subjects, in different places, with nothing worn."""
    scenes = []
    for index in range(count):
        rng = random.Random(f"two views {class_noun} {index}")
        identity = world.sample_identity(rng, class_noun=class_noun)
        for place in rng.sample(world.PLACES, 2):
            view = world.sample_view(rng, identity, place=place)
            scenes.append((identity, replace(view, style="photo", accessory=None)))
    return scenes


def retrieval(judge: Judge, scenes: list[measures.Scene], folder: Path) -> dict[str, Any]:
    """How often the nearest second view of all subjects is of the same subject as the first."""
    embeds = judge.embed_images(measures.rendered(scenes, folder))
    nearest = (embeds[0::2] @ embeds[1::2].T).argmax(1).tolist()
    return measures.share([index == found for index, found in enumerate(nearest)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where renders go or are")
    parser.add_argument("--identities", type=int, default=672)
    folder = (arguments := parser.parse_args()).folder
    judge = measures.load_judge()
    scenes = []
    for index in range(arguments.identities):
        identity, views = dataset.draw(UNSEEN, index)
        scenes += [(identity, view) for view, _ in views]
    images = measures.rendered(scenes, folder / "world")
    values = {
        "attributes": measures.judged(judge, images, scenes),
        "retrieval among 200, all classes": retrieval(
            judge, two_views(200, None), folder / "views"
        ),
    }
    for noun in ("dog", "car"):
        views = two_views(200, noun)
        values[f"retrieval among 200, {noun}s"] = retrieval(judge, views, folder / f"views-{noun}")
    measures.record("judge", values)


if __name__ == "__main__":
    main()
