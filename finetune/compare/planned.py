"""A comparison that has been checked: subjects, rows, artifacts; nothing given can be wrong any more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.base import BasePipeline
from finetune.compare.config import CompareConfig
from finetune.compare.identity import artifact_identity, identity_of, row_identity
from finetune.compare.pictures import Place, sampling_of
from finetune.compare.plan import check_nouns, method_runs, row_run
from finetune.compare.suite import SuiteSubject, load_suite
from finetune.config import MethodLoader, RunConfig
from finetune.errors import ArtifactError, ConfigError
from finetune.export.imported import Source, attached, open_source
from finetune.generate import SamplingConfig, check_pictures
from finetune.run import check_family, preflight


@dataclass(frozen=True)
class ArtifactRow:
    """An artifact for one subject of the suite."""

    path: Path
    source: Source
    phrase: str | None


@dataclass(frozen=True)
class Planned:
    """A comparison that has been checked: nothing given can be wrong any more."""

    config: CompareConfig
    subjects: tuple[SuiteSubject, ...]
    sampling: SamplingConfig
    runs: Mapping[str, RunConfig]
    """Row -> its run on the first subject at the first seed, before tuning."""
    artifacts: Mapping[str, Mapping[str, ArtifactRow]]
    """Row -> subject -> artifact."""
    rows: Mapping[str, Any]
    """Row -> what it is of."""
    identity: Mapping[str, Any]


def plan(config: CompareConfig, base: BasePipeline, load_method: MethodLoader) -> Planned:
    """Check all of a comparison before anything is written. Raises `UserError`."""
    size = config.data.size or base.family.default_size(base.components)
    method_runs(config, load_method)
    subjects = load_suite(config, size=size)
    check_nouns(config)
    runs: dict[str, RunConfig] = {}
    for name in config.methods:
        for subject in subjects:
            output = Place(name, subject.name, config.seeds[0]).folder(config.output) / "run"
            run = row_run(config, name, subject, config.seeds[0], output, load_method)
            runs.setdefault(name, run)
            method = load_method(run.method.kind)(run.method)
            check_family(method, base.family, source=base.source, kind=run.method.kind)
            method.subject_phrase(run.data.class_noun or "")
            preflight(base, method, run)
    sampling = _sampling(config, runs, size)
    check_pictures(sampling, base)
    artifacts = _artifacts(config, subjects, base, load_method)
    rows: dict[str, Any] = {
        name: row_identity(config, name, subjects, load_method, size=size)
        for name in config.methods
    }
    for name, by_subject in artifacts.items():
        rows[name] = {
            subject: {"files": artifact_identity(row.source.path), "phrase": row.phrase}
            for subject, row in by_subject.items()
        }
    identity = identity_of(config, base, subjects, rows, sampling)
    # As it reads back from the file.
    return Planned(
        config, subjects, sampling, runs, artifacts, rows, json.loads(json.dumps(identity))
    )


def _sampling(config: CompareConfig, runs: Mapping[str, RunConfig], size: int) -> SamplingConfig:
    if runs:
        return sampling_of(next(iter(runs.values())), size)
    given = SamplingConfig.model_validate(config.shared.get("sampling", {}))
    return given.model_copy(update={"size": given.size or size})


def _artifacts(
    config: CompareConfig,
    subjects: tuple[SuiteSubject, ...],
    base: BasePipeline,
    load_method: MethodLoader,
) -> dict[str, dict[str, ArtifactRow]]:
    """Open every artifact, and put it onto the base once, so that mistakes come out now."""
    found: dict[str, dict[str, ArtifactRow]] = {}
    for name, row in config.artifacts.items():
        if len(subjects) > 1 and "{name}" not in row.path:
            raise ConfigError(
                f"artifacts.{name}.path: an artifact shows one subject, and here are {len(subjects)}. Write "
                "{name} where the subject's name stands in the path."
            )
        found[name] = {}
        for subject in subjects:
            path = Path(row.path.replace("{name}", subject.name))
            source = open_source(path)
            if row.subject is None and source.subject is None:
                raise ConfigError(
                    f"artifacts.{name}.subject is not set, and {path} does not say what stands for its "
                    "subject. Give the words, for instance 'sks dog'."
                )
            if source.note is not None and source.note.base_fingerprint != base.fingerprint:
                raise ArtifactError(f"artifacts.{name}: {path} was trained on another base.")
            with attached(source, base, load_method):
                pass
            found[name][subject.name] = ArtifactRow(path, source, row.subject)
    return found
