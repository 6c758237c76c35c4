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
    base_info,
    made_by,
    odd_pictures,
    reference_cells,
    reference_rows,
    scored,
)
from finetune.compare.config import SubjectKind
from finetune.compare.folders import Found, check_same_seeds, find_pictures
from finetune.compare.measure import Album, Scorers, SubjectMeter
from finetune.compare.pictures import make_pictures, open_picture, save_picture
from finetune.compare.plan import check_row_name
from finetune.compare.summaries import completed
from finetune.errors import ConfigError
from finetune.families.parts import dtype_of
from finetune.files import atomic_folder, require_new
from finetune.generate import SamplingConfig
from finetune.photos import ScoredPhoto, scored_photos
from finetune.results import (
    FROZEN_BASE,
    Cell,
    Photo,
    Prompt,
    Results,
    Row,
    Subject,
    write_results,
)


@dataclass(frozen=True)
class Wanted:
    """What is to be scored."""

    folders: Mapping[str, Path]
    """Row name -> folder of pictures."""
    name: str
    """What the subject is called, the same in all results that are to be joined."""
    kind: SubjectKind
    photos: DataConfig
    """The subject's photos and class noun."""
    prompts: tuple[Prompt, ...]
    base_pictures: Path | None
    """The base's pictures by the same tool at the same seeds, in the same layout."""


def open_given(path: Path) -> Image.Image:
    """A picture that another tool made. Raises `CheckpointError` if it cannot be read."""
    return open_picture(path, remedy="Replace it, or leave it out.")


def find_all(wanted: Wanted) -> tuple[dict[str, Found], Found | None]:
    """Pictures of every row and of the base, checked to be of the same seeds. Raises `UserError`."""
    taken: dict[str, object] = {}
    remedy = "rename the folder, as no row can have its name"
    for name, folder in wanted.folders.items():
        check_row_name(name, str(folder), taken, remedy=remedy)
        taken[name] = None
    tables: dict[str, Found] = {
        name: find_pictures(folder, wanted.prompts) for name, folder in wanted.folders.items()
    }
    base = None
    if wanted.base_pictures is not None:
        base = find_pictures(wanted.base_pictures, wanted.prompts)
    check_same_seeds(tables if base is None else {FROZEN_BASE: base, **tables})
    return tables, base


def check_base(tables: Mapping[str, Found], base: BasePipeline) -> None:
    """Raise `ConfigError` unless `base` can make a picture of the same noise beside every one given."""
    multiple = base.family.size_multiple(base.components)
    sizes = _sizes(tables)
    for name, found in sizes.items():
        for width, height in found:
            if width != height or width % multiple:
                raise ConfigError(
                    f"--base: {name} holds pictures of {width} × {height}, and {base.source} makes squares "
                    f"whose sides are multiples of {multiple}, so none of the same noise. Give "
                    "--base-pictures, or leave --base out."
                )
    if len({size for found in sizes.values() for size in found}) > 1:
        raise ConfigError(
            f"--base: {_in_words(sizes)}. The noise of one size is none of another: evaluate one size at a "
            "time, or give --base-pictures."
        )
    for name, table in tables.items():
        for picture in (picture for row in table for picture in row):
            if picture.seed is None:
                raise ConfigError(
                    f"--base: {picture.path} of {name} does not tell its seed, so the base's picture at "
                    "the same seed cannot be made. Name it NN-SEED.png, or give --base-pictures."
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

    `base` makes pictures at the seeds in the files' names, with `sampling` at the pictures' size, where none
    are given.
    """
    require_new(output, "--output")
    tables, of_base = find_all(wanted)
    if base is not None:
        check_base(tables, base)
    size = min(next(iter(_sizes(tables).values()))[0])
    sampling = sampling.model_copy(update={"size": size})
    photos = scored_photos(wanted.photos, size=size, field="--subject")
    with atomic_folder(output) as folder:
        cells = [_copied(name, table, wanted, folder) for name, table in tables.items()]
        if of_base is not None:
            cells.insert(0, _copied(FROZEN_BASE, of_base, wanted, folder))
        elif base is not None:
            cells.insert(0, _made(base, _longest(tables), wanted, folder, sampling))
        results = _results(
            wanted, photos, cells, folder, scorers=scorers, base=base, sampling=sampling,
            command=command, remarks=_size_remarks(tables),
        )  # fmt: skip
        write_results(results, folder)
    return results


def _sizes(tables: Mapping[str, Found]) -> dict[str, list[tuple[int, int]]]:
    """Row -> widths and heights in pixels, that of its first picture first."""
    return {
        name: list(dict.fromkeys(_size_of(p.path) for row in table for p in row))
        for name, table in tables.items()
    }


def _size_of(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError):
        return open_given(path).size  # says what is wrong with it


def _in_words(sizes: Mapping[str, list[tuple[int, int]]]) -> str:
    shown = (
        f"{name}: {', '.join(f'{w} × {h}' for w, h in sorted(found))}"
        for name, found in sizes.items()
    )
    return f"The pictures are not of one size ({'; '.join(shown)})"


def _size_remarks(tables: Mapping[str, Found]) -> list[str]:
    sizes = _sizes(tables)
    if len({size for found in sizes.values() for size in found}) == 1:
        return []
    return [
        f"{_in_words(sizes)}. Scorers see them all at their own, so what is lost by scaling differs."
    ]


def _longest(tables: Mapping[str, Found]) -> Found:
    """Of each prompt the row with the most pictures; seeds agree where there are several."""
    return [max(rows, key=len) for rows in zip(*tables.values(), strict=True)]


def _cell(row: str, table: Found, wanted: Wanted, folder: Path) -> Cell:
    known = all(picture.seed is not None for line in table for picture in line)
    seeds: list[list[Any]] = [[picture.seed for picture in line] for line in table] if known else []
    files = _places(row, table, wanted, folder)
    return Cell.model_validate(
        {
            "row": row,
            "subject": wanted.name,
            "seed": 0,
            "status": "finished",
            "pictures": [[p.relative_to(folder).as_posix() for p in line] for line in files],
            "noise_seeds": seeds,
        }
    )


def _places(row: str, table: Found, wanted: Wanted, folder: Path) -> list[list[Path]]:
    """Where a row's pictures are kept; no two subjects' at one place, so that results can be joined."""
    own = folder / "pictures" / row / wanted.name
    return [
        [own / f"{prompt:02d}-{index:02d}.png" for index in range(len(line))]
        for prompt, line in enumerate(table)
    ]


def _copied(row: str, table: Found, wanted: Wanted, folder: Path) -> Cell:
    """A row's pictures under names of ours, as PNG."""
    for line, paths in zip(table, _places(row, table, wanted, folder), strict=True):
        for picture, path in zip(line, paths, strict=True):
            save_picture(open_given(picture.path), path)
    return _cell(row, table, wanted, folder)


def _made(
    base: BasePipeline, table: Found, wanted: Wanted, folder: Path, sampling: SamplingConfig
) -> Cell:
    """The frozen base's pictures of the class, at the seeds of the pictures in `table`."""
    files = _places(FROZEN_BASE, table, wanted, folder)
    texts = [prompt.text for prompt, line in zip(wanted.prompts, table, strict=True) for _ in line]
    seeds = [int(picture.seed or 0) for line in table for picture in line]
    make_pictures(base, texts, seeds, [path for line in files for path in line], sampling)
    return _cell(FROZEN_BASE, table, wanted, folder)


def _subject(wanted: Wanted, photos: Sequence[ScoredPhoto], folder: Path) -> Subject:
    """The subject, with copies of its photos as they are scored."""
    kept = []
    for number, photo in enumerate(photos):
        path = folder / "photos" / wanted.name / f"{number:02d}.png"
        save_picture(photo.image, path)
        file = path.relative_to(folder).as_posix()
        kept.append(Photo(file=file, sha256=photo.sha256, masked=photo.mask is not None))
    return Subject(
        name=wanted.name,
        class_noun=str(wanted.photos.class_noun),
        kind=wanted.kind,
        photos=tuple(kept),
        prompts=wanted.prompts,
    )


def _dtype(base: BasePipeline) -> str:
    return str(dtype_of(base.denoiser)).removeprefix("torch.")


def _results(
    wanted: Wanted,
    photos: Sequence[ScoredPhoto],
    cells: Sequence[Cell],
    folder: Path,
    *,
    scorers: Scorers,
    base: BasePipeline | None,
    sampling: SamplingConfig,
    command: str,
    remarks: Sequence[str],
) -> Results:
    subject = _subject(wanted, photos, folder)
    num_images = max(len(line) for cell in cells for line in cell.pictures)
    meter = SubjectMeter(scorers, Album(folder), photos, wanted.prompts, folder)
    files = [folder / photo.file for photo in subject.photos]
    references, reasons = reference_cells(
        meter, subject.name, files, root=folder, seed=0, num_images=num_images
    )
    rows = reference_rows(with_base=any(cell.row == FROZEN_BASE for cell in cells))
    rows += [
        Row(name=name, kind="folder", settings={"path": {subject.name: str(path)}})
        for name, path in wanted.folders.items()
    ]
    every = [*references, *scored(cells, meter, folder)]
    draft = Results(
        title=f"Pictures of {subject.name} ({subject.class_noun})",
        made=made_by(command),
        base=None if base is None else base_info(base, dtype=_dtype(base), size=sampling.size),
        budget=None,
        rule=None,
        num_images=num_images,
        seeds=(0,),
        sampling={} if base is None else sampling.model_dump(mode="json"),
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
        settings={"photos": wanted.photos.photos, "class_noun": subject.class_noun},
    )
    return completed(draft)
