"""Results of cells: scores of every picture, reference rows, remarks, and what was compared."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_prep.captions import fill_template
from finetune import __version__
from finetune.base import BasePipeline
from finetune.compare.measure import Album, Scorers, SubjectMeter
from finetune.compare.pictures import open_picture
from finetune.compare.plan import budget_text
from finetune.compare.planned import Planned
from finetune.compare.run import Made, photo_files
from finetune.compare.suite import SuiteSubject, uses_validation
from finetune.compare.summaries import completed
from finetune.guards import remarks_on_pictures
from finetune.results import (
    FROZEN_BASE,
    PHOTOS_AS_OUTPUTS,
    REAL_PHOTOS,
    REFERENCE_ROWS,
    BaseInfo,
    Budget,
    Cell,
    Photo,
    Prompt,
    Results,
    Row,
    Rule,
    Subject,
    Table,
)
from finetune.results import (
    Made as MadeBy,
)
from finetune.run import package_versions
from finetune.train import training_device
from finetune.wording import plural


def assembled(made: Made, base: BasePipeline, scorers: Scorers, *, command: str) -> Results:
    """The results of a comparison's cells."""
    planned = made.planned
    config = planned.config
    album = Album(config.output)
    masked = any(photo.mask is not None for s in planned.subjects for photo in s.photos)
    cells, remarks = list[Cell](), list[str]()
    for subject in planned.subjects:
        meter = SubjectMeter(scorers, album, subject.photos, subject.prompts, config.output)
        own = [cell for cell in made.cells if cell.subject == subject.name]
        references, reasons = reference_cells(
            meter,
            subject.name,
            photo_files(config, subject),
            root=config.output,
            seed=config.seeds[0],
            num_images=config.num_images,
        )
        remarks += reasons
        cells += [*references, *scored(own, meter, config.output)]
    remarks += odd_pictures(cells, config.output)
    draft = Results(
        title=_title(planned),
        made=made_by(command),
        base=base_info(base, dtype=config.base.dtype, size=planned.sampling.size),
        budget=_budget(planned),
        rule=_rule(planned),
        num_images=config.num_images,
        seeds=config.seeds,
        sampling=planned.sampling.model_dump(mode="json"),
        subjects=tuple(_subject(subject, planned) for subject in planned.subjects),
        encoders=scorers.infos(made.judges),
        scores=scorers.scores(masked=masked),
        rows=_rows(made),
        cells=tuple(cells),
        summaries=(),
        differences=(),
        curves=(),
        verdict=(),
        remarks=tuple(remarks),
        settings=config.model_dump(mode="json", exclude={"output"}),
    )
    return completed(draft)


def base_info(base: BasePipeline, *, dtype: str, size: int | None) -> BaseInfo:
    """The record of a base whose pictures have `size` pixels a side."""
    return BaseInfo(
        source=base.source,
        family=base.family.name,
        fingerprint=base.fingerprint,
        dtype=dtype,
        size=size or 0,
    )


def scored(cells: Sequence[Cell], meter: SubjectMeter, root: Path) -> list[Cell]:
    """Cells of one subject with the scores of their pictures."""
    base = {cell.seed: _files(cell, root) for cell in cells if cell.row == FROZEN_BASE}
    found = []
    for cell in cells:
        if cell.status == "finished":
            tables = meter.tables(_files(cell, root), base.get(cell.seed))
            cell = Cell.model_validate({**cell.model_dump(), "scores": tables})
        found.append(cell)
    return found


def _files(cell: Cell, root: Path) -> list[list[Path]]:
    return [[root / name for name in row] for row in cell.pictures]


def reference_cells(
    meter: SubjectMeter,
    subject: str,
    photos: Sequence[Path],
    *,
    root: Path,
    seed: int,
    num_images: int,
) -> tuple[list[Cell], list[str]]:
    """The rows of photos: alike to each other, and as if they were outputs; and why one has no number."""
    tables, reasons = meter.real_photos()
    names = [path.relative_to(root).as_posix() for path in photos]
    columns: list[tuple[str, ...]] = []
    place = 0
    for prompt in meter.prompts:
        count = num_images if prompt.role == "test" else 0
        columns.append(tuple(names[(place + i) % len(names)] for i in range(count)))
        place += count
    files = [[root / name for name in column] for column in columns]
    as_outputs: dict[str, Table] = {
        key: table for key, table in meter.tables(files, None).items() if "diversity" not in key
    }
    common: dict[str, Any] = {"subject": subject, "seed": seed, "status": "finished"}
    cells = [
        Cell.model_validate({**common, "row": REAL_PHOTOS, "scores": tables}),
        Cell.model_validate(
            {**common, "row": PHOTOS_AS_OUTPUTS, "scores": as_outputs, "pictures": columns}
        ),
    ]
    first = next(iter(reasons.values()), None)
    return cells, [] if first is None else [f"{subject}: {first}"]


def odd_pictures(cells: Sequence[Cell], root: Path) -> list[str]:
    """A sentence for each cell that holds black pictures or pictures of one colour."""
    found = []
    for cell in cells:
        if cell.row in (REAL_PHOTOS, PHOTOS_AS_OUTPUTS):
            continue
        images = [open_picture(path) for row in _files(cell, root) for path in row]
        found += [
            f"{cell.row}, {cell.subject}, seed {cell.seed}: {remark}"
            for remark in remarks_on_pictures(images)
        ]
    return found


def reference_rows(*, with_base: bool) -> list[Row]:
    """The rows that every comparison has."""
    names = [name for name in REFERENCE_ROWS if with_base or name != FROZEN_BASE]
    return [Row(name=name, kind="reference") for name in names]


def _rows(made: Made) -> tuple[Row, ...]:
    """All rows, references first."""
    planned, rows = made.planned, reference_rows(with_base=True)
    for name, run in planned.runs.items():
        noun = planned.config.methods[name].get("class_noun")
        tuned = made.tuned.get(name)
        settings = run.model_dump(
            mode="json", exclude={"base", "data", "output", "sampling", "samples", "tracking"}
        )
        del settings["training"]["seed"]
        settings["data"] = run.data.model_dump(
            mode="json", exclude={"photos", "more_photos", "class_noun"}
        )
        if run.training.max_seconds is not None:
            del settings["training"]["num_steps"]  # no limit
        error = None
        if tuned is not None and tuned.chosen is not None:
            for field, value in tuned.records[tuned.chosen].settings.items():
                section, _, key = field.partition(".")
                settings[section][key] = value
        elif tuned is not None:
            why = tuned.records[0].error
            error = f"No trial of {len(tuned.records)} succeeded, so it was not compared: {why}"
        rows.append(
            Row(
                name=name,
                kind="method",
                method=run.method.kind,
                settings=settings,
                class_noun=None if noun is None else _noun_text(noun),
                trials=() if tuned is None else tuned.records,
                chosen_trial=None if tuned is None else tuned.chosen,
                error=error,
            )
        )
    for name, by_subject in planned.artifacts.items():
        settings = {subject: str(row.path) for subject, row in by_subject.items()}
        rows.append(Row(name=name, kind="artifact", settings={"path": settings}))
    return tuple(rows)


def _noun_text(noun: Any) -> str:
    if isinstance(noun, str):
        return noun
    return ", ".join(f"{subject}: {word}" for subject, word in noun.items())


def _subject(subject: SuiteSubject, planned: Planned) -> Subject:
    files = photo_files(planned.config, subject)
    return Subject(
        name=subject.name,
        class_noun=subject.class_noun,
        kind=subject.kind,
        photos=tuple(
            Photo(
                file=path.relative_to(planned.config.output).as_posix(),
                sha256=photo.sha256,
                masked=photo.mask is not None,
            )
            for photo, path in zip(subject.photos, files, strict=True)
        ),
        prompts=subject.prompts,
        validation_prompts=tuple(
            Prompt(
                template=template,
                text=fill_template(
                    template,
                    subject=subject.class_noun,
                    class_noun=subject.class_noun,
                    field="validation.prompts",
                ),
                role="validation",
            )
            for template in sorted(subject.validation, key=lambda text: "{subject}" not in text)
        ),
    )


def _budget(planned: Planned) -> Budget | None:
    if not planned.runs:
        return None
    budget = planned.config.budget
    text = budget_text(planned.config, planned.runs)
    return Budget(kind=budget.kind, amount=budget.amount, text=text)


def _rule(planned: Planned) -> Rule | None:
    if not uses_validation(planned.config):
        return None
    limits = planned.config.validation.limits
    return Rule(text=limits.in_words(), limits=limits.model_dump())


def _title(planned: Planned) -> str:
    names = [subject.name for subject in planned.subjects]
    shown = names[0] if len(names) == 1 else f"{len(names)} subjects"
    return f"{plural(len(planned.rows), 'way')} to learn {shown}"


def made_by(command: str) -> MadeBy:
    """The command, versions and machine."""
    return MadeBy(
        command=command,
        made_by=f"finetune {__version__}",
        python=sys.version.split()[0],
        platform=platform.platform(),
        device=training_device().type,
        threads=torch.get_num_threads(),
        versions=package_versions(),
    )
