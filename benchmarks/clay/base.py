"""Does the embedded base do what a caption says? 1,000 prompts over combinations never seen in training.

DPM-Solver++ (deterministic), 20 steps, the default guidance. Judged, beside renders of the very same
scenes; kernel distance to renders of other unseen scenes, beside those of renders; diversity of pictures of
one prompt against that of renders of subjects that the prompt fits; the autoencoder; a contact sheet. Run
again to go on.

    python benchmarks/clay/base.py --folder work/unseen --training-renders work/clay
"""

from __future__ import annotations

import functools
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
UNTOLD = ("pattern", "pattern, in color", "time", "accessory")
"""What is mostly something that no prompt has a word for: plain, by day, nothing worn."""
OF_SUBJECTS = ("class", "color", "color2", "pattern, where told")
"""What a prompt tells of a subject."""


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
    """What is judged right of what prompts tell."""
    found = measures.judged(judge, images, scenes)
    return {name: entry for name, entry in found.items() if name not in UNTOLD}


def spread(
    judge: Judge, images: list[Image.Image], scenes: list[measures.Scene]
) -> tuple[list[float], list[bool]]:
    """Mean identity distance (1 - cosine) of the pairs of pictures of a prompt, for each prompt.

    Of the pictures of each scene's prompt, `PICTURES_PER_PROMPT` in a row, only those count in which the
    judge sees nothing of the subject that differs from what is told: another colour than asked for is no
    diversity. NaN for a prompt with fewer than two of them. Beside the distances, which pictures count.
    """
    shown = [scene for scene in scenes for _ in range(PICTURES_PER_PROMPT)]
    found = measures.verdicts(judge, images, shown)
    counts = [False not in row for row in zip(*(found[name] for name in OF_SUBJECTS), strict=True)]
    embeds, distances = judge.embed_images(images), []
    for start in range(0, len(images), PICTURES_PER_PROMPT):
        rows = [index for index in range(start, start + PICTURES_PER_PROMPT) if counts[index]]
        similarity = embeds[rows] @ embeds[rows].T
        pairs = torch.triu(torch.ones_like(similarity, dtype=torch.bool), diagonal=1)
        distances.append(float(1 - similarity[pairs].mean()) if pairs.any() else math.nan)
    return distances, counts


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float | None]:
    """Mean of `ours` over that of `theirs`, with a 95 % interval by bootstrap over the pairs.

    Pairs with a NaN are left out; None where none is left.
    """
    pairs = np.array([ours, theirs])[:, ~np.isnan([ours, theirs]).any(0)]
    if not pairs.size:
        return {**dict.fromkeys(("pictures", "renders", "ratio", "low", "high")), "prompts": 0}
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
) -> dict[str, Any]:
    """Pairwise identity distance of pictures of one prompt, of renders that fit it, and their `ratio`.

    With how many of the pictures, and of as many renders, count (see `spread`).
    """
    scenes = measures.held_out_scenes(num_prompts, seed=2)
    scenes = [(identity, replace(view, style="photo")) for identity, view in scenes]
    prompts = [prompt_of(scene) for scene in scenes for _ in range(PICTURES_PER_PROMPT)]
    made = generate(base, prompts, list(range(len(prompts))), sampling, show_progress=True)
    fitting = [other for scene in scenes for other in like(scene, PICTURES_PER_PROMPT)]
    renders = measures.rendered(fitting, folder / "like")
    ours, pictures_count = spread(judge, made, scenes)
    theirs, renders_count = spread(judge, renders, scenes)
    counts = {"pictures": sum(pictures_count), "renders": sum(renders_count), "of": len(prompts)}
    return {**ratio(ours, theirs), "that count": counts}


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


class Bench:
    """Base and judge, the scenes that are asked for, and what is measured of them."""

    def __init__(self, folder: Path, num_pictures: int) -> None:
        started = time.perf_counter()
        self.base = load_base(BaseConfig(source="clay"))
        self.load_seconds = time.perf_counter() - started
        self.judge, self.folder = measures.load_judge(), folder
        self.scenes = measures.held_out_scenes(num_pictures, seed=3)

    @functools.cached_property
    def renders(self) -> list[Image.Image]:
        """Of the very scenes."""
        return measures.rendered(self.scenes, self.folder / "same-scenes")

    @functools.cached_property
    def _unseen(self) -> torch.Tensor:
        # The distance needs independent samples: other scenes than those that the pictures are of.
        others = measures.held_out_scenes(len(self.scenes), seed=6)
        return measures.features(
            self.judge, measures.rendered(others, self.folder / "unseen-scenes")
        )

    def distance(self, images: list[Image.Image]) -> dict[str, Any]:
        """Kernel distance to unseen renders."""
        found = measures.kernel_distance(measures.features(self.judge, images), self._unseen)
        return {"kernel_distance": round(found, 4)}

    def judged(self, images: list[Image.Image]) -> dict[str, Any]:
        """What is right of pictures of the scenes, and their distance."""
        return {**obedience(self.judge, images, self.scenes), **self.distance(images)}

    def speed(self) -> dict[str, Any]:
        """Seconds to load the base, and of a picture alone and in batches of eight."""
        found = {"load_seconds": round(self.load_seconds, 2)}
        for size, name in ((1, "seconds_alone"), (8, "seconds_in_batches_of_8")):
            sampling = SAMPLING.model_copy(update={"batch_size": size})
            prompts = [prompt_of(scene) for scene in self.scenes[: 4 * size]]
            started = time.perf_counter()
            generate(self.base, prompts, list(range(len(prompts))), sampling)
            found[name] = round((time.perf_counter() - started) / len(prompts), 2)
        return found

    def pictures(self) -> dict[str, Any]:
        """Pictures of all prompts, judged."""
        prompts = [prompt_of(scene) for scene in self.scenes]
        seeds = list(range(len(prompts)))
        return self.judged(generate(self.base, prompts, seeds, SAMPLING, show_progress=True))


def opened(paths: list[Path]) -> list[Image.Image]:
    """Pictures in memory."""
    return [Image.open(path).convert("RGB") for path in paths]


def main() -> None:
    parser = measures.options(__doc__)
    parser.add_argument("--training-renders", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--sheet", type=Path, default=measures.ROOT / "docs" / "clay-sheet.png")
    arguments = parser.parse_args()
    folder, count = arguments.folder, arguments.pictures
    images = arguments.training_renders / "images"
    paths = sorted(images.glob("*.jpg"))
    if not 2 <= count <= len(paths):
        parser.error(
            f"--pictures {count}: two at least, and as many as that in {images} (--training-renders), which "
            f"holds {len(paths)}"
        )
    training = paths[:: len(paths) // count][:count]
    settings = {"pictures": count, "guidance_scale": SAMPLING.guidance_scale}
    record, bench = measures.record("base", settings, anew=arguments.anew), Bench(folder, count)
    base, judge = bench.base, bench.judge
    record.part("speed", bench.speed, of={"threads": torch.get_num_threads()})
    record.part("pictures", bench.pictures)
    record.part("renders of the same scenes", lambda: bench.judged(bench.renders))
    record.part("training renders", lambda: bench.distance(opened(training)))
    record.part(
        "diversity", lambda: diversity(base, judge, folder, num_prompts=40, sampling=SAMPLING)
    )
    record.part("autoencoder", lambda: autoencoder(base, bench.renders))
    contact_sheet(base, arguments.sheet)


if __name__ == "__main__":
    main()
