"""Samplers and guidance on the embedded base: what obeys, what varies, what it takes.

100 prompts, the same seeds for each sampler: 1000 DDPM, 50 DDIM, 20 DPM-Solver++ and 20 stochastic
DPM-Solver++ steps. Then guidance 1 ... 12: accuracy against diversity, as a curve in docs/.

    python benchmarks/clay/sampling.py --folder work/unseen [--without-ddpm]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import measures
from base import diversity, prompt_of

from finetune.base import BaseConfig, BasePipeline, load_base
from finetune.generate import SamplingConfig, generate
from finetune.judge import Judge

SAMPLERS = {
    "ddpm, 1000 steps": ("ddpm", 1000),
    "ddim, 50 steps": ("ddim", 50),
    "dpm-solver++, 20 steps": ("dpm-solver++", 20),
    "sde-dpm-solver++, 20 steps": ("sde-dpm-solver++", 20),
}
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
ATTRIBUTES = ("class", "color", "pattern", "place", "accessory present")


def accuracy(
    base: BasePipeline, judge: Judge, scenes: list[measures.Scene], sampling: SamplingConfig
) -> dict[str, Any]:
    """Judged accuracy on the prompts of `scenes`, and seconds a picture."""
    prompts, started = [prompt_of(scene) for scene in scenes], time.perf_counter()
    images = generate(base, prompts, list(range(len(prompts))), sampling, show_progress=True)
    seconds = (time.perf_counter() - started) / len(images)
    told = measures.judged(judge, images, scenes)
    kept = {name: told[name] for name in ATTRIBUTES}
    return {"seconds_per_picture": round(seconds, 2), **kept}


def plot(curve: dict[str, Any], path: Path) -> None:
    """Accuracy of each attribute against diversity, a point per guidance scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=130, layout="constrained")
    ratios = [entry["diversity"]["ratio"] for entry in curve.values()]
    for name in ATTRIBUTES:
        shares = [entry[name]["share"] for entry in curve.values()]
        axes.plot(ratios, shares, marker="o", markersize=4, label=name)
    for scale, ratio, entry in zip(curve, ratios, curve.values(), strict=True):
        axes.annotate(scale, (ratio, entry["class"]["share"]), (0, 7), textcoords="offset points",
                      ha="center", fontsize=8)  # fmt: skip
    axes.set_xlabel("diversity of one prompt's pictures, relative to renders")
    axes.set_ylabel("judged right, %")
    axes.set_title("Guidance scale (numbers): obedience against diversity", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where renders go or are")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--without-ddpm", action="store_true", help="skip what takes longest")
    parser.add_argument("--plot", type=Path, default=measures.ROOT / "docs" / "guidance.png")
    arguments = parser.parse_args()
    base, judge = load_base(BaseConfig(source="clay")), measures.load_judge()
    scenes = measures.held_out_scenes(arguments.pictures, seed=5)
    curve = {}
    for scale in SCALES:
        sampling = SamplingConfig(scheduler="dpm-solver++", num_steps=20, guidance_scale=scale)
        curve[f"{scale:g}"] = {
            **accuracy(base, judge, scenes, sampling),
            "diversity": diversity(
                base, judge, arguments.folder, num_prompts=20, sampling=sampling
            ),
        }
    measures.record("guidance", curve)
    plot(curve, arguments.plot)
    samplers = {}
    for name, (scheduler, num_steps) in SAMPLERS.items():
        if scheduler == "ddpm" and arguments.without_ddpm:
            continue
        sampling = SamplingConfig.model_validate({"scheduler": scheduler, "num_steps": num_steps})
        samplers[name] = accuracy(base, judge, scenes, sampling)
    measures.record("samplers", samplers)


if __name__ == "__main__":
    main()
