"""The cells of a comparison: what is not there yet is made, in a folder that holds nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.artifact import artifact_bytes
from finetune.base import BasePipeline, load_base
from finetune.compare.cells import (
    Bench,
    cell_key,
    failed_cell,
    method_cell,
    read_cell,
    shown_cell,
)
from finetune.compare.config import CompareConfig
from finetune.compare.identity import (
    NOTE,
    check_same,
    read_identity,
)
from finetune.compare.pictures import Place, save_picture
from finetune.compare.plan import row_run, with_trial
from finetune.compare.planned import ArtifactRow, Planned
from finetune.compare.suite import SuiteSubject
from finetune.compare.tuning import Tuned, tune_row
from finetune.config import MethodLoader
from finetune.errors import CheckpointError
from finetune.export.imported import attached, bases_of, with_token
from finetune.files import LOCK, claimed, lacks_room, partial_of, write_json
from finetune.results import FROZEN_BASE, RESULTS, Cell
from finetune.train import training_device
from finetune.yardstick import Judges


def check_output(planned: Planned, *, overwrite: bool) -> None:
    """Raise `CheckpointError` where a comparison would be lost, or is another one."""
    folder = planned.config.output
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file. Choose another folder with output=...")
    if not folder.is_dir():
        return
    stored = None if overwrite else read_identity(folder)
    if stored is not None:
        check_same(stored, planned.identity, folder)
        return
    killed_at_once = {LOCK, partial_of(folder / NOTE).name}
    names = {path.name for path in folder.iterdir()} - killed_at_once
    if not names:
        return
    if not overwrite:
        raise CheckpointError(
            f"{folder} is not empty and holds no comparison that could go on (no {NOTE}). Choose another "
            "folder with output=..., or replace a comparison with --overwrite."
        )
    if not names & {NOTE, RESULTS}:
        raise CheckpointError(
            f"{folder} is not empty and is no comparison, so --overwrite will not delete it. Choose another "
            "folder with output=..."
        )


def empty(folder: Path) -> None:
    """Remove a comparison but for its lock; its note goes last, so that a kill leaves a comparison."""
    last = (LOCK, NOTE)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in last:
            path.unlink()
    (folder / NOTE).unlink(missing_ok=True)


@dataclass(frozen=True)
class Made:
    """All cells of a comparison."""

    planned: Planned
    cells: tuple[Cell, ...]
    tuned: Mapping[str, Tuned]
    judges: Judges | None
    """Networks that judged on validation prompts."""


def make_cells(
    planned: Planned,
    base: BasePipeline,
    load_method: MethodLoader,
    *,
    judges: Judges | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    announce: Callable[[str], None] = print,
) -> Made:
    """Make every cell that is not there yet; one that fails is noted and the others go on.

    `judges` are needed where anything is measured on validation prompts. Raises `CheckpointError` if the
    folder cannot be written or holds another comparison. Ends the program with a signal's exit code when one
    came; the same call then goes on.
    """
    config = planned.config
    folder = config.output
    check_output(planned, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(claimed(folder))
        check_output(planned, overwrite=overwrite)
        if overwrite:
            empty(folder)
        write_json(folder / NOTE, planned.identity)
        _copy_photos(planned)
        device = training_device()
        offload = planned.sampling.cpu_offload and device.type != "cpu"
        base.to(device, resting=base.modules if offload else ())
        bench = Bench(base, config, planned.sampling, load_method, announce, judges)
        tuned: dict[str, Tuned] = {}
        if config.tune is not None:
            for name in config.methods:
                key = cell_key(**_common(planned), row=planned.rows[name])
                tuned[name] = tune_row(
                    bench, name, planned.subjects, key=key, retry_failed=retry_failed
                )
        cells: list[Cell] = []
        for seed in config.seeds:
            for subject in planned.subjects:
                cells += _cells_of(bench, planned, subject, seed, tuned, retry_failed)
    return Made(planned, tuple(cells), tuned, judges)


def _common(planned: Planned) -> dict[str, Any]:
    names = ("base", "sampling", "num_images", "seed", "budget", "tune", "validation", "subjects")
    return {name: planned.identity[name] for name in names}


def _copy_photos(planned: Planned) -> None:
    for subject in planned.subjects:
        for photo, path in zip(subject.photos, photo_files(planned.config, subject), strict=True):
            if not path.is_file():
                save_picture(photo.image, path)


def photo_files(config: CompareConfig, subject: SuiteSubject) -> list[Path]:
    """Copies of a subject's photos as they are scored."""
    folder = config.output / "photos" / subject.name
    return [folder / f"{number:02d}.png" for number in range(len(subject.photos))]


def _cells_of(
    bench: Bench,
    planned: Planned,
    subject: SuiteSubject,
    seed: int,
    tuned: Mapping[str, Tuned],
    retry_failed: bool,
) -> list[Cell]:
    """All rows of one subject at one seed: frozen base, methods, artifacts."""
    common = {**_common(planned), "subjects": planned.identity["subjects"][subject.name]}
    cells = []

    def cell(row: str, make: Callable[[Place, str], Cell], what: Any = None) -> None:
        place = Place(row, subject.name, seed)
        key = cell_key(**common, row=what, training_seed=seed)
        found = read_cell(place, bench.root, key)
        if found is not None and found.status == "failed" and retry_failed:
            shutil.rmtree(place.folder(bench.root))
            found = None
        if found is None:
            bench.announce(f"{subject.name}, seed {seed}: {row}")
            if row in planned.config.methods and planned.config.validation.every is not None:
                bench.yardstick(subject)  # what is wrong with it is not the row's failure
            found = _guarded(bench, place, make, key)
        cells.append(found)

    cell(
        FROZEN_BASE,
        lambda place, key: shown_cell(bench, place, subject, phrase=subject.class_noun, key=key),
    )
    for name in planned.config.methods:
        chosen = tuned.get(name)
        if chosen is not None and chosen.trial is None:
            continue

        def trained_cell(place: Place, key: str) -> Cell:
            output = place.folder(bench.root) / "run"
            run = row_run(bench.config, place.row, subject, seed, output, bench.load_method)
            picked = tuned.get(place.row)
            if picked is not None and picked.trial is not None:
                run = with_trial(run, picked.trial)
            return method_cell(bench, place, subject, run, key=key)

        what = planned.rows[name][subject.name]
        cell(name, trained_cell, {"row": what, "trial": chosen and chosen.chosen})
    for name, by_subject in planned.artifacts.items():
        row = by_subject[subject.name]

        def artifact_cell(place: Place, key: str, row: ArtifactRow = row) -> Cell:
            return _shown_artifact(bench, place, subject, row, key)

        cell(name, artifact_cell, planned.rows[name][subject.name])
    return cells


def _guarded(bench: Bench, place: Place, make: Callable[[Place, str], Cell], key: str) -> Cell:
    """Make a cell; what goes wrong in it is noted, but a full disk, or the frozen base, stops everything."""
    try:
        return make(place, key)
    except CheckpointError as error:  # what is half done is not lost to a failure
        raise CheckpointError(
            f"{error}\nOr remove {place.folder(bench.root)}, and only that is made anew."
        ) from error
    except Exception as error:  # whatever a method's code raises must not end the others
        if place.row == FROZEN_BASE or lacks_room(error):
            raise
        bench.mend_base()
        cell = failed_cell(bench, place, error, key=key)
        bench.announce(f"{place.row} failed on {place.subject}, seed {place.seed}: {cell.error}")
        return cell


def _shown_artifact(
    bench: Bench, place: Place, subject: SuiteSubject, row: ArtifactRow, key: str
) -> Cell:
    base = bench.base
    if row.source.kind == "pipeline":
        base = load_base(bases_of([row.source], bench.base.source)[0]).to(bench.base.device)
    with attached(row.source, base, bench.load_method) as note:
        phrase = with_token(row.phrase or note.subject, note)
        size = row.path.stat().st_size if row.path.is_file() else artifact_bytes(row.source.path)
        return shown_cell(
            bench, place, subject, phrase=phrase, key=key, base=base, artifact_size=size
        )
