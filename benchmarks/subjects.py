"""Does each method, at its shipped configuration, learn the example subjects? Slow: minutes a subject.

For every subject under examples/subjects and every method: train on the photos, make pictures on prompts
whose places are those of the held-out views, and print

- normalised subject similarity, (generated − base) / (real-real − base), by the embedded CLIP's image
  encoder against the held-out views: 0 is the frozen base asked for the class, 1 another photo;
- place accuracy (zero-shot), beside the frozen base's;
- similarity of the class prompt's pictures to the subject (should stay at the base's).

    python benchmarks/subjects.py [--subjects dog cat] [--methods lora] [--output benchmarks/subjects.json]
        [--prior-ablation] [section.key=value ...]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from data_prep.clay.subjects import HELD_OUT_PLACES
from data_prep.clay.world import CLASSES, PLACES, with_article
from finetune.base import BaseConfig, BasePipeline, load_base
from finetune.config import apply_overrides, build_run_config, read_yaml
from finetune.encoders import EMBEDDED_CLIP, Encoder, load_encoder
from finetune.generate import SamplingConfig, generate, labelled_grid
from finetune.run import prepare_folder, run_training
from finetune.scores import Views, embed_images, real_similarity, subject_fidelity, zero_shot
from methods import load_method

ROOT = Path(__file__).resolve().parent.parent
SUBJECTS = ROOT / "examples" / "subjects"
IMAGES_PER_PROMPT = 3
IMAGES_OF_CLASS = 12


def place_captions(scorer: Encoder) -> torch.Tensor:
    """One embedding per place: the mean over all classes."""
    rows = []
    for place in PLACES:
        texts = [f"a photo of {with_article(noun)} {place}" for noun in CLASSES]
        rows.append(torch.nn.functional.normalize(scorer.embed_texts(texts).mean(0), dim=-1))
    return torch.stack(rows)


def pictures(base: BasePipeline, subject: str, class_noun: str) -> tuple[list[Any], list[Any]]:
    """Pictures on the held-out places, and of the class alone."""
    sampling = SamplingConfig()
    places = list(dict.fromkeys(HELD_OUT_PLACES))
    prompts = [f"a photo of a {subject} {p}" for p in places for _ in range(IMAGES_PER_PROMPT)]
    seeds = [100 + i for _ in places for i in range(IMAGES_PER_PROMPT)]
    class_prompts = [f"a photo of {with_article(class_noun)}"] * IMAGES_OF_CLASS
    images = generate(
        base, prompts + class_prompts, seeds + list(range(500, 500 + IMAGES_OF_CLASS)), sampling
    )
    return images[: len(prompts)], images[len(prompts) :]


def measure(scorer: Encoder, made: list[Any], of_class: list[Any], real: Views) -> dict[str, float]:
    embeddings = embed_images(scorer, made, [f"picture {i}" for i in range(len(made))])
    class_names = [f"picture {i} of the class" for i in range(len(of_class))]
    class_embeddings = embed_images(scorer, of_class, class_names)
    places = list(dict.fromkeys(HELD_OUT_PLACES))
    truth = torch.tensor([PLACES.index(p) for p in places for _ in range(IMAGES_PER_PROMPT)])
    right = zero_shot(embeddings.vectors.float(), place_captions(scorer)) == truth
    return {
        "similarity": float(subject_fidelity(embeddings, real).mean()),
        "place_accuracy": float(right.float().mean()),
        "class_similarity": float(subject_fidelity(class_embeddings, real).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--subjects", nargs="+", default=sorted(p.name for p in SUBJECTS.iterdir() if p.is_dir())
    )
    parser.add_argument("--methods", nargs="+", default=["dreambooth", "lora", "textual_inversion"])
    parser.add_argument(
        "--prior-ablation", action="store_true", help="DreamBooth without prior too"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/subjects.json"))
    parser.add_argument("--grids", type=Path, default=Path("runs/subjects"))
    arguments, overrides = parser.parse_known_args()
    base, scorer = load_base(BaseConfig(source="clay")), load_encoder(EMBEDDED_CLIP)
    results: dict[str, Any] = {}
    arguments.grids.mkdir(parents=True, exist_ok=True)
    rows = [(kind, kind, list[str]()) for kind in arguments.methods]
    if arguments.prior_ablation:
        rows.append(("dreambooth, no prior", "dreambooth", ["prior.kind=none"]))
    for name in arguments.subjects:
        folder = SUBJECTS / name
        paths = sorted((folder / "held_out").glob("*.jpg"))
        photos = [Image.open(path) for path in paths]
        real = embed_images(scorer, photos, [path.name for path in paths])
        made, of_class = pictures(base, name, name)
        floor, ceiling = measure(scorer, made, of_class, real), real_similarity(real).mean
        results[name] = {"frozen base": floor, "real_real": ceiling}
        grid = [("held out", photos), ("frozen base", [*made[::IMAGES_PER_PROMPT], of_class[0]])]
        print(f"{name}: base {floor['similarity']:.3f}, real-real {ceiling:.3f}, "
              f"place {floor['place_accuracy']:.2f}", flush=True)  # fmt: skip
        for label, kind, changes in rows:
            with tempfile.TemporaryDirectory() as temporary:
                values = apply_overrides(
                    read_yaml(ROOT / "configs" / "clay" / f"{kind}.yaml"),
                    [f"data.photos={folder}", f"data.class_noun={name}", *changes, *overrides]
                    + [f"output={temporary}/run"],
                )
                config = build_run_config(values, load_method, kind)
                method = load_method(kind)(config.method)
                prepare_folder(config, resume=False, overwrite=False)
                try:
                    run = run_training(base, method, config)
                    made, of_class = pictures(base, method.subject_phrase(name), name)
                finally:
                    method.detach(base)
            scores = measure(scorer, made, of_class, real)
            low = floor["similarity"]
            scores["normalised"] = (scores["similarity"] - low) / (ceiling - low)
            scores["seconds"] = run.seconds
            results[name][label] = scores
            grid.append((label, [*made[::IMAGES_PER_PROMPT], of_class[0]]))
            print(
                f"  {label:22} normalised {scores['normalised']:.2f}  place "
                f"{scores['place_accuracy']:.2f}  class to subject {scores['class_similarity']:.3f} "
                f"(base {floor['class_similarity']:.3f})  {run.seconds:.0f} s",
                flush=True,
            )
        columns = [*dict.fromkeys(HELD_OUT_PLACES), "the class alone"]
        labelled_grid(grid, columns).save(arguments.grids / f"{name}.png")
        arguments.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
