"""What will be trained on: every picture decoded, listed with what was done to it, and shown as cropped."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from data_prep.config import DataConfig
from data_prep.errors import DataError
from data_prep.sources import read_records
from data_prep.transforms import Photo, crop_square, decode


@dataclass(frozen=True)
class Finding:
    """One picture: its photo, or why there is none."""

    name: str
    photo: Photo | None
    problem: str | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """Findings for all pictures of a source."""

    findings: list[Finding]
    size: int

    @property
    def num_refused(self) -> int:
        """Pictures that cannot be used."""
        return sum(finding.problem is not None for finding in self.findings)

    def table(self) -> str:
        """One line per picture: name, size, state, what to know."""
        width = max(len(finding.name) for finding in self.findings)
        lines = []
        for finding in self.findings:
            if finding.photo is None:
                lines.append(f"{finding.name:{width}}  refused  {finding.problem}")
                continue
            height, breadth = finding.photo.size_hw
            state = "repaired" if finding.photo.notes else "ok"
            remarks = "; ".join([*finding.photo.notes, *finding.warnings])
            caption = f'  caption: "{finding.photo.caption}"' if finding.photo.caption else ""
            lines.append(
                f"{finding.name:{width}}  {state:8} {breadth} × {height}  {remarks}{caption}".rstrip()
            )
        usable = len(self.findings) - self.num_refused
        lines.append(f"{usable} of {len(self.findings)} pictures can be used.")
        return "\n".join(lines)

    def contact_sheet(self, *, cell: int = 192, columns: int = 5) -> Image.Image:
        """The crops as training sees them, in the order of the table."""
        photos = [finding.photo for finding in self.findings if finding.photo is not None]
        rows = max(1, -(-len(photos) // columns))
        sheet = Image.new("RGB", (min(columns, max(1, len(photos))) * cell, rows * cell), "white")
        for index, photo in enumerate(photos):
            crop, _ = crop_square(photo.image, self.size)
            row, column = divmod(index, columns)
            sheet.paste(
                crop.resize((cell, cell), Image.Resampling.LANCZOS), (column * cell, row * cell)
            )
        return sheet


def _warnings(photo: Photo, size: int) -> tuple[str, ...]:
    warnings = []
    if min(photo.size_hw) < size:
        warnings.append(f"smaller than {size} px: will be enlarged and soft")
    if max(photo.size_hw) > 2 * min(photo.size_hw):
        warnings.append("very long: the crop keeps less than half of it")
    return tuple(warnings)


def inspect_photos(config: DataConfig, *, size: int) -> Inspection:
    """Decode every picture of a source. Raises `DataError` only if there is no source or no picture."""
    findings = []
    for record in read_records(config):
        try:
            photo = decode(record)
        except DataError as error:
            findings.append(Finding(record.name, None, str(error), ()))
        else:
            findings.append(Finding(record.name, photo, None, _warnings(photo, size)))
    return Inspection(findings, size)
