"""What a comparison is of, and whether it still is: rows and seeds may be added, nothing else may change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.config import DataConfig
from finetune.base import BasePipeline
from finetune.compare.config import CompareConfig
from finetune.compare.plan import row_run
from finetune.compare.suite import SuiteSubject, uses_validation
from finetune.config import MethodLoader
from finetune.errors import CheckpointError
from finetune.files import read_json, sha256_of
from finetune.generate import SamplingConfig
from finetune.photos import scored_photos

NOTE = "comparison.json"
VERSION = 2
_PHOTO = (
    ("pixels", "photo"),
    ("mask", "mask of"),
    ("caption", "caption of"),
    ("repeats", "number of repeats of"),
)
"""What is remembered of a photo, and what it is called."""
_ELSEWHERE = {"base", "data", "output", "sampling", "samples", "tracking"}
"""Sections of a run that are compared elsewhere, or shape nothing."""


def row_identity(
    config: CompareConfig,
    name: str,
    subjects: tuple[SuiteSubject, ...],
    load_method: MethodLoader,
    *,
    size: int,
) -> dict[str, Any]:
    """What shapes a method's row on every subject, at any seed and trial."""
    per_subject = {}
    for subject in subjects:
        run = row_run(config, name, subject, 0, Path("run"), load_method)
        values = run.model_dump(mode="json", exclude=_ELSEWHERE)
        del values["training"]["seed"]
        values["validation"] = {
            key: values["validation"][key] for key in ("every", "patience", "keep")
        }
        values["class_noun"] = run.data.class_noun
        if run.prior.photos is not None:
            own = DataConfig(photos=run.prior.photos, background=run.data.background)
            photos = scored_photos(own, size=size, field="prior.photos")
            values["prior"]["photos"] = [photo.sha256 for photo in photos]
        per_subject[subject.name] = values
    return per_subject


def artifact_identity(path: Path) -> dict[str, str]:
    """Hashes of an artifact's files, relative to its folder."""
    if path.is_file():
        return {path.name: sha256_of(path)}
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != ".lock")
    return {file.relative_to(path).as_posix(): sha256_of(file) for file in files}


def identity_of(
    config: CompareConfig,
    base: BasePipeline,
    subjects: tuple[SuiteSubject, ...],
    rows: Mapping[str, Any],
    sampling: SamplingConfig,
) -> dict[str, Any]:
    """All that shapes a comparison's pictures; `rows` by name."""
    validation = None
    if uses_validation(config):
        names = config.validation_scorers.resolved(config.base.source)
        validation = {
            **config.validation.model_dump(mode="json", exclude={"prompts", "scorers"}),
            "scorers": names.model_dump(mode="json"),
        }
    return {
        "version": VERSION,
        "base": base.fingerprint,
        "sampling": sampling.model_dump(mode="json"),
        "num_images": config.num_images,
        "seed": config.seed,
        "budget": config.budget.model_dump(mode="json"),
        "tune": None if config.tune is None else config.tune.model_dump(mode="json"),
        "validation": validation,
        "subjects": {subject.name: subject.identity() for subject in subjects},
        "rows": dict(rows),
        "seeds": list(config.seeds),
    }


def read_identity(folder: Path) -> dict[str, Any] | None:
    """What the comparison in a folder is of; None if there is none. Raises `CheckpointError`."""
    path = folder / NOTE
    if not path.is_file():
        return None
    try:
        values = read_json(path)
        if values["version"] != VERSION:
            raise ValueError(f"it is of version {values['version']}")
        return dict(values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Choose another folder with output=..., or --overwrite."
        ) from error


def check_same(stored: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise `CheckpointError`, naming everything that changed, unless only rows or seeds were added."""
    found = []
    for name in stored["rows"]:
        if name not in now["rows"]:
            found.append(f"the row {name} is gone")
    for seed in stored["seeds"]:
        if seed not in now["seeds"]:
            found.append(f"the training seed {seed} is gone")
    if stored["tune"] and stored["seeds"][0] != now["seeds"][0]:
        found.append("the first training seed, which rows were tuned with, is another")
    rows = {name: now["rows"][name] for name in stored["rows"] if name in now["rows"]}
    left = {**stored, "rows": {name: stored["rows"][name] for name in rows}, "seeds": []}
    found += _changes(left, {**now, "rows": rows, "seeds": []})
    if found:
        lines = "\n  ".join(found)
        raise CheckpointError(
            f"{folder} holds a comparison of something else, so it cannot go on with this. Undo the changes, "
            f"choose another folder (output=...), or start again with --overwrite:\n  {lines}"
        )


def _changes(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """What differs, by dotted name; photos by the names of their files."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {**old, **new}:
            place = f"{where}.{key}" if where else str(key)
            if key not in old or key not in new:
                yield f"{place} is {'new' if key in new else 'gone'}"
            elif key == "photos" and where.startswith("subjects."):
                yield from _photo_changes(old[key], new[key], where.removeprefix("subjects."))
            else:
                yield from _changes(old[key], new[key], place)
    elif old != new:
        yield (
            "base: the weights are different" if where == "base" else f"{where}: {old!r} → {new!r}"
        )


def _photo_changes(old: list[Any], new: list[Any], subject: str) -> Iterator[str]:
    before = {photo["name"]: photo for photo in old}
    after = {photo["name"]: photo for photo in new}
    for name in {**before, **after}:
        if name not in before or name not in after:
            yield f"{subject}: the photo {name} is {'new' if name in after else 'gone'}"
            continue
        for key, what in _PHOTO:
            if before[name][key] != after[name][key]:
                yield f"{subject}: the {what} {name} has changed"
    if before.keys() == after.keys() and list(before) != list(after):
        yield f"{subject}: the photos come in another order"
