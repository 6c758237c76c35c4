"""How often 95 % intervals hold the truth, by simulation: ours and a bootstrap.

The bootstrap is the nested percentile one: subjects, prompts and pictures drawn again with replacement.
In the first table values are normal, or skewed, with the standard deviations of a case; the truth is 0. In
the second they are ones and zeros, copies or not, and every subject (or prompt) has a rate of its own. Prints
both as Markdown, kept in `coverage.md`.

    python benchmarks/coverage.py [--experiments 1000] [--resamples 200]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from finetune.shares import share_difference, share_interval
from finetune.statistics import Interval, interval


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


@dataclass(frozen=True)
class ShareCase:
    """Counts, and the Beta distribution of the rates of copies."""

    name: str
    rates: tuple[float, float]
    """Of a subject's, or a prompt's, rate: its mean is a / (a + b)."""
    subjects: int = 8
    prompts: int = 12
    pictures: int = 4
    by_prompt: bool = False
    """Whether prompts have rates in place of subjects."""
    against: tuple[float, float] | None = None
    """Rates of a second row, from which the first is subtracted; None for the share itself."""


SHARES = [
    ShareCase("every subject is copied, a tenth of its pictures", (5, 45)),
    ShareCase("subjects from never to a third", (1, 9)),
    ShareCase("most subjects hardly, a few often", (0.5, 9.5)),
    ShareCase("few subjects are copied at all", (0.1, 2.4)),
    ShareCase("few prompts are copied at all", (0.1, 2.4), by_prompt=True),
    ShareCase("few are copied at all, 30 subjects, 25 prompts", (0.1, 2.4), 30, 25),
    ShareCase("subjects from never to a third, 3 subjects", (1, 9), 3),
    ShareCase("prompts from never to a third, one subject", (1, 9), 1, by_prompt=True),
    ShareCase("half of the pictures are copies", (2, 2)),
    ShareCase("difference, equal rates", (1, 9), against=(1, 9)),
    ShareCase("difference, from never to a third against half of that", (1, 9), against=(0.5, 9.5)),
    ShareCase("difference, a few often against few at all", (0.5, 9.5), against=(0.1, 9.5)),
    ShareCase("difference, nearly all against nearly none", (9.5, 0.5), against=(0.5, 9.5)),
    ShareCase("difference, few at all on both sides", (0.1, 2.4), against=(0.05, 2.4)),
]


def copies(case: ShareCase, rates: tuple[float, float], rng: np.random.Generator) -> Any:
    """A table [subject, seed, prompt, picture] of ones where pictures pass for copies."""
    own = (1, 1, case.prompts, 1) if case.by_prompt else (case.subjects, 1, 1, 1)
    shape = (case.subjects, 1, case.prompts, case.pictures)
    return (rng.random(shape) < rng.beta(*rates, size=own)).astype(float)


def of_case(case: Case, rng: np.random.Generator) -> tuple[Any, Interval, float]:
    """A table, its interval, the truth."""
    table = simulate(case, rng)
    return table, interval(table), 0.0


def of_share(case: ShareCase, rng: np.random.Generator) -> tuple[Any, Interval, float]:
    """A table, its interval, the truth."""
    first, truth = copies(case, case.rates, rng), case.rates[0] / sum(case.rates)
    if case.against is None:
        return first, share_interval(first), truth
    second = copies(case, case.against, rng)
    truth -= case.against[0] / sum(case.against)
    return first - second, share_difference(first, second), truth


def coverage(
    experiment: Callable[[np.random.Generator], tuple[Any, Interval, float]],
    experiments: int,
    resamples: int,
) -> str:
    """Share of intervals that hold the truth, and their median width: ours, then the bootstrap's."""
    rng = np.random.default_rng(0)
    hits, widths = np.zeros(2), []
    for _ in range(experiments):
        table, found, truth = experiment(rng)
        assert found.low is not None
        assert found.high is not None
        pairs = [(found.low, found.high), bootstrap(table, resamples, rng)]
        hits += [low <= truth <= high for low, high in pairs]
        widths.append([high - low for low, high in pairs])
    (ours, theirs), (width, narrow) = hits / experiments, np.median(widths, axis=0)
    return f"{ours:.1%} | {width:.2f} | {theirs:.1%} | {narrow:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=200)
    arguments = parser.parse_args()
    means = [(case.name, partial(of_case, case)) for case in CASES]
    shares = [(case.name, partial(of_share, case)) for case in SHARES]
    for cases in (means, shares):
        print("| case | covers | width | bootstrap covers | width |\n|---|---|---|---|---|")
        for name, experiment in cases:
            found = coverage(experiment, arguments.experiments, arguments.resamples)
            print(f"| {name} | {found} |", flush=True)
        print()


if __name__ == "__main__":
    main()
