"""The grid of a comparison as one picture: photos, frozen base, rows; the first subject and picture."""

from __future__ import annotations

from pathlib import Path

from finetune.compare.pictures import open_picture
from finetune.generate import labelled_grid
from finetune.results import PHOTOS_AS_OUTPUTS, REAL_PHOTOS, Results


def save_grid(results: Results, folder: Path) -> Path:
    """Write `folder`/grid.png: a row per row, a column per prompt of the first subject."""
    subject, seed = results.subjects[0], results.seeds[0]
    columns = [prompt.text for prompt in subject.prompts]
    photos = [open_picture(folder / photo.file) for photo in subject.photos]
    rows = [("photos", photos[: len(columns)])]
    for row in results.rows:
        if row.name in (REAL_PHOTOS, PHOTOS_AS_OUTPUTS):
            continue
        for cell in results.cells_of(row.name):
            if (cell.subject, cell.seed) == (subject.name, seed) and cell.pictures:
                rows.append(
                    (row.name, [open_picture(folder / names[0]) for names in cell.pictures])
                )
    path = folder / "grid.png"
    labelled_grid(rows, columns).save(path)
    return path
