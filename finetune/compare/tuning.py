"""Tuning: every row tries equally many settings on validation prompts before anything is ranked.

A trial trains the row once on every subject, with the first training seed. What is chosen follows the
checkpoint rule: the highest subject fidelity within its limits.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.checkpoint_rule import Limits, Point, Scale, is_allowed, least_bad
from finetune.compare.cells import Bench, in_a_sentence, trained
from finetune.compare.plan import Trial, row_run, trials_of
from finetune.compare.suite import SuiteSubject
from finetune.config import RunConfig
from finetune.errors import CheckpointError
from finetune.files import read_json, write_json
from finetune.results import Trial as TrialRecord

MARKER = "trial.json"


@dataclass(frozen=True)
class Tuned:
    """What tuning a row came to."""

    records: tuple[TrialRecord, ...]
    chosen: int | None
    """None if every trial failed."""
    trial: Trial | None


def tune_row(bench: Bench, name: str, subjects: tuple[SuiteSubject, ...], *, key: str) -> Tuned:
    """Try a row's settings, or read what earlier calls found; failed trials stay failed."""
    assert bench.config.tune is not None
    trials = trials_of(bench.config.tune)
    outcomes = [
        [_outcome(bench, name, number, trial, subject, key=key) for subject in subjects]
        for number, trial in enumerate(trials)
    ]
    scales = [Scale(**o["scale"]) for trial in outcomes for o in trial if o["status"] == "finished"]
    records, points = [], []
    limits = bench.config.validation.limits
    scale = _mean_scale(scales)
    for number, (trial, found) in enumerate(zip(trials, outcomes, strict=True)):
        run = _run(bench, name, number, trial, subjects[0])
        settings = trial.settings(run)
        wrong = next((o["error"] for o in found if o["status"] == "failed"), None)
        if wrong is not None:
            records.append(TrialRecord(settings=settings, status="failed", error=wrong))
            continue
        points.append(_mean_point([Point(**o["point"]) for o in found], number))
        records.append(_record(settings, found, points[-1], scale, limits))
    best = least_bad(points, scale, limits)
    chosen = None if best is None else best.step
    return Tuned(tuple(records), chosen, None if chosen is None else trials[chosen])


def _record(
    settings: dict[str, float | int],
    found: list[dict[str, Any]],
    point: Point,
    scale: Scale,
    limits: Limits,
) -> TrialRecord:
    means = {id: float(np.mean([o["scores"][id] for o in found])) for id in found[0]["scores"]}
    return TrialRecord(
        settings=settings,
        status="finished",
        scores=means,
        allowed=is_allowed(point, scale, limits),
    )


def _mean_scale(scales: list[Scale]) -> Scale:
    if not scales:
        return Scale(1.0, 1.0)
    return Scale(*(float(v) for v in np.mean([[s.prompt_fidelity, s.noise] for s in scales], 0)))


def _mean_point(points: list[Point], number: int) -> Point:
    """The mean of a trial's points over subjects; its number stands where a checkpoint has its step."""
    values = np.mean([list(asdict(point).values())[1:] for point in points], 0)
    return Point(number, *(float(value) for value in values))


def _folder(bench: Bench, name: str, number: int, subject: SuiteSubject) -> Path:
    return bench.root / "tuning" / name / f"trial-{number:02d}" / subject.name


def _run(bench: Bench, name: str, number: int, trial: Trial, subject: SuiteSubject) -> RunConfig:
    output = _folder(bench, name, number, subject) / "run"
    seed = bench.config.seeds[0]
    run = row_run(bench.config, name, subject, seed, output, bench.load_method, trial=trial)
    # The end of a trial is what counts, so there is nothing to look at on the way.
    validation = run.validation.model_copy(update={"every": None, "patience": None, "keep": None})
    return run.model_copy(update={"validation": validation})


def _outcome(
    bench: Bench, name: str, number: int, trial: Trial, subject: SuiteSubject, *, key: str
) -> dict[str, Any]:
    """What one trial scores on one subject: read, or made and written."""
    folder = _folder(bench, name, number, subject)
    stored = _stored(folder / MARKER, key)
    if stored is not None:
        return stored
    bench.announce(f"{name}: trial {number + 1} on {subject.name}")
    run = _run(bench, name, number, trial, subject)
    try:
        outcome = _tried(bench, run, subject, f"{name}, trial {number + 1}, {subject.name}")
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # whatever a method's code raises ends the trial, not the comparison
        outcome = {"status": "failed", "error": in_a_sentence(error)}
        bench.announce(f"{name}: trial {number + 1} failed on {subject.name}: {outcome['error']}")
    bench.mend_base()
    write_json(folder / MARKER, {"key": key, **outcome})
    shutil.rmtree(folder / "run", ignore_errors=True)
    return outcome


def _tried(bench: Bench, run: RunConfig, subject: SuiteSubject, name: str) -> dict[str, Any]:
    yardstick = bench.yardstick(subject)
    with trained(bench, run, subject, name) as (method, _):
        images = yardstick.pictures(bench.base, method.subject_phrase(run.data.class_noun or ""))
    point, means = yardstick.measure(images, step=0)
    return {
        "status": "finished",
        "point": asdict(point),
        "scores": means,
        "scale": asdict(yardstick.scale),
    }


def _stored(path: Path, key: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values = read_json(path)
        found_key = values["key"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Remove it, and it is made again."
        ) from error
    if found_key != key:
        raise CheckpointError(
            f"{path} is of other settings, photos or prompts. Remove it, and it is made again."
        )
    return {k: v for k, v in values.items() if k != "key"}
