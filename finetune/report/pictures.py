"""Picture files as data URIs that fit one page: which are shown, how large, and what became of the rest."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

SIDES: Final = (512, 384, 256)
"""Pixels of the longer side, tried in turn until all pictures fit; the last is kept and pictures are left
out, the later shelves first."""
SMALLER_SIDES: Final = (192, 128, 96, 64)
"""For when not even the first shelf fits."""
QUALITY: Final = 85
"""WebP; at 128 pixels and more no difference to the file is seen beside it."""
MARKUP_BYTES: Final = 700
"""What a page spends on each picture besides its data, on what is said of it."""
_NUM_PROBES: Final = 12


@dataclass(frozen=True)
class Picture:
    """A picture on the page."""

    uri: str
    width: int
    """Pixels, of the embedded picture."""
    height: int


@dataclass(frozen=True)
class Missing:
    """Why a picture is not on the page, in a few words."""

    reason: str


class PictureBook:
    """The pictures of one page, each embedded once and all of them within a number of bytes."""

    def __init__(self, folder: Path, shelves: Sequence[Iterable[str]], *, max_bytes: int):
        """Read, shrink and encode the pictures.

        Args:
            folder: what the files' paths are relative to; nothing outside it is read.
            shelves: files by importance. A shelf is left out whole, from the last one on, where all would
                not fit at the least of `SIDES`.
            max_bytes: of all data URIs and `MARKUP_BYTES` for each together.
        """
        self._folder = folder.resolve()
        self._max_bytes = max_bytes
        self._found: dict[str, Picture | Missing] = {}
        unique = _without_repeats(shelves)
        self.side, self.num_shelves = self._plan(unique)
        """Longest side in pixels; how many shelves are shown."""
        self.total_bytes = 0
        for number, shelf in enumerate(unique):
            for file in shelf:
                self._found[file] = self._embed(file, left_out=number >= self.num_shelves)

    def __getitem__(self, file: str) -> Picture | Missing:
        """A picture by its file, which must stand on a shelf."""
        return self._found[file]

    def _embed(self, file: str, *, left_out: bool) -> Picture | Missing:
        if left_out:
            return Missing("left out to keep the page small")
        found = self._encode(file, self.side)
        if isinstance(found, Picture):
            needed = len(found.uri) + MARKUP_BYTES
            if self.total_bytes + needed > self._max_bytes:
                return Missing("left out to keep the page small")
            self.total_bytes += needed
        return found

    def _plan(self, shelves: Sequence[Sequence[str]]) -> tuple[int, int]:
        """Longest side in pixels and number of shelves, by the sizes of a few pictures."""
        files = [file for shelf in shelves for file in shelf]
        probes = files[:: max(1, len(files) // _NUM_PROBES)]
        for side in (*SIDES, *SMALLER_SIDES):
            sizes = [
                len(found.uri) + MARKUP_BYTES
                for file in probes
                if isinstance(found := self._encode(file, side), Picture)
            ]
            each = 1.05 * sum(sizes) / len(sizes) if sizes else 0.0
            if each * len(files) <= self._max_bytes:
                return side, len(shelves)
            if side <= SIDES[-1]:
                num = len(shelves)
                while num and each * sum(map(len, shelves[:num])) > self._max_bytes:
                    num -= 1
                if num:
                    return side, num
        return SMALLER_SIDES[-1], 1

    def _encode(self, file: str, side: int) -> Picture | Missing:
        path = (self._folder / file).resolve()
        if not path.is_relative_to(self._folder):
            return Missing("its path leads out of the results' folder")
        try:
            with Image.open(path) as image:
                small = image.convert("RGB")
        except FileNotFoundError:
            return Missing("its file is not there any more")
        except (OSError, ValueError, Image.DecompressionBombError):
            return Missing("its file cannot be read")
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=QUALITY, method=4)
        code = base64.b64encode(buffer.getvalue()).decode()
        return Picture(f"data:image/webp;base64,{code}", *small.size)


def _without_repeats(shelves: Sequence[Iterable[str]]) -> list[list[str]]:
    """The shelves with every file on the first one alone that holds it."""
    seen: dict[str, int] = {}
    for number, shelf in enumerate(shelves):
        for file in shelf:
            seen.setdefault(file, number)
    return [[f for f, place in seen.items() if place == number] for number in range(len(shelves))]
