"""Does each method, at its shipped configuration, learn clay subjects? Slow: minutes a subject.

For every subject of a folder and every method: train on the photos, make pictures on prompts whose places
are those of the held-out views, and, for what can wear something, on prompts with a thing worn. Of them

- normalised subject similarity, (generated - base) / (real-real - base), by the embedded judge's identity
  embedding against the held-out views, on the prompts of places: 0 is the frozen base asked for the class, 1
  another photo;
- prompt accuracy: the judge's place and, where one is asked for, accessory, beside the frozen base's; and
  the place alone where no photo of training shows it;
- similarity of the class prompt's pictures to the subject (should stay at the base's), and the share
  of them in which the judge still sees the class.

At the end all subjects together, with 95 % intervals over subjects and prompts. Run again to go on with the
subject at which it stopped.

    python benchmarks/subjects.py [--folder examples/subjects] [--subjects dog cat] [--methods lora]
        [--prior-ablation] [--anew] --output benchmarks/subjects.json [section.key=value ...]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from clay.measures import Record
from PIL import Image

from data_prep.clay.subjects import HELD_OUT_PLACES, TRAINING_PLACES
from data_prep.clay.world import WEARERS, with_article
from finetune.base import BaseConfig, BasePipeline, load_base
from finetune.bases import EMBEDDED
from finetune.config import RunConfig, apply_overrides, build_run_config, read_yaml
from finetune.encoders import EMBEDDED_JUDGE, Encoder, load_encoder
from finetune.errors import UserError
from finetune.files import sha256_of
from finetune.generate import SamplingConfig, generate, labelled_grid
from finetune.judge import Judge
from finetune.run import prepare_folder, run_training
from finetune.scores import Views, embed_images, real_similarity, subject_fidelity
from finetune.shares import share_difference, share_interval
from finetune.statistics import interval
from finetune.tables import Table
from finetune.wording import listing
from methods import load_method

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("dreambooth", "lora", "textual_inversion")
IMAGES_PER_PROMPT = 3
IMAGES_OF_CLASS = 12
WORN = (("hat", "red"), ("scarf", "yellow"), ("glasses", "green"), ("bag", "blue"))
BASE = "frozen base"


@dataclass(frozen=True)
class Prompt:
    """What follows the subject in a prompt, and the attribute and its value that the judge should see."""

    text: str
    attribute: str
    value: str

    @property
    def is_new_place(self) -> bool:
        """Whether it asks for a place that no photo of training shows."""
        return self.attribute == "place" and self.value not in TRAINING_PLACES


def _worn(kind: str, color: str) -> Prompt:
    thing = f"{color} glasses" if kind == "glasses" else with_article(f"{color} {kind}")
    return Prompt(f"wearing {thing} on the grass", "accessory", kind)


PROMPTS = (
    *(Prompt(place, "place", place) for place in HELD_OUT_PLACES),
    *(_worn(kind, color) for kind, color in WORN),
)


def prompts_for(class_noun: str) -> tuple[Prompt, ...]:
    """Places, and accessories on the grass for those who wear some: the first or all of `PROMPTS`."""
    return PROMPTS if class_noun in WEARERS else PROMPTS[: len(HELD_OUT_PLACES)]


@dataclass(frozen=True)
class Pictures:
    """What a row made: for the prompts in order, several each, and for the class alone."""

    prompts: tuple[Prompt, ...]
    made: list[Image.Image]
    of_class: list[Image.Image]

    def row(self, label: str) -> tuple[str, list[Image.Image]]:
        """A row of a grid: one picture a prompt, two of the class."""
        return label, [*self.made[::IMAGES_PER_PROMPT], *self.of_class[:2]]


def pictures(base: BasePipeline, subject: str, class_noun: str) -> Pictures:
    """Pictures of `subject`, the same seeds for every row."""
    prompts = prompts_for(class_noun)
    about = f"a photo of {with_article(subject)}"
    texts = [f"{about} {p.text}" for p in prompts for _ in range(IMAGES_PER_PROMPT)]
    texts += [f"a photo of {with_article(class_noun)}"] * IMAGES_OF_CLASS
    images = generate(base, texts, list(range(100, 100 + len(texts))), SamplingConfig())
    return Pictures(prompts, images[:-IMAGES_OF_CLASS], images[-IMAGES_OF_CLASS:])


@dataclass(frozen=True)
class Yardstick:
    """Who measures one subject, and its held-out photos."""

    judge: Judge
    encoder: Encoder
    """The judge's identity embedding."""
    real: Views
    class_noun: str

    def similarities(self, images: list[Image.Image]) -> np.ndarray:
        """Of each picture the mean cosine to all photos, [N]."""
        names = [f"picture {index}" for index in range(len(images))]
        found = subject_fidelity(embed_images(self.encoder, images, names), self.real)
        return np.asarray(found, float)


@dataclass(frozen=True)
class Measured:
    """Of one subject and row: arrays [prompt of `PROMPTS`, picture], NaN where nothing counts."""

    similarity: np.ndarray
    right: np.ndarray
    class_similarity: float
    class_accuracy: float

    def in_new_places(self) -> np.ndarray:
        """`right` for the places that no photo of training shows."""
        return self.right[[prompt.is_new_place for prompt in PROMPTS]]

    def to_dict(self) -> dict[str, Any]:
        """Means, and what they are of: every picture's, null for NaN."""
        pictures = {
            name: [
                [None if np.isnan(value) else round(float(value), 5) for value in row]
                for row in table
            ]
            for name, table in (("similarity", self.similarity), ("right", self.right))
        }
        return {
            "similarity": float(np.nanmean(self.similarity)),
            "prompt_accuracy": float(np.nanmean(self.right)),
            "new_place_accuracy": float(np.nanmean(self.in_new_places())),
            "class_similarity": self.class_similarity,
            "class_accuracy": self.class_accuracy,
            "pictures": pictures,
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Measured:
        """What `to_dict` wrote."""
        similarity, right = (
            np.array(values["pictures"][name], float) for name in ("similarity", "right")
        )
        return Measured(similarity, right, values["class_similarity"], values["class_accuracy"])


def measure(yardstick: Yardstick, shown: Pictures) -> Measured:
    """Similarity to the photos, prompt accuracy, and what became of the class."""
    similarity, right = np.full((2, len(PROMPTS), IMAGES_PER_PROMPT), np.nan)
    shape = (len(shown.prompts), IMAGES_PER_PROMPT)
    similarity[: shape[0]] = yardstick.similarities(shown.made).reshape(shape)
    similarity[[prompt.attribute != "place" for prompt in PROMPTS]] = np.nan
    asked = [prompt for prompt in shown.prompts for _ in range(IMAGES_PER_PROMPT)]
    answers = zip(yardstick.judge.tell(shown.made), asked, strict=True)
    seen = [told[prompt.attribute] == prompt.value for told, prompt in answers]
    right[: shape[0]] = np.reshape(seen, shape)
    told_classes = [told["class"] for told in yardstick.judge.tell(shown.of_class)]
    still = [noun == yardstick.class_noun for noun in told_classes]
    return Measured(
        similarity,
        right,
        float(yardstick.similarities(shown.of_class).mean()),
        sum(still) / len(still),
    )


def normalised(found: Measured, floor: Measured, ceiling: float) -> np.ndarray:
    """Similarities between the frozen base's mean (0) and the real photos' among each other (1)."""
    low = float(np.nanmean(floor.similarity))
    return (found.similarity - low) / (ceiling - low)


def _table(parts: list[np.ndarray]) -> Table:
    """[subject, training seed, prompt, picture] of one run a subject."""
    return np.stack(parts)[:, None]


def pooled(
    rows: Mapping[str, list[Measured]], floors: list[Measured], ceilings: list[float]
) -> dict[str, dict[str, Any]]:
    """Label -> means over the subjects, in order, with intervals over subjects and prompts.

    Floors and ceilings are taken as they were measured.
    """
    theirs = _table([floor.right for floor in floors])
    summary: dict[str, dict[str, Any]] = {}
    for label, found in rows.items():
        triples = zip(found, floors, ceilings, strict=True)
        parts = [normalised(*triple) for triple in triples]
        right = _table([one.right for one in found])
        new = _table([one.in_new_places() for one in found])
        summary[label] = {
            "normalised": interval(_table(parts)).to_dict(),
            "prompt_accuracy": share_interval(right).to_dict(),
            "new_place_accuracy": share_interval(new).to_dict(),
            "prompt_accuracy_above_base": share_difference(right, theirs).to_dict(),
        }
    return summary


@dataclass(frozen=True)
class Row:
    """A method and what is other than shipped."""

    label: str
    kind: str
    changes: tuple[str, ...] = ()

    @property
    def shipped(self) -> Path:
        """The method's configuration."""
        return ROOT / "configs" / "clay" / f"{self.kind}.yaml"

    def config(self, subject: Subject, overrides: list[str], output: Path) -> RunConfig:
        """The configuration of a run on `subject`."""
        where = [f"data.photos={subject.folder}", f"data.class_noun={subject.class_noun}"]
        given = [*where, *self.changes, *overrides, f"output={output}"]
        return build_run_config(
            apply_overrides(read_yaml(self.shipped), given), load_method, self.kind
        )


@dataclass(frozen=True)
class Subject:
    """A folder of training photos with held-out ones, as `finetune clay subjects` writes them."""

    folder: Path
    class_noun: str
    photos: list[Image.Image]
    """Held out."""

    @staticmethod
    def read(folder: Path) -> Subject:
        """The subject in `folder`."""
        told = json.loads((folder / "metadata.jsonl").read_text("utf-8").splitlines()[0])
        photos = []
        for path in sorted((folder / "held_out").glob("*.jpg")):
            with Image.open(path) as image:
                photos.append(image.convert("RGB"))
        return Subject(folder, told["identity"]["class_noun"], photos)

    def fingerprint(self) -> str:
        """First digits of a SHA-256 over all files of the folder and their names."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        named = "".join(f"{path.relative_to(self.folder)} {sha256_of(path)}\n" for path in files)
        return hashlib.sha256(named.encode()).hexdigest()[:16]


def trained(base: BasePipeline, config: RunConfig, class_noun: str) -> tuple[Pictures, float]:
    """Pictures of a method trained as `config` says, and its seconds."""
    method = load_method(config.method.kind)(config.method)
    prepare_folder(config, resume=False, overwrite=False)
    try:
        run = run_training(base, method, config)
        return pictures(base, method.subject_phrase(class_noun), class_noun), run.seconds
    finally:
        method.detach(base)


class Bench:
    """Base and judge, and the rows that are measured with them."""

    def __init__(self, rows: list[Row], overrides: list[str], grids: Path) -> None:
        folder = EMBEDDED / EMBEDDED_JUDGE
        self.rows, self.overrides, self.grids = rows, overrides, grids
        self.base = load_base(BaseConfig(source="clay"))
        self.judge, self.encoder = Judge.from_pretrained(folder), load_encoder(EMBEDDED_JUDGE)
        self.about = {
            "base": self.base.fingerprint,
            "judge": sha256_of(folder / "model.safetensors")[:16],
            "overrides": overrides,
        }

    def learn(self, subject: Subject) -> dict[str, Any]:
        """Train every row on a subject; figures by label, and a grid of the pictures."""
        noun, photos = subject.class_noun, subject.photos
        names = [f"photo {index}" for index in range(len(photos))]
        real = embed_images(self.encoder, photos, names)
        yardstick = Yardstick(self.judge, self.encoder, real, noun)
        shown = pictures(self.base, noun, noun)
        floor, ceiling = measure(yardstick, shown), real_similarity(real).mean
        assert ceiling is not None  # there are eight photos
        grid = [("held out", photos), shown.row(BASE)]
        results: dict[str, Any] = {BASE: floor.to_dict(), "real_real": ceiling}
        for row in self.rows:
            with tempfile.TemporaryDirectory() as temporary:
                config = row.config(subject, self.overrides, Path(temporary) / "run")
                shown, seconds = trained(self.base, config, noun)
            found = measure(yardstick, shown)
            between = float(np.nanmean(normalised(found, floor, ceiling)))
            results[row.label] = {**found.to_dict(), "normalised": between, "seconds": seconds}
            grid.append(shown.row(row.label))
            print(f"{subject.folder.name}, {row.label}: normalised {between:.2f}", flush=True)
        columns = [*(prompt.text for prompt in shown.prompts), "the class", "the class"]
        labelled_grid(grid, columns).save(self.grids / f"{subject.folder.name}.png")
        return results

    def of(self, subject: Subject) -> dict[str, Any]:
        """What the figures of a subject hang on besides base, judge and overrides."""
        shipped = {row.label: [sha256_of(row.shipped)[:16], *row.changes] for row in self.rows}
        return {"subject": subject.fingerprint(), "rows": shipped}


def summary(rows: list[Row], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """All subjects together: `pooled` of what `Bench.learn` found of each."""
    found = {row.label: [Measured.from_dict(part[row.label]) for part in parts] for row in rows}
    floors = [Measured.from_dict(part[BASE]) for part in parts]
    return pooled(found, floors, [part["real_real"] for part in parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "examples" / "subjects")
    parser.add_argument("--subjects", nargs="+", help="all of the folder's when left out")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument(
        "--prior-ablation", action="store_true", help="DreamBooth without prior too"
    )
    parser.add_argument("--anew", action="store_true", help="measure what is recorded once more")
    parser.add_argument("--output", type=Path, required=True, help="JSON of all figures")
    parser.add_argument("--grids", type=Path, default=Path("runs/subjects"))
    # Changes of the configuration may stand anywhere, also behind options that take several names.
    overrides = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    arguments = parser.parse_args([word for word in sys.argv[1:] if word not in overrides])
    rows = [Row(kind, kind) for kind in arguments.methods]
    if arguments.prior_ablation:
        rows.append(Row("dreambooth, no prior", "dreambooth", ("prior.kind=none",)))
    rendered = sorted(path.parent.name for path in arguments.folder.glob("*/metadata.jsonl"))
    names = arguments.subjects or rendered
    missing = [name for name in names if name not in rendered]
    if missing or not names:
        parser.error(
            f"no {listing(missing) or 'subject'} in {arguments.folder}, which holds "
            f"{listing(rendered) or 'none'}"
        )
    subjects = [Subject.read(arguments.folder / name) for name in names]
    try:
        for row in rows:
            row.config(subjects[0], overrides, Path("run"))
    except UserError as error:
        parser.error(str(error))
    arguments.grids.mkdir(parents=True, exist_ok=True)
    bench = Bench(rows, overrides, arguments.grids)
    record = Record(arguments.output, bench.about, anew=arguments.anew)
    parts = [
        record.part(subject.folder.name, partial(bench.learn, subject), of=bench.of(subject))
        for subject in subjects
    ]
    record.sum_up(summary(rows, parts))


if __name__ == "__main__":
    main()
