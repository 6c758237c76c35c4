"""The comparison in words: who kept the subject, obeyed the prompt, left the class alone, or "cannot tell".

Deterministic: the same tables give the same sentences. A row leads only if its difference to every other row
leaves out zero, at a level that holds for all pairs together; else the sentence says what would settle it.
Where training itself is not repeated, a lead is one of the runs at hand and says so. The question about the
class asks its drift, since a ruined class is unlike the subject too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from finetune.differences import (
    LEVEL,
    Standing,
    Tables,
    measured,
    score_keys,
    stand,
    summarise,
)
from finetune.scores import score_info
from finetune.statistics import Interval, difference
from finetune.tables import Table, design_of, paired
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
    real_similarity: Mapping[str, float] = field(default_factory=dict)
    """Key of a subject fidelity -> the mean cosine among real photos, where there is one."""


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
    headline: Mapping[str, str] | None = None,
    references: References | None = None,
) -> Verdict:
    """The verdict on `rows`, the methods under comparison without reference rows.

    `headline` says which key answers for a score's id; else the first one there is.
    """
    chosen: dict[str, str] = {}
    for key in score_keys(tables):
        chosen.setdefault(score_info(key).id, key)
    chosen |= headline or {}
    references = references or References()
    findings = [
        _finding(question, chosen.get(QUESTIONS[question][0]), tables, rows, references)
        for question in QUESTIONS
    ]
    return Verdict(tuple(findings), tuple(_remarks(tables, rows, chosen, references)))


def quoted(row: str) -> str:
    """A row's name as it stands in a sentence: in quotes unless it is one word."""
    return row if re.fullmatch(r"[\w.-]+", row) else f"“{row}”"


def _amount(found: Interval, *, sign: int = 1) -> str:
    """ "0.050 (0.020 to 0.080)", of the mean times `sign`."""
    assert found.mean is not None
    if found.low is None or found.high is None:
        return f"{decimal(sign * found.mean)} (no interval)"
    low, high = sorted((sign * found.low, sign * found.high))
    return f"{decimal(sign * found.mean)} ({decimal(low)} to {decimal(high)})"


def _finding(
    question: Question,
    key: str | None,
    tables: Tables,
    rows: Sequence[str],
    references: References,
) -> Finding:
    id, did = QUESTIONS[question]
    standing = None if key is None else stand(key, tables, rows)
    if key is None or standing is None:
        return Finding(question, key or id, f"Which row {did} was not measured.", ())
    frame = _frame(key, references)
    if len(standing.ranked) == 1:
        row, title = standing.ranked[0], score_info(key).title
        amount = _amount(summarise(key, tables[row][key]))
        return Finding(question, key, f"{title} of {quoted(row)}: {amount}{frame}.", (row,))
    if not standing.tied:
        scope = _scope(key, tables, standing.ranked)
        text = f"{_lead(standing, did, scope)}{frame}."
        return Finding(question, key, text, standing.ranked[:1], scope)
    leaders = (standing.ranked[0], *standing.tied)
    return Finding(question, key, _draw(standing, did, frame), leaders)


def _frame(key: str, references: References) -> str:
    """Floor and ceiling, where they are known."""
    parts = []
    if score_info(key).id != "class_drift" and key in references.frozen_base:
        floor = summarise(key, references.frozen_base[key]).mean
        if floor is not None:
            parts.append(f"the frozen base has {decimal(floor)}")
    if key in references.real_similarity:
        parts.append(f"real photos among themselves {decimal(references.real_similarity[key])}")
    return f"; {', '.join(parts)}" if parts else ""


def _scope(key: str, tables: Tables, ranked: Sequence[str]) -> str:
    design = design_of(paired(*(tables[row][key] for row in ranked[:2])))
    return "" if design is None else design.scope()


def _lead(standing: Standing, did: str, scope: str) -> str:
    best, second = standing.ranked[:2]
    way = "above" if standing.sign > 0 else "below"
    gap = _amount(standing.against[second].interval, sign=standing.sign)
    here = f" here ({scope})" if scope else ""
    return (
        f"{quoted(best)} {did}{here}: {score_info(standing.key).title.lower()} "
        f"{decimal(standing.means[best])}, {gap} {way} {quoted(second)}, the next"
        f"{_where(standing, second)}"
    )


def _where(standing: Standing, row: str) -> str:
    """Says so where the best and another row are not compared on all that either made."""
    shared = standing.against[row].interval.num_values
    counts = (standing.num_values[standing.ranked[0]], standing.num_values[row])
    return "" if counts == (shared, shared) else ", on the pictures that both have"


def _draw(standing: Standing, did: str, frame: str) -> str:
    """The best row, those that may be as good, what would settle it, and who is clearly behind."""
    best, second = standing.ranked[0], standing.tied[0]
    nearest, title = standing.against[second], score_info(standing.key).title.lower()

    def named(rows: Sequence[str]) -> str:
        return listing([f"{quoted(row)} ({decimal(standing.means[row])})" for row in rows])

    text = f"Which row {did} cannot be told: "
    if nearest.interval.mean is None:
        text += f"{named((best, second))} share no pictures to compare {title} on"
    elif not nearest.interval.mean and not nearest.interval.standard_error:
        text += f"{named((best, second))} are equal in {title}"
    else:
        gap = _amount(nearest.interval, sign=standing.sign)
        if standing.sign > 0:
            text += f"{named([best])} is ahead of {named([second])} in {title}"
        else:
            text += f"{named([best])} has less {title} than {named([second])}"
        text += f", by {gap}"
        text += _where(standing, second)
    if standing.tied[1:]:
        text += f"; {named(standing.tied[1:])} may be as good"
    behind = [row for row in standing.ranked[1:] if row not in standing.tied]
    if behind:
        text += f"; {named(behind)} {'is' if len(behind) == 1 else 'are'} clearly behind"
    needed = nearest.needed if nearest.interval.mean else None
    return f"{text}{frame}. {needed}" if needed else f"{text}{frame}."


def _remarks(
    tables: Tables, rows: Sequence[str], chosen: Mapping[str, str], references: References
) -> Iterator[str]:
    """What qualifies the three sentences."""
    lost = [row for row in rows if not any(measured(tables, [row], k) for k in tables.get(row, {}))]
    if lost:
        yield f"Without any score, and left out: {listing([quoted(row) for row in lost])}."
    key = chosen.get("subject_fidelity")
    held = measured(tables, rows, key) if key else []
    if key and held:
        design = design_of(tables[held[0]][key])
        assert design is not None
        runs = "" if design.rows_vary else RUNS_ONLY.format(needed=design.seeds_needed)
        yield f"The intervals speak of {design.speaks_of()}{runs}."
    if len(held) > 2:
        pairs = len(held) * (len(held) - 1) // 2
        yield f"Intervals of differences hold for all {pairs} pairs of rows at once, with 95 %."
    if "prompt_fidelity" in chosen:
        yield "Prompt fidelity is CLIP-T with the identifier replaced by the class noun."
    yield from _copies(tables, rows, chosen, references)
    for id, direction, words in AGAINST_BASE:
        amounts = _against_base(tables, rows, chosen.get(id, ""), references, direction)
        if amounts:
            yield f"{words}: {listing(amounts)}."


def _copies(
    tables: Tables, rows: Sequence[str], chosen: Mapping[str, str], references: References
) -> Iterator[str]:
    """Signs that rows hand out their training photos."""
    key, share = chosen.get("subject_fidelity", ""), chosen.get("copy_share", "")
    ceiling = references.real_similarity.get(key)
    for row in measured(tables, rows, key) if ceiling is not None else []:
        low = summarise(key, tables[row][key]).low
        if low is not None and ceiling is not None and low > ceiling:
            yield (
                f"{quoted(row)} is nearer to the photos than they are to each other "
                f"({decimal(low)} at least, against {decimal(ceiling)}): look for copies."
            )
    for row in measured(tables, rows, share):
        copies = summarise(share, tables[row][share]).mean or 0.0
        if copies >= NOTABLE_COPIES:
            yield f"{copies:.0%} of the pictures of {quoted(row)} pass for copies of a training photo."


RUNS_ONLY = (
    ": what another training run would change is in none of them. To speak of the methods takes {needed} "
    "training seeds, or 3 subjects"
)
AGAINST_BASE = (
    ("subject_fidelity", 0, "Cannot be told from the frozen base in subject fidelity"),
    ("subject_fidelity", -1, "Further from the subject than the frozen base"),
    ("prompt_fidelity", -1, "Obey prompts less than the frozen base"),
    ("class_leak", 1, "Drew the whole class towards the subject, measured from the frozen base"),
    ("diversity", -1, "Pictures of a prompt differ less than the frozen base's"),
)
"""A score's id, the sign of its difference from the base that is remarked upon (0: none seen), the words."""


def _against_base(
    tables: Tables, rows: Sequence[str], key: str, references: References, direction: int
) -> list[str]:
    """Rows whose difference from the frozen base has that sign, each with its amount."""
    amounts = []
    held = measured(tables, rows, key) if key in references.frozen_base else []
    for row in held:
        found = difference(tables[row][key], references.frozen_base[key], level=LEVEL)
        if found.low is not None and found.sign == direction:
            amounts.append(f"{quoted(row)} by {_amount(found, sign=direction or 1)}")
    return amounts
