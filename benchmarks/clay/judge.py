"""How well the judge knows the truth, on renders of another world than it was trained on.

Attributes on one picture each of 2,000 unseen subjects, of all styles and of photos alone, and identity:
for one view of each of 200 unseen subjects the nearest among other views of all 200, subjects of all
classes and of one class only, for several classes: animals and things, of many proportions and of few
(mug, chair). Two plain subjects of one class and colour differ in shade and proportions alone.

    python benchmarks/clay/judge.py --folder work/unseen
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import measures

from data_prep.clay import dataset, world
from finetune.judge import Judge

UNSEEN = 1
"""Seed of the unseen world."""
CLASSES = ("dog", "penguin", "elephant", "car", "mug", "chair")
"""Of which subjects are told apart within one class."""


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


def retrieval(judge: Judge, scenes: list[measures.Scene], folder: Path) -> list[bool]:
    """Whether the nearest second view of all subjects is of the same subject as the first."""
    embeds = judge.embed_images(measures.rendered(scenes, folder))
    nearest = (embeds[0::2] @ embeds[1::2].T).argmax(1).tolist()
    return [index == found for index, found in enumerate(nearest)]


def unseen_scenes(count: int) -> list[measures.Scene]:
    """One view each of `count` unseen subjects: of a second one, errors would go together."""
    drawn = (dataset.draw(UNSEEN, index) for index in range(count))
    return [(identity, views[0][0]) for identity, views in drawn]


def main() -> None:
    parser = measures.options(__doc__)
    parser.add_argument("--identities", type=int, default=2000)
    parser.add_argument("--classes", nargs="+", default=CLASSES, choices=world.CLASSES)
    arguments = parser.parse_args()
    folder, nouns = arguments.folder, list(arguments.classes)
    record = measures.record("judge", {"identities": arguments.identities}, anew=arguments.anew)
    judge, scenes = measures.load_judge(), unseen_scenes(arguments.identities)

    def of_one_class() -> dict[str, Any]:
        views = {n: two_views(200, n) for n in nouns}
        alike = {n: retrieval(judge, views[n], folder / f"views-{n}") for n in nouns}
        plain = {n: [who.pattern == "plain" for who, _ in views[n][0::2]] for n in nouns}
        found = [pair for n in nouns for pair in zip(alike[n], plain[n], strict=True)]
        return {
            "mean of the classes": measures.share([right for right, _ in found]),
            "of them plain": measures.share([right for right, is_plain in found if is_plain]),
            "of two colours": measures.share([right for right, is_plain in found if not is_plain]),
            **{n: measures.share(alike[n]) for n in nouns},
        }

    record.part(
        "attributes",
        lambda: measures.judged(judge, measures.rendered(scenes, folder / "world"), scenes),
    )
    photos = [scene for scene in scenes if scene[1].style == "photo"]
    record.part(
        "attributes in photos",
        lambda: measures.judged(judge, measures.rendered(photos, folder / "world"), photos),
    )
    record.part(
        "retrieval among 200, all classes",
        lambda: measures.share(retrieval(judge, two_views(200, None), folder / "views")),
    )
    record.part("retrieval among 200 of one class", of_one_class, of={"classes": nouns})


if __name__ == "__main__":
    main()
