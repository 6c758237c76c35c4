"""The contact sheet: numbered crops as trained on, the doubtful ones framed, the refused crossed out."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

DOUBTFUL, REFUSED = (240, 160, 0), (210, 0, 0)
"""Colours of marks."""


@dataclass(frozen=True)
class Cell:
    """One picture of the sheet."""

    number: int
    """As in the table. File names may be in any script, for which there may be no font."""
    crop: Image.Image | None
    """None if the file was refused."""
    doubtful: bool


def cell_size(num_photos: int) -> int:
    """Side in pixels of a cell, so that a sheet stays one that viewers open."""
    return 192 if num_photos <= 60 else 96


def _number(draw: ImageDraw.ImageDraw, left: int, top: int, number: int, cell: int) -> None:
    font = ImageFont.load_default(max(10, cell // 10))
    box = draw.textbbox((left + 3, top + 2), str(number), font=font)
    draw.rectangle((left, top, box[2] + 3, box[3] + 3), fill="black")
    draw.text((left + 3, top + 2), str(number), fill="white", font=font)


def contact_sheet(cells: list[Cell], *, cell: int, columns: int | None = None) -> Image.Image:
    """Cells of `cell` × `cell` px in rows; five `columns`, more where there are many pictures."""
    columns = columns or max(5, round((len(cells) * 1.5) ** 0.5))
    columns = min(columns, max(1, len(cells)))
    rows = max(1, -(-len(cells) // columns))
    sheet = Image.new("RGB", (columns * cell, rows * cell), "white")
    draw = ImageDraw.Draw(sheet)
    thickness = max(2, cell // 32)
    for index, content in enumerate(cells):
        row, column = divmod(index, columns)
        left, top = column * cell, row * cell
        corners = (left, top, left + cell - 1, top + cell - 1)
        if content.crop is not None:
            crop = content.crop.resize((cell, cell), Image.Resampling.LANCZOS)
            sheet.paste(crop, (left, top))
        else:
            draw.rectangle(corners, fill=(225, 225, 225))
            draw.line(corners, fill=REFUSED, width=thickness)
            draw.line((left, top + cell - 1, left + cell - 1, top), fill=REFUSED, width=thickness)
        if content.crop is None or content.doubtful:
            mark = REFUSED if content.crop is None else DOUBTFUL
            draw.rectangle(corners, outline=mark, width=thickness)
        _number(draw, left, top, content.number, cell)
    return sheet
