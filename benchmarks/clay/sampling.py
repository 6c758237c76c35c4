"""Samplers and guidance on the embedded base: what obeys, what varies, what it takes.

100 prompts, half of them with something worn, the same seeds for each sampler: 20 DPM-Solver++, 20
stochastic DPM-Solver++, 50 DDIM and 1000 DDPM steps, each compared with the first, pair by pair. And
guidance 1 ... 12: accuracy against diversity, as a curve in docs/. Run again to go on.

    python benchmarks/clay/sampling.py --folder work/unseen [--without-ddpm]
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
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


PROMPTS_FOR_DIVERSITY = 20
MARKS = {True: "1", False: "0", None: "-"}
"""A verdict as one letter."""


def scenes_of(count: int) -> list[measures.Scene]:
    """Held-out scenes; in half of them something is worn, which prompts ask for too rarely by themselves."""
    rest = measures.held_out_scenes(count - count // 2, seed=5)
    return [*rest, *measures.held_out_scenes(count // 2, seed=7, wearing=True)]


@dataclass(frozen=True)
class Outcome:
    """What a sampler made of the prompts."""

    verdicts: measures.Verdicts
    seconds_per_picture: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with a letter for each verdict."""
        told = {n: "".join(MARKS[v] for v in self.verdicts[n]) for n in ATTRIBUTES}
        return {"verdicts": told, "seconds_per_picture": self.seconds_per_picture}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Outcome:
        """The outcome that `to_dict` wrote."""
        meanings = {mark: verdict for verdict, mark in MARKS.items()}
        told = {n: [meanings[mark] for mark in row] for n, row in values["verdicts"].items()}
        return Outcome(told, values["seconds_per_picture"])

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


def at_scale(
    base: BasePipeline, judge: Judge, folder: Path, scenes: list[measures.Scene], scale: float
) -> dict[str, Any]:
    """Accuracy and diversity at a guidance scale."""
    sampling = SamplingConfig(scheduler="dpm-solver++", num_steps=20, guidance_scale=scale)
    varied = diversity(base, judge, folder, num_prompts=PROMPTS_FOR_DIVERSITY, sampling=sampling)
    return {**outcome(base, judge, scenes, sampling).shares(), "diversity": varied}


def by_sampler(
    base: BasePipeline, judge: Judge, scenes: list[measures.Scene], name: str
) -> dict[str, Any]:
    """The outcome of one of `SAMPLERS`, as plain values."""
    scheduler, num_steps = SAMPLERS[name]
    sampling = SamplingConfig.model_validate({"scheduler": scheduler, "num_steps": num_steps})
    return outcome(base, judge, scenes, sampling).to_dict()


def compared(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Shares of each sampler, and its points above the first."""
    (first, reference), *others = outcomes.items()
    summary = {name: found.shares() for name, found in outcomes.items()}
    for name, found in others:
        summary[name][f"points above {first}"] = found.against(reference)
    return summary


def plot(curve: dict[str, Any], path: Path) -> None:
    """Accuracy of each attribute against diversity, a point per guidance scale that obeys at all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curve = {scale: entry for scale, entry in curve.items() if entry["diversity"]["prompts"]}
    figure, axes = pyplot.subplots(figsize=(8.4, 4.2), dpi=130, layout="constrained")
    ratios = [entry["diversity"]["ratio"] for entry in curve.values()]
    for name in ATTRIBUTES:
        shares = [entry[name]["share"] for entry in curve.values()]
        axes.plot(ratios, shares, marker="o", markersize=4, label=name)
    for scale, ratio, entry in zip(curve, ratios, curve.values(), strict=True):
        axes.annotate(scale, (ratio, entry["place"]["share"]), (0, 6), textcoords="offset points",
                      ha="center", fontsize=8)  # fmt: skip
    axes.set_xlabel("diversity of one prompt's pictures, relative to renders")
    axes.set_ylabel("judged right, %")
    axes.set_title("Obedience against diversity, by guidance scale (numbers)", fontsize=11)
    axes.grid(alpha=0.25)
    axes.margins(y=0.08)
    figure.legend(fontsize=8, loc="outside right center")
    figure.savefig(path)


def main() -> None:
    parser = measures.options(__doc__)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--without-ddpm", action="store_true", help="skip what takes longest")
    parser.add_argument("--plot", type=Path, default=measures.ROOT / "docs" / "guidance.png")
    arguments = parser.parse_args()
    folder, scenes = arguments.folder, scenes_of(arguments.pictures)
    settings = {"pictures": arguments.pictures, "prompts": PROMPTS_FOR_DIVERSITY}
    guidance = measures.record("guidance", settings, anew=arguments.anew)
    settings = {"pictures": arguments.pictures, "guidance_scale": SamplingConfig().guidance_scale}
    samplers = measures.record("samplers", settings, anew=arguments.anew)
    base, judge = load_base(BaseConfig(source="clay")), measures.load_judge()
    curve = {
        f"{scale:g}": guidance.part(
            f"{scale:g}", partial(at_scale, base, judge, folder, scenes, scale)
        )
        for scale in SCALES
    }
    plot(curve, arguments.plot)
    outcomes = {
        name: Outcome.from_dict(samplers.part(name, partial(by_sampler, base, judge, scenes, name)))
        for name, (scheduler, _) in SAMPLERS.items()
        if not (scheduler == "ddpm" and arguments.without_ddpm)
    }
    samplers.sum_up(compared(outcomes))


if __name__ == "__main__":
    main()
