"""Scores of pictures that any tool made, beside the frozen base's at the same seeds where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from data_prep.config import DataConfig
from finetune.base import BasePipeline
from finetune.compare.assemble import (
    made_by,
    odd_pictures,
    reference_cells,
    reference_rows,
    scored,
)
from finetune.compare.folders import FoundPicture, check_same_seeds, find_pictures
from finetune.compare.measure import Album, Scorers, SubjectMeter
from finetune.compare.pictures import make_pictures, open_picture, save_picture
from finetune.compare.plan import check_row_name
from finetune.compare.summaries import completed
from finetune.errors import CheckpointError, ConfigError
from finetune.files import atomic_folder
from finetune.generate import SamplingConfig
from finetune.photos import ScoredPhoto, scored_photos
from finetune.results import (
    FROZEN_BASE,
    BaseInfo,
    Cell,
    Photo,
    Prompt,
    Results,
    Row,
    Subject,
    write_results,
)

Table = Sequence[Sequence[FoundPicture]]


@dataclass(frozen=True)
class Wanted:
    """What is to be scored."""

    folders: Mapping[str, Path]
    """Row name -> folder of pictures."""
    photos: DataConfig
    """The subject's photos and class noun."""
    prompts: tuple[Prompt, ...]
    base_pictures: Path | None
    """The base's pictures by the same tool at the same seeds, in the same layout."""


def open_given(path: Path) -> Image.Image:
    """A picture that another tool made. Raises `CheckpointError` if it cannot be read."""
    return open_picture(path, remedy="Replace it, or leave it out.")


def find_all(wanted: Wanted) -> tuple[dict[str, Table], Table | None]:
    """Pictures of every row and of the base, checked to be of the same seeds. Raises `UserError`."""
    taken: dict[str, object] = {}
    remedy = "rename the folder, as no row can have its name"
    for name, folder in wanted.folders.items():
        check_row_name(name, str(folder), taken, remedy=remedy)
        taken[name] = None
    tables: dict[str, Table] = {
        name: find_pictures(folder, wanted.prompts) for name, folder in wanted.folders.items()
    }
    base = None
    if wanted.base_pictures is not None:
        base = find_pictures(wanted.base_pictures, wanted.prompts)
    check_same_seeds(tables if base is None else {FROZEN_BASE: base, **tables})
    return tables, base


def check_new(output: Path) -> None:
    """Raise `CheckpointError` where results would be written over something."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(
            f"{output} is there already, and scores are written over nothing. Choose another folder with "
            "--output."
        )


def evaluated(
    wanted: Wanted,
    output: Path,
    *,
    scorers: Scorers,
    base: BasePipeline | None,
    sampling: SamplingConfig,
    command: str,
) -> Results:
    """Score all rows and write results and copies of the pictures into `output`, whole or not at all.

    `base` makes pictures at the seeds in the files' names, with `sampling`, where none are given.
    """
    check_new(output)
    tables, of_base = find_all(wanted)
    if base is not None:
        _require_seeds(tables)
    first = next(iter(tables.values()))
    size = _side(next(row[0].path for row in first if row))
    photos = scored_photos(wanted.photos, size=size, field="--subject")
    with atomic_folder(output) as folder:
        cells = [_copied(name, table, folder) for name, table in tables.items()]
        if of_base is not None:
            cells.insert(0, _copied(FROZEN_BASE, of_base, folder))
        elif base is not None:
            longest = _longest(tables)
            sized = sampling.model_copy(update={"size": sampling.size or size})
            cells.insert(0, _made(base, longest, wanted, folder, sized))
        results = _results(
            wanted, photos, cells, folder, scorers=scorers, base=base, sampling=sampling, size=size,
            command=command, remarks=_size_remarks(tables),
        )  # fmt: skip
        write_results(results, folder)
    return results


def _side(path: Path) -> int:
    return min(open_given(path).size)


def _size_remarks(tables: Mapping[str, Table]) -> list[str]:
    sizes = {
        name: sorted({open_given(p.path).size for row in table for p in row})
        for name, table in tables.items()
    }
    every = {size for found in sizes.values() for size in found}
    if len(every) == 1:
        return []
    shown = "; ".join(
        f"{name}: {', '.join(f'{w} × {h}' for w, h in found)}" for name, found in sizes.items()
    )
    return [
        f"The pictures are not of one size ({shown}). Scorers see them all at their own, so what is lost by "
        "scaling differs."
    ]


def _require_seeds(tables: Mapping[str, Table]) -> None:
    for name, table in tables.items():
        for row in table:
            for picture in row:
                if picture.seed is None:
                    raise ConfigError(
                        f"--base: {picture.path} of {name} does not tell its seed, so the base's picture at "
                        "the same seed cannot be made. Name it NN-SEED.png, or give --base-pictures."
                    )


def _longest(tables: Mapping[str, Table]) -> Table:
    """Of each prompt the row with the most pictures; seeds agree where there are several."""
    return [max(rows, key=len) for rows in zip(*tables.values(), strict=True)]


def _cell(row: str, files: Sequence[Sequence[Path]], table: Table, folder: Path) -> Cell:
    known = all(picture.seed is not None for line in table for picture in line)
    seeds: list[list[Any]] = [[picture.seed for picture in line] for line in table] if known else []
    return Cell.model_validate(
        {
            "row": row,
            "subject": "subject",
            "seed": 0,
            "status": "finished",
            "pictures": [[p.relative_to(folder).as_posix() for p in line] for line in files],
            "noise_seeds": seeds,
        }
    )


def _copied(row: str, table: Table, folder: Path) -> Cell:
    """A row's pictures under names of ours, as PNG."""
    files = _places(row, table, folder)
    for line, paths in zip(table, files, strict=True):
        for picture, path in zip(line, paths, strict=True):
            save_picture(open_given(picture.path), path)
    return _cell(row, files, table, folder)


def _places(row: str, table: Table, folder: Path) -> list[list[Path]]:
    return [
        [folder / "pictures" / row / f"{prompt:02d}-{index:02d}.png" for index in range(len(line))]
        for prompt, line in enumerate(table)
    ]


def _made(
    base: BasePipeline, table: Table, wanted: Wanted, folder: Path, sampling: SamplingConfig
) -> Cell:
    """The frozen base's pictures of the class, at the seeds of the pictures in `table`."""
    files = _places(FROZEN_BASE, table, folder)
    texts = [prompt.text for prompt, line in zip(wanted.prompts, table, strict=True) for _ in line]
    seeds = [int(picture.seed or 0) for line in table for picture in line]
    make_pictures(base, texts, seeds, [path for line in files for path in line], sampling)
    return _cell(FROZEN_BASE, files, table, folder)


def _results(
    wanted: Wanted,
    photos: Sequence[ScoredPhoto],
    cells: Sequence[Cell],
    folder: Path,
    *,
    scorers: Scorers,
    base: BasePipeline | None,
    sampling: SamplingConfig,
    size: int,
    command: str,
    remarks: Sequence[str],
) -> Results:
    files = [folder / "photos" / "subject" / f"{n:02d}.png" for n in range(len(photos))]
    for photo, path in zip(photos, files, strict=True):
        save_picture(photo.image, path)
    num_images = max(len(line) for cell in cells for line in cell.pictures)
    meter = SubjectMeter(scorers, Album(folder), photos, wanted.prompts, folder)
    references, reasons = reference_cells(
        meter, "subject", files, root=folder, seed=0, num_images=num_images
    )
    class_noun = str(wanted.photos.class_noun)
    subject = Subject(
        name="subject",
        class_noun=class_noun,
        kind="object",
        photos=tuple(
            Photo(file=path.relative_to(folder).as_posix(), sha256=photo.sha256,
                  masked=photo.mask is not None)
            for photo, path in zip(photos, files, strict=True)
        ),
        prompts=wanted.prompts,
    )  # fmt: skip
    info = None
    if base is not None:
        info = BaseInfo(
            source=base.source,
            family=base.family.name,
            fingerprint=base.fingerprint,
            dtype="as loaded",
            size=size,
        )
    with_base = any(cell.row == FROZEN_BASE for cell in cells)
    rows = reference_rows(with_base=with_base)
    rows += [
        Row(name=name, kind="folder", settings={"folder": str(path)})
        for name, path in wanted.folders.items()
    ]
    every = [*references, *scored(cells, meter, folder)]
    draft = Results(
        title=f"Pictures of a {class_noun}",
        made=made_by(command),
        base=info,
        budget=None,
        rule=None,
        num_images=num_images,
        seeds=(0,),
        sampling=sampling.model_dump(mode="json") if base is not None else {},
        subjects=(subject,),
        encoders=scorers.infos(),
        scores=scorers.scores(masked=any(photo.mask is not None for photo in photos)),
        rows=tuple(rows),
        cells=tuple(every),
        summaries=(),
        differences=(),
        curves=(),
        verdict=(),
        remarks=(*reasons, *remarks, *odd_pictures(every, folder)),
        settings={"photos": wanted.photos.photos, "class_noun": class_noun},
    )
    return completed(draft)
