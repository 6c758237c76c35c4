"""Does each method, at its shipped configuration, learn clay subjects? Slow: minutes a subject.

For every subject of a folder and every method: train on the photos, make pictures on prompts whose places
are those of the held-out views, and, for what can wear something, on prompts with a thing worn; then print

- normalised subject similarity, (generated − base) / (real-real − base), by the embedded judge's identity
  embedding against the held-out views: 0 is the frozen base asked for the class, 1 another photo;
- prompt accuracy: the judge's place and, where one is asked for, accessory, beside the frozen base's;
- similarity of the class prompt's pictures to the subject (should stay at the base's), and the share
  of them in which the judge still sees the class.

    python benchmarks/subjects.py [--folder examples/subjects] [--subjects dog cat] [--methods lora]
        [--prior-ablation] --output benchmarks/subjects.json [section.key=value ...]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from data_prep.clay.subjects import HELD_OUT_PLACES
from data_prep.clay.world import WEARERS, with_article
from finetune.base import BaseConfig, BasePipeline, load_base
from finetune.bases import EMBEDDED
from finetune.config import apply_overrides, build_run_config, read_yaml
from finetune.encoders import Encoder, load_encoder
from finetune.generate import SamplingConfig, generate, labelled_grid
from finetune.judge import Judge
from finetune.run import prepare_folder, run_training
from finetune.scores import Views, embed_images, real_similarity, subject_fidelity
from methods import load_method

ROOT = Path(__file__).resolve().parent.parent
IMAGES_PER_PROMPT = 3
IMAGES_OF_CLASS = 12
WORN = (("hat", "red"), ("scarf", "yellow"), ("glasses", "green"), ("bag", "blue"))


@dataclass(frozen=True)
class Prompt:
    """What follows the subject in a prompt, and what the judge should see."""

    text: str
    expected: dict[str, str]


def prompts_for(class_noun: str) -> list[Prompt]:
    """Places, and accessories on the grass for those who wear some."""
    prompts = [Prompt(place, {"place": place}) for place in HELD_OUT_PLACES]
    for kind, color in WORN if class_noun in WEARERS else ():
        worn = f"{color} glasses" if kind == "glasses" else with_article(f"{color} {kind}")
        prompts.append(Prompt(f"wearing {worn} on the grass", {"accessory": kind}))
    return prompts


@dataclass(frozen=True)
class Pictures:
    """What a row made: for the prompts in order, several each, and for the class alone."""

    prompts: list[Prompt]
    made: list[Image.Image]
    of_class: list[Image.Image]


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

    def similarity(self, images: list[Image.Image]) -> float:
        """Mean over pictures of the mean cosine to all photos."""
        names = [f"picture {index}" for index in range(len(images))]
        return float(subject_fidelity(embed_images(self.encoder, images, names), self.real).mean())


def measure(yardstick: Yardstick, shown: Pictures) -> dict[str, float]:
    """Similarity to the photos, prompt accuracy, and what became of the class."""
    expected = [prompt.expected for prompt in shown.prompts for _ in range(IMAGES_PER_PROMPT)]
    right = [
        told[name] == value
        for told, answer in zip(yardstick.judge.tell(shown.made), expected, strict=True)
        for name, value in answer.items()
    ]
    told_classes = [told["class"] for told in yardstick.judge.tell(shown.of_class)]
    still = [noun == yardstick.class_noun for noun in told_classes]
    return {
        "similarity": yardstick.similarity(shown.made),
        "prompt_accuracy": sum(right) / len(right),
        "class_similarity": yardstick.similarity(shown.of_class),
        "class_accuracy": sum(still) / len(still),
    }


def trained(
    base: BasePipeline, kind: str, overrides: list[str], class_noun: str
) -> tuple[Pictures, float]:
    """Pictures of a method trained at its shipped configuration with `overrides`, and its seconds."""
    values = apply_overrides(read_yaml(ROOT / "configs" / "clay" / f"{kind}.yaml"), overrides)
    config = build_run_config(values, load_method, kind)
    method = load_method(kind)(config.method)
    prepare_folder(config, resume=False, overwrite=False)
    try:
        run = run_training(base, method, config)
        return pictures(base, method.subject_phrase(class_noun), class_noun), run.seconds
    finally:
        method.detach(base)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "examples" / "subjects")
    parser.add_argument("--subjects", nargs="+", help="all of the folder's when left out")
    parser.add_argument("--methods", nargs="+", default=["dreambooth", "lora", "textual_inversion"])
    parser.add_argument(
        "--prior-ablation", action="store_true", help="DreamBooth without prior too"
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON of all figures")
    parser.add_argument("--grids", type=Path, default=Path("runs/subjects"))
    arguments, overrides = parser.parse_known_args()
    base = load_base(BaseConfig(source="clay"))
    judge_folder = EMBEDDED / "clay-judge"
    judge, encoder = Judge.from_pretrained(judge_folder), load_encoder(str(judge_folder))
    results: dict[str, Any] = {}
    arguments.grids.mkdir(parents=True, exist_ok=True)
    rows = [(kind, kind, list[str]()) for kind in arguments.methods]
    if arguments.prior_ablation:
        rows.append(("dreambooth, no prior", "dreambooth", ["prior.kind=none"]))
    rendered = sorted(path.parent.name for path in arguments.folder.glob("*/metadata.jsonl"))
    for name in arguments.subjects or rendered:
        folder = arguments.folder / name
        told = json.loads((folder / "metadata.jsonl").read_text("utf-8").splitlines()[0])
        noun = told["identity"]["class_noun"]
        photos = [Image.open(path) for path in sorted((folder / "held_out").glob("*.jpg"))]
        real = embed_images(encoder, photos, [f"photo {index}" for index in range(len(photos))])
        yardstick = Yardstick(judge, encoder, real, noun)
        shown = pictures(base, noun, noun)
        floor, ceiling = measure(yardstick, shown), real_similarity(real).mean
        assert ceiling is not None  # there are eight photos
        results[name] = {"frozen base": floor, "real_real": ceiling}
        columns = [prompt.text for prompt in shown.prompts]
        grid = [
            ("held out", photos),
            ("frozen base", [*shown.made[::IMAGES_PER_PROMPT], *shown.of_class[:2]]),
        ]
        print(f"{name}: base {floor['similarity']:.3f}, real-real {ceiling:.3f}, "
              f"prompt {floor['prompt_accuracy']:.2f}", flush=True)  # fmt: skip
        for label, kind, changes in rows:
            with tempfile.TemporaryDirectory() as temporary:
                given = [f"data.photos={folder}", f"data.class_noun={noun}", *changes, *overrides]
                shown, seconds = trained(base, kind, [*given, f"output={temporary}/run"], noun)
            scores = measure(yardstick, shown)
            low = floor["similarity"]
            scores["normalised"] = (scores["similarity"] - low) / (ceiling - low)
            scores["seconds"] = seconds
            results[name][label] = scores
            grid.append((label, [*shown.made[::IMAGES_PER_PROMPT], *shown.of_class[:2]]))
            print(
                f"  {label:22} normalised {scores['normalised']:.2f}  prompt "
                f"{scores['prompt_accuracy']:.2f}  class to subject "
                f"{scores['class_similarity']:.3f} (base {floor['class_similarity']:.3f})  "
                f"class {scores['class_accuracy']:.2f}  {seconds:.0f} s",
                flush=True,
            )
        labelled_grid(grid, [*columns, "the class", "the class"]).save(
            arguments.grids / f"{name}.png"
        )
        arguments.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
