"""How often 95 % intervals hold the truth, by simulation: those of `finetune.statistics` and a bootstrap.

The bootstrap is the nested percentile one: subjects, prompts and pictures drawn again with replacement.
Values are normal, or skewed, with the standard deviations of a case; the truth is 0. Prints a Markdown table,
kept in `coverage.md`.

    python benchmarks/coverage.py [--experiments 1000] [--resamples 200]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from finetune.statistics import interval


@dataclass(frozen=True)
class Case:
    """Counts, and standard deviations of effects."""

    name: str
    subjects: int = 8
    prompts: int = 12
    pictures: int = 4
    seeds: int = 1
    subject: float = 0.0
    prompt: float = 0.0
    both: float = 0.0
    run: float = 0.0
    picture: float = 1.0
    missing: float = 0.0
    """Share of the cells [subject, seed, prompt] that have failed."""
    skewed: bool = False
    """Exponential values in place of normal ones, of the same mean and deviation."""


EVEN = Case("subjects and prompts vary", subject=1, prompt=1, both=0.5)
CASES = [
    EVEN,
    replace(EVEN, name="subjects vary most", prompt=0.3, both=0.3),
    replace(EVEN, name="prompts vary most", subject=0.3, both=0.3),
    replace(EVEN, name="subjects and prompts vary a little", subject=0.2, prompt=0.2, both=0.2),
    Case("only pictures vary"),
    replace(EVEN, name="two training seeds each", seeds=2, run=0.5),
    replace(EVEN, name="a tenth is missing", missing=0.1),
    replace(EVEN, name="skewed values", skewed=True),
    replace(EVEN, name="30 subjects, 25 prompts", subjects=30, prompts=25),
    replace(EVEN, name="5 subjects, 5 prompts", subjects=5, prompts=5),
    replace(EVEN, name="3 subjects", subjects=3),
    replace(EVEN, name="3 subjects, 3 prompts", subjects=3, prompts=3),
    Case("one subject, 5 prompts", subjects=1, prompts=5, prompt=1),
    Case("one subject, 5 prompts, 3 seeds", subjects=1, prompts=5, seeds=3, prompt=1, run=0.5),
    Case("one subject, one prompt", subjects=1, prompts=1),
]


def simulate(case: Case, rng: np.random.Generator) -> Any:
    """A table [subject, seed, prompt, picture] whose mean is 0."""

    def draw(*shape: int) -> Any:
        return rng.exponential(size=shape) - 1 if case.skewed else rng.normal(size=shape)

    shape = (case.subjects, case.seeds, case.prompts, case.pictures)
    table = case.picture * draw(*shape)
    table += case.subject * draw(case.subjects, 1, 1, 1)
    table += case.prompt * draw(1, 1, case.prompts, 1)
    table += case.both * draw(case.subjects, 1, case.prompts, 1)
    table += case.run * draw(case.subjects, case.seeds, 1, 1)
    table[rng.random(shape[:3]) < case.missing] = np.nan
    return table


def bootstrap(table: Any, resamples: int, rng: np.random.Generator) -> tuple[float, float]:
    """Nested percentile bootstrap interval of the mean."""
    subjects, seeds, prompts, pictures = table.shape
    s = rng.integers(subjects, size=(resamples, subjects, 1, 1, 1))
    k = rng.integers(seeds, size=(resamples, subjects, seeds, 1, 1))
    p = rng.integers(prompts, size=(resamples, 1, 1, prompts, 1))
    j = rng.integers(pictures, size=(resamples, subjects, seeds, prompts, pictures))
    means = np.nanmean(table[s, k, p, j], axis=(1, 2, 3, 4))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def coverage(case: Case, experiments: int, resamples: int) -> tuple[float, float, float, float]:
    """Share of intervals that hold 0, and their median width: ours, then the bootstrap's."""
    rng = np.random.default_rng(0)
    hits, widths = np.zeros(2), []
    for _ in range(experiments):
        table = simulate(case, rng)
        found = interval(table)
        assert found.low is not None
        assert found.high is not None
        pairs = [(found.low, found.high), bootstrap(table, resamples, rng)]
        hits += [low <= 0 <= high for low, high in pairs]
        widths.append([high - low for low, high in pairs])
    median = np.median(widths, axis=0)
    return hits[0] / experiments, median[0], hits[1] / experiments, median[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=200)
    arguments = parser.parse_args()
    print("| case | covers | width | bootstrap covers | width |\n|---|---|---|---|---|")
    for case in CASES:
        ours, width, theirs, narrow = coverage(case, arguments.experiments, arguments.resamples)
        print(
            f"| {case.name} | {ours:.1%} | {width:.2f} | {theirs:.1%} | {narrow:.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
