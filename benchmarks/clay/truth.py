"""Do the scores measure what they say? Rank correlation with a truth that is known.

Clay subjects are rendered in graded steps away from the subject: the same, one, two or three of its
attributes changed (colour, pattern, second colour, proportions), another class. Prompts are met in 3, 2, 1
or 0 of what they ask for (class, place, thing worn). A score should fall with every step: Spearman's rank
correlation over pictures, a subject or prompt at a time, and over the means of the grades; intervals are
Student's, over subjects or prompts.

    python benchmarks/clay/truth.py --folder work/unseen
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import measures
import numpy as np
from PIL import Image
from scipy.stats import spearmanr

from data_prep.clay import world
from data_prep.clay.subjects import STUDY, TRAINING_PLACES
from finetune import scores
from finetune.encoders import EMBEDDED_CLIP, EMBEDDED_JUDGE, load_encoder
from finetune.statistics import interval

PER_GRADE = 8
IDENTITY = ("color", "pattern", "color2", "shape_seed")
"""What makes a subject, besides its class."""


def photo(identity: world.Identity, rng: random.Random, place: str | None = None) -> measures.Scene:
    """A plain view by day, anywhere."""
    return identity, world.plain_view(rng, identity, place=place or rng.choice(world.PLACES))


def changed(identity: world.Identity, count: int, rng: random.Random) -> world.Identity:
    """`identity` with `count` of its attributes drawn anew, each to something else."""
    fresh: dict[str, Callable[[], Any]] = {
        "color": lambda: rng.choice(sorted({*world.COLORS} - {identity.color, identity.color2})),
        "color2": lambda: rng.choice(sorted({*world.COLORS} - {identity.color, identity.color2})),
        "pattern": lambda: rng.choice(sorted({*world.PATTERNS} - {identity.pattern, "plain"})),
        "shape_seed": lambda: rng.randrange(1 << 30),
    }
    values = {name: fresh[name]() for name in rng.sample(IDENTITY, count)}
    other = replace(identity, **values)
    return changed(identity, count, rng) if other.color == other.color2 else other


def stranger(identity: world.Identity, rng: random.Random) -> world.Identity:
    """A subject of another class."""
    nouns = sorted({*world.CLASSES} - {identity.class_noun})
    return world.sample_identity(rng, class_noun=rng.choice(nouns))


def correlations(groups: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Mean Spearman over groups of (truth, score) per picture, and over the means of each grade."""
    pictures = [float(spearmanr(truth, score).statistic) for truth, score in groups]
    means = []
    for truth, score in groups:
        grades = np.unique(truth)
        means.append(float(spearmanr(grades, [score[truth == g].mean() for g in grades]).statistic))
    found = interval(np.array(pictures)[:, None, None, None])
    return {
        "spearman_of_pictures": round(float(np.mean(pictures)), 3),
        "low": None if found.low is None else round(found.low, 3),
        "high": None if found.high is None else round(found.high, 3),
        "spearman_of_grades": round(float(np.mean(means)), 3),
        "groups": len(groups),
        "mean_by_grade": {
            f"{grade:g}": round(
                float(np.mean([score[truth == grade].mean() for truth, score in groups])), 3
            )
            for grade in np.unique(groups[0][0])[::-1]
        },
    }


def subject_truth(folder: Path, encoders: list[str]) -> dict[str, Any]:
    """Subject fidelity and copy score against the number of attributes kept, and by the one not kept."""
    groups: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    alone: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, identity in STUDY.items():
        rng = random.Random(f"truth {name}")
        real = [photo(identity, rng, place) for place in TRAINING_PLACES]
        graded, truth, apart = [], [], []
        for grade in (4, 3, 2, 1):
            for _ in range(PER_GRADE):
                other = changed(identity, 4 - grade, rng)
                graded.append(photo(other, rng))
                truth.append(grade)
                apart.append([a for a in IDENTITY if getattr(other, a) != getattr(identity, a)])
        for _ in range(PER_GRADE):
            graded.append(photo(stranger(identity, rng), rng))
            truth.append(0)
        images = measures.rendered([*real, *graded], folder / "truth" / name)
        photos, made = images[: len(real)], images[len(real) :]
        for encoder in encoders:
            for score, values in _fidelity(encoder, photos, made).items():
                groups.setdefault(f"{score}, {encoder}", []).append((np.array(truth), values))
                for names, value in zip(apart, values[: len(apart)], strict=True):
                    if len(names) == 1:
                        alone[f"{score}, {encoder}"][names[0]].append(float(value))
    return {
        score: {
            **correlations(found),
            "mean_by_attribute_changed_alone": {
                name: round(float(np.mean(values)), 3) for name, values in alone[score].items()
            },
        }
        for score, found in groups.items()
    }


def _fidelity(
    name: str, photos: list[Image.Image], made: list[Image.Image]
) -> dict[str, np.ndarray]:
    encoder = load_encoder(name)
    real = scores.embed_images(encoder, photos, [f"photo {i}" for i in range(len(photos))])
    ours = scores.embed_images(encoder, made, [f"picture {i}" for i in range(len(made))])
    return {
        "subject_fidelity": scores.subject_fidelity(ours, real),
        "copy": scores.copy(ours, real),
    }


def prompt_truth(folder: Path, encoder_name: str, *, num_prompts: int) -> dict[str, Any]:
    """Prompt fidelity against how much of a prompt a picture keeps: class, place, thing worn."""
    encoder, groups = load_encoder(encoder_name), []
    for number in range(num_prompts):
        rng = random.Random(f"prompt {number}")
        noun, place = rng.choice(world.WEARERS), rng.choice(world.PLACES)
        worn = (rng.choice(world.ACCESSORIES), rng.choice(list(world.COLORS)))
        scenes, truth = [], []
        for right in range(4):
            for _ in range(PER_GRADE):
                kept = set(rng.sample(("class", "place", "accessory"), right))
                others = sorted({*world.WEARERS} - {noun})
                identity = world.sample_identity(
                    rng, class_noun=noun if "class" in kept else rng.choice(others)
                )
                where = place if "place" in kept else rng.choice(sorted({*world.PLACES} - {place}))
                view = world.plain_view(rng, identity, place=where)
                scenes.append(
                    (identity, replace(view, accessory=worn if "accessory" in kept else None))
                )
                truth.append(right)
        images = measures.rendered(scenes, folder / "truth-prompts" / f"{number:02d}")
        text = world.caption(
            world.Identity(noun, "red", "plain", "blue", 0, 0),
            replace(scenes[0][1], place=place, accessory=worn),
            told=frozenset({"place", "accessory", "style"}),
        )
        made = scores.embed_images(encoder, images, [str(i) for i in range(len(images))])
        texts = scores.embed_texts(encoder, [text] * len(images))
        groups.append((np.array(truth), scores.prompt_fidelity(made, texts)))
    return {f"prompt_fidelity, {encoder_name}": correlations(groups)}


def main() -> None:
    parser = measures.options(__doc__)
    parser.add_argument("--encoders", nargs="+", default=[EMBEDDED_CLIP, EMBEDDED_JUDGE])
    parser.add_argument("--prompts", type=int, default=12)
    arguments = parser.parse_args()
    folder, encoders, num_prompts = arguments.folder, arguments.encoders, arguments.prompts
    record = measures.record("truth", {}, anew=arguments.anew)
    record.part("subjects", lambda: subject_truth(folder, encoders), of={"encoders": encoders})
    record.part(
        "prompts",
        lambda: prompt_truth(folder, EMBEDDED_CLIP, num_prompts=num_prompts),
        of={"prompts": num_prompts},
    )


if __name__ == "__main__":
    main()
