"""Does the embedded base do what a caption says? 1,000 prompts over combinations never seen in training.

DPM-Solver++ (deterministic), 20 steps, the default guidance. Judged, beside renders of the very same
scenes; kernel distance to renders of other unseen scenes, beside those of renders; diversity of pictures of
one prompt against that of renders of subjects that the prompt fits; the autoencoder; a contact sheet.

    python benchmarks/clay/base.py --folder work/unseen --training-renders work/clay
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import measures
import numpy as np
import torch
from PIL import Image

from data_prep.clay import world
from data_prep.transforms import to_pixel_values
from finetune.base import BaseConfig, BasePipeline, load_base
from finetune.generate import SamplingConfig, generate
from finetune.judge import Judge

SAMPLING = SamplingConfig(scheduler="dpm-solver++", num_steps=20)
PICTURES_PER_PROMPT = 8


def prompt_of(scene: measures.Scene) -> str:
    """Everything that can be told of a scene."""
    return world.caption(*scene)


def like(scene: measures.Scene, count: int) -> list[measures.Scene]:
    """Scenes that the prompt of `scene` fits as well: other shapes, shades, poses, cameras."""
    identity, view = scene
    rng, scenes = random.Random(f"like {identity.shape_seed}"), []
    for _ in range(count):
        other = world.sample_identity(rng, class_noun=identity.class_noun)
        told = {name: getattr(identity, name) for name in ("color", "pattern", "color2")}
        subject = replace(other, **told)
        seen = world.sample_view(rng, subject, place=view.place)
        seen = replace(seen, style=view.style, time=view.time, accessory=view.accessory)
        scenes.append((subject, seen))
    return scenes


def obedience(
    judge: Judge, images: list[Image.Image], scenes: list[measures.Scene]
) -> dict[str, Any]:
    """What is judged right of what prompts tell: none tells that a subject is plain."""
    found = measures.judged(judge, images, scenes)
    return {n: entry for n, entry in found.items() if n not in ("pattern", "pattern, in color")}


def spread(judge: Judge, images: list[Image.Image], nouns: list[str]) -> list[float]:
    """Mean identity distance (1 - cosine) of the pairs of pictures of a prompt, for each prompt.

    `nouns` are the prompts' classes. Only pictures in which the judge sees the class count: to draw
    something else now and then is no diversity. NaN for a prompt with fewer than two of them.
    """
    embeds, told, distances = judge.embed_images(images), judge.tell(images), []
    for number, noun in enumerate(nouns):
        start = number * PICTURES_PER_PROMPT
        rows = [
            index
            for index in range(start, start + PICTURES_PER_PROMPT)
            if told[index]["class"] == noun
        ]
        similarity = embeds[rows] @ embeds[rows].T
        pairs = torch.triu(torch.ones_like(similarity, dtype=torch.bool), diagonal=1)
        distances.append(float(1 - similarity[pairs].mean()) if pairs.any() else math.nan)
    return distances


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Mean of `ours` over that of `theirs`, with a 95 % interval by bootstrap over the pairs.

    Pairs with a NaN are left out.
    """
    pairs = np.array([ours, theirs])[:, ~np.isnan([ours, theirs]).any(0)]
    drawn = np.random.default_rng(0).integers(pairs.shape[1], size=(2000, pairs.shape[1]))
    first, second = pairs[:, drawn].mean(2)
    low, high = np.quantile(first / second, [0.025, 0.975])
    means = pairs.mean(1)
    return {
        "pictures": round(float(means[0]), 3),
        "renders": round(float(means[1]), 3),
        "ratio": round(float(means[0] / means[1]), 2),
        "low": round(float(low), 2),
        "high": round(float(high), 2),
        "prompts": pairs.shape[1],
    }


def diversity(
    base: BasePipeline, judge: Judge, folder: Path, *, num_prompts: int, sampling: SamplingConfig
) -> dict[str, float]:
    """Pairwise identity distance of pictures of one prompt, of renders that fit it, and their `ratio`."""
    scenes = measures.held_out_scenes(num_prompts, seed=2)
    scenes = [(identity, replace(view, style="photo")) for identity, view in scenes]
    prompts = [prompt_of(scene) for scene in scenes for _ in range(PICTURES_PER_PROMPT)]
    made = generate(base, prompts, list(range(len(prompts))), sampling, show_progress=True)
    fitting = [other for scene in scenes for other in like(scene, PICTURES_PER_PROMPT)]
    renders = measures.rendered(fitting, folder / "like")
    nouns = [identity.class_noun for identity, _ in scenes]
    return ratio(spread(judge, made, nouns), spread(judge, renders, nouns))


def autoencoder(base: BasePipeline, images: list[Image.Image]) -> dict[str, Any]:
    """PSNR in dB per picture, and sharpness: the mean size of the Laplacian against the original's.

    A blur lowers the latter; so does lost texture; noise raises it.
    """
    vae, kernel = base.modules["vae"], torch.tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).float()
    kernel = kernel.expand(3, 1, 3, 3)
    psnr, edges = [], [0.0, 0.0]
    with torch.no_grad():
        for start in range(0, len(images), 32):
            pixels = torch.stack([to_pixel_values(i) for i in images[start : start + 32]])
            decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
            error = ((decoded - pixels) / 2).square().mean((1, 2, 3))
            psnr += (-10 * error.log10()).tolist()
            for index, picture in enumerate((decoded, pixels)):
                laplacian = torch.nn.functional.conv2d(picture, kernel, groups=3)
                edges[index] += float(laplacian.abs().sum())
    return {
        "psnr_db": round(float(np.mean(psnr)), 2),
        "psnr_db_5th_percentile": round(float(np.quantile(psnr, 0.05)), 2),
        "sharpness": round(edges[0] / edges[1], 3),
    }


def contact_sheet(base: BasePipeline, path: Path) -> None:
    """64 prompts with one seed each, untouched: 0, 1, 2, ... in order; prompts beside it as text."""
    scenes = measures.held_out_scenes(64, seed=4)
    prompts = [prompt_of(scene) for scene in scenes]
    images = generate(base, prompts, list(range(64)), SAMPLING)
    sheet = Image.new("RGB", (8 * 128, 8 * 128))
    for index, image in enumerate(images):
        sheet.paste(image, (index % 8 * 128, index // 8 * 128))
    sheet.save(path.with_suffix(".png"))
    path.with_suffix(".txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where renders go or are")
    parser.add_argument("--training-renders", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--sheet", type=Path, default=measures.ROOT / "docs" / "clay-sheet.png")
    arguments = parser.parse_args()
    started = time.perf_counter()
    base = load_base(BaseConfig(source="clay"))
    load_seconds = time.perf_counter() - started
    judge = measures.load_judge()
    scenes = measures.held_out_scenes(arguments.pictures, seed=3)
    started = time.perf_counter()
    images = generate(
        base, [prompt_of(s) for s in scenes], list(range(len(scenes))), SAMPLING, show_progress=True
    )
    seconds = (time.perf_counter() - started) / len(images)
    renders = measures.rendered(scenes, arguments.folder / "same-scenes")
    paths = sorted((arguments.training_renders / "images").glob("*.jpg"))
    step = max(1, len(paths) // arguments.pictures)
    training = [Image.open(path).convert("RGB") for path in paths[::step][: arguments.pictures]]
    alone = SAMPLING.model_copy(update={"batch_size": 1})
    started = time.perf_counter()
    generate(base, [prompt_of(scene) for scene in scenes[:8]], list(range(8)), alone)
    alone_seconds = (time.perf_counter() - started) / 8
    # The distance needs independent samples: other scenes than those that the pictures are of.
    others = measures.held_out_scenes(arguments.pictures, seed=6)
    unseen = measures.features(judge, measures.rendered(others, arguments.folder / "unseen-scenes"))
    contact_sheet(base, arguments.sheet)
    values = {
        "guidance_scale": SAMPLING.guidance_scale,
        "load_seconds": round(load_seconds, 2),
        "seconds_per_picture": round(seconds, 2),
        "seconds_per_picture_alone": round(alone_seconds, 2),
        "pictures": obedience(judge, images, scenes),
        "renders of the same scenes": obedience(judge, renders, scenes),
        "kernel_distance": {
            "pictures": round(kernel_distance(judge, images, unseen), 4),
            "renders of the same scenes": round(kernel_distance(judge, renders, unseen), 4),
            "training renders": round(kernel_distance(judge, training, unseen), 4),
        },
        "diversity": diversity(base, judge, arguments.folder, num_prompts=40, sampling=SAMPLING),
        "autoencoder": autoencoder(base, renders),
    }
    measures.record("base", values)


def kernel_distance(judge: Judge, images: list[Image.Image], unseen: torch.Tensor) -> float:
    """Kernel distance of pictures to features of unseen renders."""
    return measures.kernel_distance(measures.features(judge, images), unseen)


if __name__ == "__main__":
    main()
