"""Samplers and guidance on the embedded base: what obeys, what varies, what it takes.

100 prompts, half of them with something worn, the same seeds for each sampler: 20 DPM-Solver++, 20
stochastic DPM-Solver++, 50 DDIM and 1000 DDPM steps, each compared with the first, pair by pair. And
guidance 1 ... 12: accuracy against diversity, as a curve in docs/.

    python benchmarks/clay/sampling.py --folder work/unseen [--without-ddpm]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measures
from base import diversity, prompt_of

from finetune.base import BaseConfig, BasePipeline, load_base
from finetune.generate import SamplingConfig, generate
from finetune.judge import Judge

SAMPLERS = {
    "dpm-solver++, 20 steps": ("dpm-solver++", 20),
    "sde-dpm-solver++, 20 steps": ("sde-dpm-solver++", 20),
    "ddim, 50 steps": ("ddim", 50),
    "ddpm, 1000 steps": ("ddpm", 1000),
}
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
ATTRIBUTES = ("class", "color", "pattern, where told", "place", "accessory present")


def scenes_of(count: int) -> list[measures.Scene]:
    """Held-out scenes; in half of them something is worn, which prompts ask for too rarely by themselves."""
    rest = measures.held_out_scenes(count - count // 2, seed=5)
    return [*rest, *measures.held_out_scenes(count // 2, seed=7, wearing=True)]


@dataclass(frozen=True)
class Outcome:
    """What a sampler made of the prompts."""

    verdicts: measures.Verdicts
    seconds_per_picture: float

    def shares(self) -> dict[str, Any]:
        """Judged accuracy, and the time of a picture."""
        found = {
            name: measures.share([v for v in self.verdicts[name] if v is not None])
            for name in ATTRIBUTES
        }
        return {"seconds_per_picture": round(self.seconds_per_picture, 2), **found}

    def against(self, other: Outcome) -> dict[str, Any]:
        """Points above `other`, pair by pair: prompts and seeds are the same."""
        pairs = {
            name: [
                (one, two)
                for one, two in zip(self.verdicts[name], other.verdicts[name], strict=True)
                if one is not None and two is not None
            ]
            for name in ATTRIBUTES
        }
        return {
            name: measures.share_difference([one for one, _ in row], [two for _, two in row])
            for name, row in pairs.items()
        }


def outcome(
    base: BasePipeline, judge: Judge, scenes: list[measures.Scene], sampling: SamplingConfig
) -> Outcome:
    """Pictures for the prompts of `scenes`, judged."""
    prompts, started = [prompt_of(scene) for scene in scenes], time.perf_counter()
    images = generate(base, prompts, list(range(len(prompts))), sampling, show_progress=True)
    seconds = (time.perf_counter() - started) / len(images)
    return Outcome(measures.verdicts(judge, images, scenes), seconds)


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
    scenes = scenes_of(arguments.pictures)
    curve = {}
    for scale in SCALES:
        sampling = SamplingConfig(scheduler="dpm-solver++", num_steps=20, guidance_scale=scale)
        curve[f"{scale:g}"] = {
            **outcome(base, judge, scenes, sampling).shares(),
            "diversity": diversity(
                base, judge, arguments.folder, num_prompts=20, sampling=sampling
            ),
        }
    measures.record("guidance", curve)
    plot(curve, arguments.plot)
    outcomes = dict[str, Outcome]()
    for name, (scheduler, num_steps) in SAMPLERS.items():
        if scheduler == "ddpm" and arguments.without_ddpm:
            continue
        sampling = SamplingConfig.model_validate({"scheduler": scheduler, "num_steps": num_steps})
        outcomes[name] = outcome(base, judge, scenes, sampling)
    first = next(iter(outcomes))
    samplers = {name: found.shares() for name, found in outcomes.items()}
    for name, found in outcomes.items():
        if name != first:
            samplers[name][f"points above {first}"] = found.against(outcomes[first])
    measures.record("samplers", samplers)


if __name__ == "__main__":
    main()
