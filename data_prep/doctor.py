"""The photo doctor: every picture of a source decoded as for training, with a verdict, remarks and its crop.

Puts together what `decode`, `findings` and `contact_sheet` know, and writes it as a table and as JSON.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageOps
from tqdm import tqdm

from data_prep.config import DataConfig
from data_prep.contact_sheet import Cell, cell_size, contact_sheet
from data_prep.decode import decode_quietly, num_pixels, quiet
from data_prep.errors import DataError
from data_prep.findings import (
    REASONS,
    Finding,
    Remark,
    Traits,
    duplicate_text,
    findings_over,
    numbers,
    remarks_on,
    traits_of,
)
from data_prep.framing import frames_of
from data_prep.sources import Record, ignored_files, read_records
from data_prep.transforms import crop_to

ALONE_PIXELS = 16_000_000
"""Pictures with more pixels are decoded one at a time: each may need most of a GiB."""
_SMALL = 256
"""Side in pixels of the whole picture in which sets are compared."""


@dataclass(frozen=True)
class Checkup:
    """One picture: what was done to it and what is doubtful, or why it is refused."""

    name: str
    size_hw: tuple[int, int] | None
    """None if it is refused."""
    fixes: tuple[str, ...]
    problem: str | None
    caption: str | None
    remarks: tuple[Remark, ...]
    crop: Image.Image | None
    """As trained on, at the size of a contact sheet's cell."""
    traits: Traits | None

    @property
    def verdict(self) -> str:
        """`ok`, `fixed` or `refused`."""
        if self.problem is not None:
            return "refused"
        return "fixed" if self.fixes else "ok"


@dataclass(frozen=True)
class Inspection:
    """Checkups of all pictures of a source, and what was found over the set."""

    checkups: list[Checkup]
    findings: list[Finding]
    """By kind; photos are places in `checkups`."""
    ignored: dict[str, int]
    """Files passed over, by reason."""
    size: int
    """Side in pixels of the crops as trained."""

    @property
    def num_refused(self) -> int:
        """Pictures that cannot be used."""
        return sum(checkup.problem is not None for checkup in self.checkups)

    def table(self) -> str:
        """One line per picture (number, name, verdict, size, what to know), then the findings."""
        names = max((_columns(checkup.name) for checkup in self.checkups), default=0)
        digits = len(str(len(self.checkups)))
        lines = []
        for number, checkup in enumerate(self.checkups, 1):
            name = checkup.name + " " * (names - _columns(checkup.name))
            start = f"{number:{digits}}  {name}  {checkup.verdict:7}"
            if checkup.size_hw is None:
                lines.append(f"{start}  {checkup.problem}")
                continue
            height, width = checkup.size_hw
            remarks = "; ".join([*checkup.fixes, *(remark.text for remark in checkup.remarks)])
            caption = f'  caption: "{checkup.caption}"' if checkup.caption else ""
            lines.append(f"{start}  {width} × {height}  {remarks}{caption}".rstrip())
        for finding in self.findings:
            lines.append(f"Warning: {finding.text}. {REASONS[finding.kind]}")
        if self.ignored:
            counts = ", ".join(f"{count} {reason}" for reason, count in self.ignored.items())
            lines.append(f"Passed over: {counts}.")
        usable = len(self.checkups) - self.num_refused
        lines.append(f"{usable} of {len(self.checkups)} pictures can be used.")
        return "\n".join(lines)

    def contact_sheet(self, *, cell: int | None = None, columns: int | None = None) -> Image.Image:
        """The crops as training sees them, in the order of the table."""
        marked = {place for finding in self.findings for place in finding.photos}
        cells = [
            Cell(place + 1, checkup.crop, bool(checkup.remarks) or place in marked)
            for place, checkup in enumerate(self.checkups)
        ]
        return contact_sheet(cells, cell=cell or cell_size(len(cells)), columns=columns)

    def as_json(self) -> dict[str, Any]:
        """The same as plain values for `json.dumps`."""
        photos = [
            {
                "number": number,
                "name": checkup.name,
                "verdict": checkup.verdict,
                "width": checkup.size_hw[1] if checkup.size_hw else None,
                "height": checkup.size_hw[0] if checkup.size_hw else None,
                "fixes": list(checkup.fixes),
                "problem": checkup.problem,
                "caption": checkup.caption,
                "remarks": [{"kind": r.kind, "text": r.text} for r in checkup.remarks],
            }
            for number, checkup in enumerate(self.checkups, 1)
        ]
        findings = [
            {
                "kind": finding.kind,
                "photos": [place + 1 for place in finding.photos],
                "text": finding.text,
                "reason": REASONS[finding.kind],
            }
            for finding in self.findings
        ]
        return {"size": self.size, "photos": photos, "findings": findings, "ignored": self.ignored}


def _columns(text: str) -> int:
    """How many columns of a terminal `text` takes: wide characters two, combining ones none."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def _examine(record: Record, config: DataConfig, size: int, cell: int) -> Checkup:
    try:
        photo = decode_quietly(record, background=config.background)
    except DataError as error:
        return Checkup(record.name, None, (), str(error), record.caption, (), None, None)
    frames = frames_of(photo, config, size)
    frame = frames[len(frames) // 2]  # of random ones the middle
    crop, corner = crop_to(photo.image, frame.size_hw, share=frame.share)
    small = photo.image.resize((_SMALL, _SMALL), Image.Resampling.BOX, reducing_gap=2.0)
    return Checkup(
        record.name,
        photo.size_hw,
        photo.notes,
        None,
        photo.caption,
        remarks_on(photo, crop, corner, size),
        ImageOps.contain(crop, (cell, cell), Image.Resampling.LANCZOS),
        traits_of(small),
    )


def _examine_all(
    records: list[Record], examine: Callable[[Record], Checkup], show_progress: bool
) -> list[Checkup]:
    """Checkups in the order of `records`, several at a time; large pictures alone, at the end."""
    large = {place for place, record in enumerate(records) if num_pixels(record) > ALONE_PIXELS}
    rest = [place for place in range(len(records)) if place not in large]
    found: dict[int, Checkup] = {}
    workers = min(4, os.cpu_count() or 1)  # each holds two copies of a picture
    with (
        tqdm(total=len(records), desc="inspecting", unit="photo", disable=not show_progress) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        checkups = pool.map(examine, (records[place] for place in rest))
        for place, checkup in zip(rest, checkups, strict=True):
            found[place] = checkup
            bar.update()
        for place in sorted(large):
            found[place] = examine(records[place])
            bar.update()
    return [found[place] for place in range(len(records))]


def _grouped(checkups: list[Checkup]) -> list[Finding]:
    """One finding per kind of remark, with the photos it is made about."""
    findings = []
    for kind in REASONS:
        places = [
            place
            for place, checkup in enumerate(checkups)
            if any(remark.kind == kind for remark in checkup.remarks)
        ]
        if places:
            text = f"{kind.replace('_', ' ')}: {numbers(places)}"
            findings.append(Finding(kind, tuple(places), text))
    return findings


def inspect_photos(config: DataConfig, *, size: int, show_progress: bool = False) -> Inspection:
    """Decode and examine every picture of a source as it is trained at `size`.

    Raises `DataError` only if there is no source or no picture.
    """
    records = read_records(config)
    cell = cell_size(len(records))
    with quiet():
        checkups = _examine_all(
            records, lambda record: _examine(record, config, size, cell), show_progress
        )
    usable = [(place, c.traits) for place, c in enumerate(checkups) if c.traits is not None]
    set_findings, pairs = findings_over([p for p, _ in usable], [t for _, t in usable])
    for first, second, pair in pairs:
        text = duplicate_text(pair, checkups[first].name)
        remark = Remark("duplicates", text)
        checkups[second] = replace(checkups[second], remarks=(*checkups[second].remarks, remark))
    findings = [*_grouped(checkups), *set_findings]
    return Inspection(checkups, findings, ignored_files(config), size)
