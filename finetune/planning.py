"""What would settle a difference: how many more pictures, prompts, subjects or training seeds.

Takes the variances of `statistics` as they were found and predicts the mean's interval for other counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from finetune.statistics import cell_square, is_seen, mean_variance, prompt_square, row_square
from finetune.tables import Design, Table, design_of
from finetune.wording import listing

MOST = {"subjects": 100, "training seeds": 20, "prompts": 100, "pictures": 64}
"""No more than so many, in all, are ever asked for."""
POWER = 0.8
"""How likely what is asked for settles it, if the difference is just as it seems."""

Counts = NDArray[np.float64]


@dataclass(frozen=True)
class Settle:
    """How many more of one kind, the others as they are, would tell a difference from zero."""

    row_kind: str
    """"subjects" or "training seeds" per subject: what a further row of the table would be."""
    more_rows: int | None
    """None where these cannot settle it within `MOST`, or are no sample yet."""
    more_prompts: int | None
    more_pictures: int | None
    """Per prompt."""
    thought_of: tuple[str, ...]
    """What there could be more of without a change in what the interval speaks of."""
    of_runs_alone: bool
    """Whether it would be settled for the training runs at hand alone: none of them is repeated."""

    def in_words(self) -> str:
        """A sentence about what to do."""
        asked = [
            (self.more_pictures, "picture per prompt", "pictures per prompt"),
            (self.more_prompts, "prompt", "prompts"),
            (self.more_rows, self.row_kind.removesuffix("s"), self.row_kind),
        ]
        parts = [f"{n} more {one if n == 1 else many}" for n, one, many in asked if n is not None]
        if not parts:
            return (
                f"The gap is too small for more {listing(self.thought_of, last='or')} to settle it."
            )
        here = " for these training runs" if self.of_runs_alone else ""
        return (
            f"About {listing(parts, last='or')} would settle it{here}, if the gap is what it seems."
        )


@dataclass(frozen=True)
class Effects:
    """Variances of single effects, so that the mean's is rows / R + prompts / P + cells / (R P) + …"""

    rows: float
    prompts: float
    cells: float
    pictures: float
    """… + pictures / (R P J), where J counts the pictures of a cell."""


def effects_of(design: Design) -> Effects:
    """The effects behind a design's mean squares; those that `statistics` pools are 0."""
    num_rows, num_prompts = design.cells.shape
    noise = design.picture_variance / (num_rows * num_prompts * _pictures(design))
    if not (design.rows_vary and design.prompts_vary):
        # What cannot be told apart belongs to the one effect that varies.
        rows = max(row_square(design).value - noise, 0.0) if design.rows_vary else 0.0
        prompts = max(prompt_square(design).value - noise, 0.0) if design.prompts_vary else 0.0
        return Effects(rows * num_rows, prompts * num_prompts, 0.0, design.picture_variance)
    rest = cell_square(design)

    def above(square: Any) -> float:
        return max(square.value - rest.value, 0.0) if is_seen(square, rest) else 0.0

    return Effects(
        above(row_square(design)) * num_rows,
        above(prompt_square(design)) * num_prompts,
        max(rest.value - noise, 0.0) * num_rows * num_prompts,
        design.picture_variance,
    )


def _pictures(design: Design) -> float:
    """Pictures that a cell is the mean of: the harmonic mean."""
    held = design.pictures[design.pictures > 0]
    return float(len(held) / (1 / held).sum())


def smallest_told(
    design: Design, rows: Counts, prompts: Counts, pictures: Counts, *, level: float
) -> Counts:
    """The difference that other counts would tell from zero with the chance `POWER`.

    `pictures` are those of a cell; the three are arrays of one shape, which the result has.
    """
    effects = effects_of(design)
    rest = (effects.cells + effects.pictures / pictures) / (rows * prompts)
    rows_freedom, prompts_freedom = rows - design.blocks.max() - 1, prompts - 1
    terms = []
    if design.rows_vary and (effects.rows or not design.prompts_vary):
        terms.append((effects.rows / rows + rest, rows_freedom))
    if design.prompts_vary and (effects.prompts or not design.rows_vary):
        terms.append((effects.prompts / prompts + rest, prompts_freedom))
    if not terms:
        crossed = design.rows_vary and design.prompts_vary
        left = rows * prompts - 1 if crossed else rows * prompts * (pictures - 1)
        terms.append((rest, left))
    variance = sum(square for square, _ in terms) - rest * (len(terms) - 1)
    spread = sum(square**2 / np.maximum(freedom, 1) for square, freedom in terms)
    freedom = variance**2 / np.where(spread > 0, spread, 1.0)
    freedom = np.where(spread > 0, freedom, 1.0)
    quantiles = special.stdtrit(freedom, (1 + level) / 2) + special.stdtrit(freedom, POWER)
    return np.asarray(quantiles * np.sqrt(variance), np.float64)


def _fewest(most: int, now: float, told: Callable[[Counts], Counts], wanted: float) -> int | None:
    """The fewest added to `now`, at most `most` in all, that tell a difference of `wanted`."""
    added = np.arange(1, int(most - now) + 1, dtype=np.float64)
    if not len(added) or wanted == 0:
        return None
    enough = np.nonzero(told(added) <= wanted)[0]
    return int(added[enough[0]]) if len(enough) else None


def settle(differences: Table, *, level: float = 0.95) -> Settle | None:
    """What would tell the mean of a table of differences from zero; None where nothing can be said.

    What is no sample yet (one subject, one seed) is not asked for: more of it would change what the
    interval speaks of.
    """
    design = design_of(differences)
    if design is None or mean_variance(design) is None:
        return None
    num_rows, num_prompts = design.cells.shape
    per_cell, wanted = _pictures(design), abs(design.mean)
    num_blocks = int(design.blocks.max()) + 1

    def told(added: Counts, *, rows: float = 0, prompts: float = 0, pictures: float = 0) -> Counts:
        return smallest_told(
            design,
            num_rows + rows * added,
            num_prompts + prompts * added,
            per_cell + pictures * added,
            level=level,
        )

    row_kind = "subjects" if design.rows_are_subjects else "training seeds"
    more_rows = more_prompts = more_pictures = None
    thought_of = []
    if design.picture_freedom:
        thought_of.append("pictures per prompt")
        per_run = design.runs_per_row
        more_pictures = _fewest(
            MOST["pictures"], per_cell / per_run, lambda n: told(n, pictures=per_run), wanted
        )
    if design.prompts_vary:
        thought_of.append("prompts")
        more_prompts = _fewest(MOST["prompts"], num_prompts, lambda n: told(n, prompts=1), wanted)
    if design.rows_vary:
        thought_of.append(row_kind)
        now = num_rows / num_blocks
        more_rows = _fewest(MOST[row_kind], now, lambda n: told(n, rows=num_blocks), wanted)
    return Settle(
        row_kind, more_rows, more_prompts, more_pictures, tuple(thought_of), not design.rows_vary
    )
