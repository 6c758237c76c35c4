"""The example subjects: clay identities that no training picture shows, in training and held-out views."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from data_prep.clay.dataset import describe
from data_prep.clay.render import build_model, encode_jpeg, render
from data_prep.clay.world import Identity, caption, plain_view

SUBJECTS: dict[str, Identity] = {
    "dog": Identity("dog", "white", "spots", "brown", 901, 9011),
    "cat": Identity("cat", "orange", "stripes", "white", 902, 9023),
    "robot": Identity("robot", "yellow", "belly", "blue", 903, 9031),
    "duck": Identity("duck", "purple", "spots", "yellow", 904, 9041),
    "bear": Identity("bear", "gray", "belly", "pink", 905, 9051),
}
"""Name -> identity; their shape seeds are far below those that `sample_identity` draws in practice."""

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
    "at night",
    "on a pink background",
    "on a blue background",
    "on the grass",
    "on a wooden floor",
    "on a red carpet",
)


def render_subjects(folder: Path) -> Iterator[str]:
    """Write `<name>/*.jpg` (5 training views) and `<name>/held_out/*.jpg` (8); yields the names."""
    for name, identity in SUBJECTS.items():
        model = build_model(identity)
        for part, places in (("", TRAINING_PLACES), ("held_out", HELD_OUT_PLACES)):
            target = folder / name / part
            target.mkdir(parents=True, exist_ok=True)
            rows = []
            for number, place in enumerate(places):
                rng = random.Random(f"subject {name} {part} {number}")
                view = plain_view(rng, identity, place=place)
                picture = render(model, view, samples_per_pixel=32)
                (target / f"{number:02d}.jpg").write_bytes(encode_jpeg(picture))
                rows.append(
                    {
                        "file_name": f"{number:02d}.jpg",
                        "text": caption(identity, view),
                        **describe(identity, view),
                    }
                )
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (target / "metadata.jsonl").write_text(text, encoding="utf-8")
        yield name
