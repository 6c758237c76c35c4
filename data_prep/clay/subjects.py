"""Subjects to learn from: clay identities that no training picture shows, in training and held-out views.

The examples come with the project; figures are reported on them. Rates and steps are tuned on
others, and studies of whole methods have a third group.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from data_prep.clay.dataset import describe, require_renderer
from data_prep.clay.world import ANIMALS, Identity, caption, plain_view
from data_prep.masks import MASK_FOLDER

EXAMPLES: dict[str, Identity] = {
    "dog": Identity("dog", "white", "spots", "brown", 901, 9011),
    "cat": Identity("cat", "orange", "stripes", "white", 902, 9023),
    "robot": Identity("robot", "yellow", "belly", "blue", 903, 9031),
    "duck": Identity("duck", "purple", "patches", "yellow", 904, 9044),
    "teapot": Identity("teapot", "blue", "spots", "white", 905, 9051),
}
TUNING: dict[str, Identity] = {
    "mug": Identity("mug", "red", "stripes", "white", 911, 9111),
    "penguin": Identity("penguin", "blue", "spots", "yellow", 912, 9121),
    "rabbit": Identity("rabbit", "brown", "patches", "white", 913, 9131),
    "gray_dog": Identity("dog", "gray", "spots", "black", 991, 9911),
    "white_bear": Identity("bear", "white", "spots", "brown", 992, 9921),
}
STUDY: dict[str, Identity] = {
    "bear": Identity("bear", "gray", "belly", "pink", 921, 9211),
    "boat": Identity("boat", "yellow", "stripes", "blue", 922, 9221),
    "bus": Identity("bus", "green", "spots", "white", 923, 9231),
    "elephant": Identity("elephant", "pink", "patches", "purple", 924, 9241),
    "frog": Identity("frog", "orange", "spots", "black", 925, 9251),
    "horse": Identity("horse", "black", "stripes", "white", 926, 9261),
    "other_dog": Identity("dog", "purple", "belly", "orange", 927, 9271),
    "turtle": Identity("turtle", "red", "patches", "yellow", 928, 9281),
}
GROUPS = {"examples": EXAMPLES, "tuning": TUNING, "study": STUDY}
"""Group -> name -> identity. Their shape seeds are far below those that `sample_identity` draws."""

TRAINING_PLACES = (
    "on a wooden floor",
    "on the grass",
    "on a white background",
    "on a red carpet",
    "in the desert",
)
HELD_OUT_PLACES = (
    "on the beach",
    "in the snow",
    "in the kitchen",
    "on a pink background",
    "in the library",
    "on the grass",
    "on a wooden floor",
    "on the street",
)


def _render_views(name: str, part: str, identity: Identity, folder: Path) -> None:
    from data_prep.clay.render import build_model, encode_jpeg, render, render_mask

    model = build_model(identity)
    places = HELD_OUT_PLACES if part else TRAINING_PLACES
    (folder / MASK_FOLDER).mkdir(parents=True, exist_ok=True)
    rows = []
    for number, place in enumerate(places):
        rng = random.Random(f"subject {name} {part} {number}")
        view = plain_view(rng, identity, place=place)
        picture = render(model, view, samples_per_pixel=32)
        (folder / f"{number:02d}.jpg").write_bytes(encode_jpeg(picture))
        render_mask(model, view).save(folder / MASK_FOLDER / f"{number:02d}.png")
        told = {"file_name": f"{number:02d}.jpg", "text": caption(identity, view)}
        rows.append({**told, **describe(identity, view)})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")


def render_subjects(folder: Path, *, group: str = "examples") -> Iterator[str]:
    """Write `<name>/*.jpg` (5 training views) and `<name>/held_out/*.jpg` (8), each with its masks.

    Beside them `subjects.yaml` says what each subject is. Yields the names of the subjects of `group`, one
    of `GROUPS`. Raises `DataError` where the renderer is not installed.
    """
    require_renderer()
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# What each subject is; see `finetune compare --help`."]
    for name, identity in GROUPS[group].items():
        kind = "live" if identity.class_noun in ANIMALS else "object"
        lines.append(f"{name}: {{class_noun: {identity.class_noun}, kind: {kind}}}")
    (folder / "subjects.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, identity in GROUPS[group].items():
        for part in ("", "held_out"):
            _render_views(name, part, identity, folder / name / part)
        yield name
