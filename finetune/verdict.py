"""The comparison in words: who kept the subject, obeyed the prompt, left the class alone, or "cannot tell".

Deterministic: the same tables give the same sentences. A row leads only if its difference to every other row
leaves out zero, at a level that holds for all pairs together; else the sentence says what would settle it.
Where training itself is not repeated, a lead is one of the runs at hand and says so. The question about the
class asks its drift, since a ruined class is unlike the subject too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from finetune.differences import (
    LEVEL,
    Standing,
    Tables,
    measured,
    pair_of,
    score_keys,
    stand,
    summarise,
)
from finetune.results import FROZEN_BASE
from finetune.scores import score_info
from finetune.sentences import amount, draw, lead, quoted
from finetune.statistics import difference
from finetune.tables import Design, Table, design_of, of_subjects, paired, without_runs
from finetune.wording import decimal, listing

Question = Literal["subject", "prompt", "class"]

QUESTIONS: dict[Question, tuple[str, str]] = {
    "subject": ("subject_fidelity", "kept the subject best"),
    "prompt": ("prompt_fidelity", "obeyed the prompt best"),
    "class": ("class_drift", "left the class most alone"),
}
"""Question -> id of the score that answers it, what the best row did."""
NOTABLE_COPIES = 0.05
"""Share of a row's pictures that pass for copies, from which on it is remarked upon."""


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict."""

    question: Question
    score: str
    """Its key; the id where it was not measured."""
    text: str
    leaders: tuple[str, ...]
    """One row, or those that cannot be told from the best."""
    scope: str = ""
    """What a lead is limited to where training is not repeated: "1 subject, 1 training run"."""


@dataclass(frozen=True)
class References:
    """What rows are measured against."""

    frozen_base: Mapping[str, Table] = field(default_factory=dict)
    """Score key -> table of the frozen base."""
    real_photos: Mapping[str, Table] = field(default_factory=dict)
    """Key of a subject fidelity -> [subject, 1, 1, photo], the cosines among real photos."""

    def floor(self, key: str, row: Table) -> float | None:
        """The frozen base's mean of a score, over the subjects of a row's table."""
        table = self.frozen_base.get(key)
        return None if table is None else summarise(key, of_subjects(table, row)).mean

    def ceiling(self, key: str, row: Table) -> float | None:
        """The mean cosine among real photos, over the subjects of a row's table."""
        table = self.real_photos.get(key)
        if table is None:
            return None
        return summarise(key, of_subjects(table, row), real_photos=True).mean


@dataclass(frozen=True)
class Verdict:
    """Three sentences, and what else a reader has to know."""

    findings: tuple[Finding, ...]
    """On subject, prompt and class, in this order."""
    remarks: tuple[str, ...]


def verdict(
    tables: Tables,
    rows: Sequence[str],
    *,
    shown: Collection[str] = (),
    headline: Mapping[str, str] | None = None,
    references: References | None = None,
) -> Verdict:
    """The verdict on `rows`, the methods under comparison without reference rows.

    `shown` are those that were not trained here, so that their seeds are no training runs. `headline` says
    which key answers for a score's id; else the first one there is.
    """
    chosen: dict[str, str] = {}
    for key in score_keys(tables):
        chosen.setdefault(score_info(key).id, key)
    chosen |= headline or {}
    standings = {
        question: stand(chosen[id], tables, rows, shown=shown) if id in chosen else None
        for question, (id, _) in QUESTIONS.items()
    }
    case = _Case(tables, rows, frozenset(shown), chosen, standings, references or References())
    return Verdict(tuple(case.findings()), tuple(case.remarks()))


RUNS_ONLY = (
    ": what another training run would change is in none of them. To speak of the methods takes"
)
AGAINST_BASE = (
    ("subject_fidelity", 0, "Cannot be told from the frozen base in subject fidelity"),
    ("subject_fidelity", -1, "Further from the subject than the frozen base"),
    ("prompt_fidelity", -1, "Obey prompts less than the frozen base"),
    ("class_leak", 1, "Drew the whole class towards the subject, measured from the frozen base"),
    ("diversity", -1, "Pictures of a prompt differ less than the frozen base's"),
)
"""A score's id, the sign of its difference from the base that is remarked upon (0: none seen), the words."""


@dataclass(frozen=True)
class _Case:
    """All that a verdict is made from."""

    tables: Tables
    rows: Sequence[str]
    shown: frozenset[str]
    chosen: Mapping[str, str]
    """Id of a score -> the key that answers for it."""
    standings: Mapping[Question, Standing | None]
    """How the rows stand in the score that answers a question; None where none has it."""
    references: References

    def findings(self) -> Iterator[Finding]:
        """A sentence per question."""
        for question, (id, did) in QUESTIONS.items():
            standing = self.standings[question]
            if standing is None:
                text = f"Which row {did} was not measured."
                yield Finding(question, self.chosen.get(id, id), text, ())
            else:
                yield self._finding(question, standing)

    def _finding(self, question: Question, standing: Standing) -> Finding:
        key, ranked, did = standing.key, standing.ranked, QUESTIONS[question][1]
        besides = f"{self._frame(standing)}{self._absent(standing)}"
        if len(ranked) == 1:
            found = amount(summarise(key, self._table(ranked[0], key)))
            text = f"{score_info(key).title} of {quoted(ranked[0])}: {found}{besides}."
            return Finding(question, key, text, ranked)
        if not standing.tied:
            design = self._design(standing)
            scope = "" if design is None else design.scope()
            text = f"{lead(standing, did, scope)}{besides}."
            return Finding(question, key, text, ranked[:1], scope)
        return Finding(question, key, draw(standing, did, besides), (ranked[0], *standing.tied))

    def _table(self, row: str, key: str) -> Table:
        table = self.tables[row][key]
        return without_runs(table) if row in self.shown else table

    def _design(self, standing: Standing) -> Design | None:
        """Of the best row's lead over the next, or of the only row."""
        key, ranked = standing.key, standing.ranked
        if len(ranked) == 1:
            return design_of(self._table(ranked[0], key))
        return design_of(paired(*pair_of(self.tables, key, *ranked[:2], shown=self.shown)))

    def _frame(self, standing: Standing) -> str:
        """Floor and ceiling of the best row, where they are known."""
        key, parts = standing.key, []
        table = self.tables[standing.ranked[0]][key]
        floor, ceiling = self.references.floor(key, table), self.references.ceiling(key, table)
        if score_info(key).id != "class_drift" and floor is not None:
            parts.append(f"the frozen base has {decimal(floor)}")
        if ceiling is not None:
            parts.append(f"real photos among themselves {decimal(ceiling)}")
        return f"; {', '.join(parts)}" if parts else ""

    def _lost(self) -> list[str]:
        """Rows without any score."""
        return [
            row
            for row in self.rows
            if not any(measured(self.tables, [row], key) for key in self.tables.get(row, {}))
        ]

    def _absent(self, standing: Standing) -> str:
        """Rows that have other scores and not this one."""
        lost = self._lost()
        absent = [quoted(r) for r in self.rows if r not in standing.ranked and r not in lost]
        were = "was" if len(absent) == 1 else "were"
        return f"; {listing(absent)} {were} not measured in it" if absent else ""

    def remarks(self) -> Iterator[str]:
        """What qualifies the three sentences."""
        lost = self._lost()
        if lost:
            yield f"Without any score, and left out: {listing([quoted(row) for row in lost])}."
        standings = [standing for standing in self.standings.values() if standing is not None]
        yield from self._speak_of(standings)
        most = max((len(standing.ranked) for standing in standings), default=0)
        if most > 2:
            pairs = most * (most - 1) // 2
            yield f"Intervals of differences hold for all {pairs} pairs of rows at once, with 95 %."
        if "prompt_fidelity" in self.chosen:
            yield "Prompt fidelity is CLIP-T with the identifier replaced by the class noun."
        yield from self._copies()
        for id, direction, words in AGAINST_BASE:
            amounts = self._against_base(self.chosen.get(id, ""), direction)
            if amounts:
                yield f"{words}: {listing(amounts)}."

    def _speak_of(self, standings: Sequence[Standing]) -> Iterator[str]:
        """What the three sentences' intervals hold for, and what it takes to speak of the methods."""
        told: dict[str, list[str]] = {}
        for standing in standings:
            design = self._design(standing)
            if design is None:
                continue
            runs = "" if design.rows_vary else f"{RUNS_ONLY} {self._needed(design, standing)}"
            title = score_info(standing.key).title.lower()
            told.setdefault(f"{design.speaks_of()}{runs}", []).append(title)
        for text, titles in told.items():
            whose = "" if len(told) == 1 else f" of {listing(titles)}"
            yield f"The intervals{whose} speak of {text}."

    def _needed(self, design: Design, standing: Standing) -> str:
        if self.shown.issuperset(standing.ranked[:2]):
            return "3 subjects"
        return f"{design.seeds_needed} training seeds, or 3 subjects"

    def _copies(self) -> Iterator[str]:
        """Signs that rows hand out their training photos."""
        key, share = (self.chosen.get(id, "") for id in ("subject_fidelity", "copy_share"))
        for row in measured(self.tables, self.rows, key):
            low = summarise(key, self._table(row, key)).low
            ceiling = self.references.ceiling(key, self.tables[row][key])
            if low is not None and ceiling is not None and low > ceiling:
                yield (
                    f"{quoted(row)} is nearer to the photos than they are to each other "
                    f"({decimal(low)} at least, against {decimal(ceiling)}): look for copies."
                )
        for row in measured(self.tables, self.rows, share):
            copies = summarise(share, self._table(row, share)).mean or 0.0
            if copies >= NOTABLE_COPIES:
                whose = f"the pictures of {quoted(row)}"
                yield f"{copies:.0%} of {whose} pass for copies of a training photo."

    def _against_base(self, key: str, direction: int) -> list[str]:
        """Rows whose difference from the frozen base has that sign, each with its amount."""
        base, amounts = self.references.frozen_base.get(key), []
        for row in [] if base is None else measured(self.tables, self.rows, key):
            pair = pair_of(
                {row: self.tables[row], FROZEN_BASE: self.references.frozen_base},
                key,
                row,
                FROZEN_BASE,
                shown={*self.shown, FROZEN_BASE},
            )
            found = difference(*pair, level=LEVEL)
            if found.low is not None and found.sign == direction:
                amounts.append(f"{quoted(row)} by {amount(found, sign=direction or 1)}")
        return amounts
