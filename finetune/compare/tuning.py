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
from finetune.compare.cells import Bench, in_a_sentence, keep_traceback, trained
from finetune.compare.plan import Trial, row_run, trials_of
from finetune.compare.suite import SuiteSubject
from finetune.config import RunConfig
from finetune.errors import CheckpointError
from finetune.files import lacks_room, read_json, write_json
from finetune.results import Trial as TrialRecord
from finetune.yardstick import Yardstick

MARKER, CHOSEN = "trial.json", "chosen.json"


@dataclass(frozen=True)
class Tuned:
    """What tuning a row came to."""

    records: tuple[TrialRecord, ...]
    chosen: int | None
    """None if every trial failed."""
    trial: Trial | None


def tune_row(
    bench: Bench,
    name: str,
    subjects: tuple[SuiteSubject, ...],
    *,
    key: str,
    retry_failed: bool = False,
) -> Tuned:
    """Try a row's settings, or read what earlier calls found, failures too unless `retry_failed`."""
    assert bench.config.tune is not None
    row = _TunedRow(bench, name, key, retry_failed)
    trials = trials_of(bench.config.tune)
    outcomes = [row.outcomes(number, trial, subjects) for number, trial in enumerate(trials)]
    whole = [found for found in outcomes if found[-1]["status"] == "finished"]
    records, points = [], []
    limits = bench.config.validation.limits
    scale = _mean_scale([Scale(**outcome["scale"]) for found in whole for outcome in found])
    for number, (trial, found) in enumerate(zip(trials, outcomes, strict=True)):
        settings = trial.settings(row.run(number, trial, subjects[0]))
        if found not in whole:
            error = found[-1]["error"]
            records.append(TrialRecord(settings=settings, status="failed", error=error))
            continue
        points.append(_mean_point([Point(**o["point"]) for o in found], number))
        records.append(_record(settings, found, points[-1], scale, limits))
    best = least_bad(points, scale, limits)
    chosen = None if best is None else best.step
    row.settle(chosen)
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


@dataclass(frozen=True)
class _TunedRow:
    """A row's trials on the disk."""

    bench: Bench
    name: str
    key: str
    retry_failed: bool

    @property
    def folder(self) -> Path:
        return self.bench.root / "tuning" / self.name

    def _place(self, number: int, subject: SuiteSubject) -> Path:
        return self.folder / f"trial-{number:02d}" / subject.name

    def run(self, number: int, trial: Trial, subject: SuiteSubject) -> RunConfig:
        """What a trial trains on a subject."""
        config, output = self.bench.config, self._place(number, subject) / "run"
        seed, load_method = config.seeds[0], self.bench.load_method
        run = row_run(config, self.name, subject, seed, output, load_method, trial=trial)
        # The end of a trial is what counts, so there is nothing to look at on the way.
        validation = run.validation.model_copy(
            update={"every": None, "patience": None, "keep": None}
        )
        return run.model_copy(update={"validation": validation})

    def outcomes(
        self, number: int, trial: Trial, subjects: tuple[SuiteSubject, ...]
    ) -> list[dict[str, Any]]:
        """What a trial scores on each subject, up to the first on which it fails."""
        found = []
        for subject in subjects:
            found.append(self._outcome(number, trial, subject))
            if found[-1]["status"] == "failed":
                break
        return found

    def _outcome(self, number: int, trial: Trial, subject: SuiteSubject) -> dict[str, Any]:
        """What a trial scores on one subject: read, or made and written."""
        bench, folder = self.bench, self._place(number, subject)
        stored = _stored(folder / MARKER, self.key)
        if stored is not None and stored["status"] == "failed" and self.retry_failed:
            shutil.rmtree(folder)
            stored = None
        if stored is not None:
            return stored
        bench.announce(f"{self.name}: trial {number + 1} on {subject.name}")
        yardstick = bench.yardstick(subject)  # what is wrong with it is not the trial's failure
        run = self.run(number, trial, subject)
        try:
            title = f"{self.name}, trial {number + 1}, {subject.name}"
            outcome = _tried(bench, run, subject, yardstick, title)
        except (
            Exception
        ) as error:  # whatever a method's code raises ends the trial, not the comparison
            if isinstance(error, CheckpointError) or lacks_room(error):
                raise
            outcome = {"status": "failed", "error": in_a_sentence(error)}
            keep_traceback(error, folder)
            bench.announce(
                f"{self.name}: trial {number + 1} failed on {subject.name}: {outcome['error']}"
            )
        bench.mend_base()
        write_json(folder / MARKER, {"key": self.key, **outcome})
        shutil.rmtree(folder / "run", ignore_errors=True)
        return outcome

    def settle(self, chosen: int | None) -> None:
        """Note which trial is ranked; cells of a former one, which another has overtaken, are removed."""
        note = self.folder / CHOSEN
        stored = _stored(note, self.key)
        if stored == {"trial": chosen}:
            return
        if stored is not None and stored["trial"] is not None:
            self.bench.announce(
                f"{self.name}: another trial is the best now, so its cells are made anew"
            )
            shutil.rmtree(self.bench.root / "cells" / self.name, ignore_errors=True)
        write_json(note, {"key": self.key, "trial": chosen})


def _tried(
    bench: Bench, run: RunConfig, subject: SuiteSubject, yardstick: Yardstick, name: str
) -> dict[str, Any]:
    with trained(bench, run, subject, name) as (method, _), bench.memory_advice():
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
