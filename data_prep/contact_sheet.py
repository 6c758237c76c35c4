"""The contact sheet: numbered crops as trained on, the doubtful ones framed, the refused crossed out."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, ImageOps

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
    caption: str = ""
    """Written below; characters for which there is no font are boxes."""


def cell_size(num_photos: int) -> int:
    """Side in pixels of a cell, so that a sheet stays one that viewers open."""
    return 192 if num_photos <= 60 else 96


def _number(draw: ImageDraw.ImageDraw, left: int, top: int, number: int, cell: int) -> None:
    font = ImageFont.load_default(max(10, cell // 10))
    box = draw.textbbox((left + 3, top + 2), str(number), font=font)
    draw.rectangle((left, top, box[2] + 3, box[3] + 3), fill="black")
    draw.text((left + 3, top + 2), str(number), fill="white", font=font)


_LINES, _LINE = 3, 14
"""How many lines of a caption there is room for, and their height in pixels."""


def _caption(draw: ImageDraw.ImageDraw, left: int, top: int, text: str, room: int) -> None:
    font = ImageFont.load_default(11)
    words, lines = text.split(), [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font=font) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    for number, line in enumerate(lines[:_LINES]):
        cut = number == _LINES - 1 < len(lines) - 1
        draw.text((left, top + number * _LINE), line + " …" * cut, fill="black", font=font)


def contact_sheet(cells: list[Cell], *, cell: int, columns: int | None = None) -> Image.Image:
    """Cells of `cell` × `cell` px in rows; five `columns`, more where there are many pictures.

    Where there are captions, each row is followed by three lines for them.
    """
    columns = columns or max(5, round((len(cells) * 1.5) ** 0.5))
    columns = min(columns, max(1, len(cells)))
    rows = max(1, -(-len(cells) // columns))
    pitch = cell + (_LINES * _LINE + 4 if any(content.caption for content in cells) else 0)
    sheet = Image.new("RGB", (columns * cell, rows * pitch), "white")
    draw = ImageDraw.Draw(sheet)
    thickness = max(2, cell // 32)
    for index, content in enumerate(cells):
        row, column = divmod(index, columns)
        left, top = column * cell, row * pitch
        corners = (left, top, left + cell - 1, top + cell - 1)
        if content.crop is not None:
            padded = ImageOps.pad(content.crop, (cell, cell), Image.Resampling.LANCZOS, "white")
            sheet.paste(padded, (left, top))
        else:
            draw.rectangle(corners, fill=(225, 225, 225))
            draw.line(corners, fill=REFUSED, width=thickness)
            draw.line((left, top + cell - 1, left + cell - 1, top), fill=REFUSED, width=thickness)
        if content.crop is None or content.doubtful:
            mark = REFUSED if content.crop is None else DOUBTFUL
            draw.rectangle(corners, outline=mark, width=thickness)
        _number(draw, left, top, content.number, cell)
        _caption(draw, left + 3, top + cell + 1, content.caption, cell - 16)
    return sheet
