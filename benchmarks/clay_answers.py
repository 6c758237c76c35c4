"""Does the embedded base do what a caption says? Class, colour and place of generated photos.

Judged twice: by the embedded CLIP, zero-shot, and by a small residual network trained here, on renders
only; the accuracy of both on renders that neither has seen is printed beside.

    python benchmarks/clay_answers.py --renders work/clay [--pictures 500] [--steps 1500]
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from data_prep.clay.dataset import identity_rng, read_metadata
from data_prep.clay.render import build_model, render
from data_prep.clay.world import (
    CLASSES,
    COLORS,
    PLACES,
    plain_view,
    sample_identity,
    with_article,
)
from finetune.base import BaseConfig, load_base
from finetune.encoders import EMBEDDED_CLIP, Encoder, load_encoder
from finetune.generate import SamplingConfig, generate, labelled_grid

VOCABULARY: dict[str, tuple[str, ...]] = {
    "class": CLASSES,
    "color": tuple(COLORS),
    "place": PLACES,
}


class Classifier(nn.Module):
    """A residual network with one linear head per attribute, on 128 px pictures in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = ResNetModel(
            ResNetConfig(
                embedding_size=32,
                hidden_sizes=[32, 64, 128, 256],
                depths=[1, 1, 2, 1],
                layer_type="basic",
            )  # fmt: skip
        )
        self.heads = nn.ModuleDict({n: nn.Linear(256, len(v)) for n, v in VOCABULARY.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        pooled = self.body(pixels).pooler_output.flatten(1)
        return {name: head(pooled) for name, head in self.heads.items()}


def to_pixels(images: list[Any]) -> Tensor:
    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def truth_of(row: dict[str, Any]) -> dict[str, int]:
    identity = row["identity"]
    values = {"class": identity["class_noun"], "color": identity["color"], "place": row["place"]}
    return {name: VOCABULARY[name].index(value) for name, value in values.items()}


def train_classifier(folder: Path, steps: int) -> Classifier:
    torch.manual_seed(0)
    rows = [row for row in read_metadata(folder) if row["style"] == "photo"]
    pixels = np.stack([np.asarray(Image.open(folder / row["file_name"])) for row in rows])
    truths = [truth_of(row) for row in rows]
    labels = {name: torch.tensor([t[name] for t in truths]) for name in VOCABULARY}
    model = Classifier().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        index = torch.randint(len(rows), (64,))
        batch = torch.from_numpy(pixels[index.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
        if step % 2:
            batch = batch.flip(3)
        top, left = torch.randint(17, (2,)).tolist()
        batch = F.pad(batch, (8,) * 4, mode="replicate")[:, :, top : top + 128, left : left + 128]
        loss = sum(
            (F.cross_entropy(o, labels[n][index]) for n, o in model(batch).items()), torch.zeros(())
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"classifier step {step + 1}: loss {float(loss):.3f}", flush=True)
    return model.eval()


def zero_shot_captions(scorer: Encoder) -> dict[str, Tensor]:
    """Mean embedding of every value's captions, over all classes where the class is not asked."""

    def mean(texts: list[str]) -> Tensor:
        return F.normalize(scorer.embed_texts(texts).mean(0), dim=-1)

    return {
        "class": torch.stack([mean([f"a photo of {with_article(c)}"]) for c in CLASSES]),
        "color": torch.stack(
            [mean([f"a photo of {with_article(f'{k} {c}')}" for c in CLASSES]) for k in COLORS]
        ),
        "place": torch.stack(
            [mean([f"a photo of {with_article(c)} {p}" for c in CLASSES]) for p in PLACES]
        ),
    }


@torch.no_grad()
def accuracies(
    images: list[Any], truths: list[dict[str, int]], scorer: Encoder, model: Classifier
) -> dict[str, dict[str, float]]:
    captions, embeddings = zero_shot_captions(scorer), scorer.embed_images(images)
    outputs = [model(to_pixels(images[i : i + 64])) for i in range(0, len(images), 64)]
    result: dict[str, dict[str, float]] = {"clip, zero-shot": {}, "classifier": {}}
    for name in VOCABULARY:
        truth = torch.tensor([t[name] for t in truths])
        told = (embeddings @ captions[name].T).argmax(1)
        seen = torch.cat([out[name] for out in outputs]).argmax(1)
        result["clip, zero-shot"][name] = float((told == truth).float().mean())
        result["classifier"][name] = float((seen == truth).float().mean())
    return result


def unseen_renders(count: int) -> tuple[list[Any], list[dict[str, int]]]:
    images, truths = [], []
    for index in range(count):
        rng = identity_rng(seed=1, index=index)  # another world than the training set's
        identity = sample_identity(rng)
        view = plain_view(rng, identity, place=rng.choice(PLACES))
        images.append(render(build_model(identity), view))
        row = {"identity": identity.to_dict(), "place": view.place}
        truths.append(truth_of(row))
    return images, truths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--renders", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/clay_answers.json"))
    arguments = parser.parse_args()
    model, scorer = (
        train_classifier(arguments.renders, arguments.steps),
        load_encoder(EMBEDDED_CLIP),
    )
    results = {"held-out renders": accuracies(*unseen_renders(200), scorer, model)}
    print(json.dumps(results, indent=1), flush=True)
    rng = random.Random(0)
    wanted = [
        (rng.choice(CLASSES), rng.choice(list(COLORS)), rng.choice(PLACES))
        for _ in range(arguments.pictures)
    ]
    prompts = [f"a photo of {with_article(f'{k} {c}')} {p}" for c, k, p in wanted]
    images = generate(
        load_base(BaseConfig(source="clay")),
        prompts,
        list(range(len(prompts))),
        SamplingConfig(),
        show_progress=True,
    )
    truths = [
        {"class": CLASSES.index(c), "color": list(COLORS).index(k), "place": PLACES.index(p)}
        for c, k, p in wanted
    ]
    results["generated photos"] = accuracies(images, truths, scorer, model)
    print(json.dumps(results, indent=1))
    arguments.output.write_text(json.dumps(results, indent=1))
    sheet = [("", images[i : i + 10]) for i in range(0, 60, 10)]
    labelled_grid(sheet, [""] * 10).save(arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
