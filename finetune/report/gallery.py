"""What the picture tables hold: which picture stands where, what is said of it, what fills holes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from data_prep.captions import fill_template
from data_prep.errors import DataError
from finetune.report.pictures import Missing, Picture, PictureBook
from finetune.results import FROZEN_BASE, Cell, CurvePoint, Prompt, Results, Role, Row, Subject
from finetune.wording import decimal, plural

ROLES: Final[dict[Role, str]] = {
    "test": "about the subject",
    "class": "about its class",
    "unrelated": "about neither",
}


@dataclass(frozen=True)
class Variant:
    """One picture of each place in a table: a training seed and a number among the prompt's pictures."""

    seed: int
    picture: int
    label: str


@dataclass(frozen=True)
class Tile:
    """One picture of a table, or why there is none."""

    picture: Picture | Missing
    variant: int
    alt: str
    heading: str
    """Above the enlarged picture: whose it is."""
    prompt: str
    """As this row was asked, or what else the picture is of."""
    notes: str
    """Its own scores and its noise seed."""


@dataclass(frozen=True)
class Line:
    """One row of a table."""

    name: str
    phrase: str | None
    """What stands for the subject in its prompts."""
    is_base: bool
    cells: tuple[tuple[Tile, ...], ...]
    """Per column one tile a variant; empty where the row has none at all."""
    failure: str | None = None
    """Why the row has no pictures."""


@dataclass(frozen=True)
class Gallery:
    """The pictures of one subject."""

    subject: Subject
    groups: tuple[tuple[str, int], ...]
    """What neighbouring columns are about, and how many they are."""
    variants: tuple[Variant, ...]
    """Those on the page."""
    photos: tuple[Tile, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Frame:
    """One checkpoint in a strip."""

    tile: Tile
    recommended: bool
    overfits: bool


@dataclass(frozen=True)
class Strip:
    """A row's pictures along training."""

    name: str
    frames: dict[int, Frame]
    """By step."""


@dataclass(frozen=True)
class StripTable:
    """The strips of one subject."""

    subject: str
    prompt: str
    steps: tuple[int, ...]
    strips: tuple[Strip, ...]


def shown_rows(results: Results) -> list[Row]:
    """The rows with pictures of their own: the frozen base, then what is compared."""
    return [row for row in results.rows if row.kind != "reference" or row.name == FROZEN_BASE]


def variants(results: Results) -> list[Variant]:
    """Every training seed with every picture of a prompt."""
    return [
        Variant(
            seed,
            picture,
            f"picture {picture + 1}"
            if len(results.seeds) == 1
            else f"training seed {seed}, picture {picture + 1}",
        )
        for seed in results.seeds
        for picture in range(results.num_images)
    ]


def shelves(results: Results) -> list[list[str]]:
    """The files that the page wants: what it cannot do without, then further variants one by one."""
    wanted = [photo.file for subject in results.subjects for photo in subject.photos]
    wanted += [point.pictures[0][0] for cell in _strip_cells(results) for point in _drawn(cell)]
    per_variant = [
        [
            pictures[variant.picture]
            for row in shown_rows(results)
            for cell in results.cells_of(row.name)
            if cell.seed == variant.seed
            for pictures in cell.pictures
            if variant.picture < len(pictures)
        ]
        for variant in variants(results)
    ]
    first = per_variant[0] if per_variant else []
    return [wanted + first, *per_variant[1:]]


def galleries(results: Results, book: PictureBook) -> list[Gallery]:
    """A gallery for each subject, with as many variants as the book shows."""
    shown = tuple(variants(results)[: book.num_shelves])
    return [_gallery(results, subject, shown, book) for subject in results.subjects]


def _gallery(
    results: Results, subject: Subject, shown: Sequence[Variant], book: PictureBook
) -> Gallery:
    counts: dict[str, int] = {}
    for prompt in subject.prompts:
        counts[ROLES[prompt.role]] = counts.get(ROLES[prompt.role], 0) + 1
    photos = tuple(
        Tile(
            book[photo.file],
            0,
            f"Photo {number} of {subject.name}",
            f"{subject.name}: photo {number}",
            "One of the photos that all methods learn from.",
            "with a mask" if photo.masked else "",
        )
        for number, photo in enumerate(subject.photos, start=1)
    )
    lines = tuple(_line(results, row, subject, shown, book) for row in shown_rows(results))
    return Gallery(subject, tuple(counts.items()), tuple(shown), photos, lines)


def _line(
    results: Results, row: Row, subject: Subject, shown: Sequence[Variant], book: PictureBook
) -> Line:
    cells = {cell.seed: cell for cell in results.cells_of(row.name) if cell.subject == subject.name}
    finished = [cell for cell in cells.values() if cell.status == "finished"]
    phrase = next((cell.subject_phrase for cell in finished if cell.subject_phrase), None)
    if not finished:
        why = [cell.error for cell in cells.values() if cell.error] or [
            row.error or "It was not run."
        ]
        return Line(row.name, phrase, row.name == FROZEN_BASE, (), why[0])
    tiles = tuple(
        tuple(
            _tile(results, row, subject, column, number, variant, cells.get(variant.seed), book)
            for number, variant in enumerate(shown)
        )
        for column in range(len(subject.prompts))
    )
    return Line(row.name, phrase, row.name == FROZEN_BASE, tiles)


def _tile(
    results: Results,
    row: Row,
    subject: Subject,
    column: int,
    number: int,
    variant: Variant,
    cell: Cell | None,
    book: PictureBook,
) -> Tile:
    prompt = subject.prompts[column]
    asked = as_asked(prompt, cell, subject)
    picture: Picture | Missing = Missing("not run at this training seed")
    notes = ""
    if cell is not None and cell.status == "failed":
        picture = Missing("failed")
    elif cell is not None:
        files = cell.pictures[column] if column < len(cell.pictures) else ()
        picture = Missing("no picture")
        if variant.picture < len(files):
            picture = book[files[variant.picture]]
        notes = _notes(results, cell, column, variant.picture)
    heading = f"{row.name} · {subject.name} · {variant.label}"
    return Tile(
        picture, number, f"{row.name}: {prompt.text}, {variant.label}", heading, asked, notes
    )


def as_asked(prompt: Prompt, cell: Cell | None, subject: Subject) -> str:
    """The prompt as the model was given it: with what this row calls the subject, and the suite's class noun.

    A row may call the subject by a noun of its own; pictures of the class are of the suite's all the same.
    """
    phrase = cell.subject_phrase if cell is not None else None
    noun = subject.class_noun
    try:
        return fill_template(
            prompt.template, subject=phrase or noun, class_noun=noun, field="prompt"
        )
    except DataError:  # a template of another version: what it was scored as is close enough
        return prompt.text


def _notes(results: Results, cell: Cell, column: int, picture: int) -> str:
    """The scores of one picture and its noise seed."""
    parts = []
    for score in results.scores:
        table = cell.scores.get(score.key, ())
        values = table[column] if column < len(table) else ()
        if not score.headline or score.id == "diversity" or picture >= len(values):
            continue
        if score.id != "copy_share":
            parts.append(f"{score.short_title} {decimal(values[picture])}")
        elif values[picture]:
            parts.append("passes for a copy of a photo")
    seeds = cell.noise_seeds[column] if column < len(cell.noise_seeds) else ()
    if picture < len(seeds):
        parts.append(f"noise seed {seeds[picture]}")
    return " · ".join(parts)


def _strip_cells(results: Results) -> list[Cell]:
    """Cells that are shown along training: each row's first with a curve, subject by subject."""
    cells: dict[tuple[str, str], Cell] = {}
    for cell in results.cells:
        if _drawn(cell):
            cells.setdefault((cell.subject, cell.row), cell)
    return list(cells.values())


def _drawn(cell: Cell) -> list[CurvePoint]:
    """The checkpoints of a cell that have a picture."""
    return [point for point in cell.curve if point.pictures and point.pictures[0]]


def strip_tables(results: Results, book: PictureBook) -> list[StripTable]:
    """For each subject with learning curves the first validation prompt's first picture at every step."""
    tables = []
    cells = _strip_cells(results)
    for subject in results.subjects:
        own = [cell for cell in cells if cell.subject == subject.name]
        if not own:
            continue
        asked = subject.validation_prompts[0].text if subject.validation_prompts else ""
        steps = sorted({point.step for cell in own for point in _drawn(cell)})
        strips = tuple(_strip(cell, subject, book) for cell in own)
        tables.append(StripTable(subject.name, asked, tuple(steps), strips))
    return tables


def _strip(cell: Cell, subject: Subject, book: PictureBook) -> Strip:
    frames, prompts = {}, subject.validation_prompts[:1]
    asked = as_asked(prompts[0], cell, subject) if prompts else ""
    for point in _drawn(cell):
        words = f"{cell.row} after {plural(point.step, 'step')}"
        tile = Tile(
            book[point.pictures[0][0]],
            0,
            f"{words}: {asked}",
            f"{words} · {cell.subject}",
            asked,
            "",
        )
        late = cell.overfits_from is not None and point.step >= cell.overfits_from
        frames[point.step] = Frame(tile, point.step == cell.recommended_step, late)
    return Strip(cell.row, frames)
