"""Which findings of the DreamBooth paper hold on clay? From a finished comparison to docs/study.md.

A finding is a difference of two rows in one score, as Ruiz et al. 2023 (arXiv 2208.12242) publish it. It is
reproduced where the whole interval of the difference measured here lies on the paper's side of zero,
reversed where it lies on the other side, and else cannot be told. All findings were named before anything was
measured, and those in one score hold together with 95 % (Bonferroni); the report compares every pair of
rows, so its intervals are wider.

    finetune clay subjects work/study-subjects --group study
    finetune compare configs/clay/study.yaml
    python benchmarks/clay/study.py runs/study

Writes the findings between the marks of docs/study.md, results.json beside it as study.json, and the top of
the report as study.png where there is a Chromium. Given docs/study.json it writes the findings again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.compare.summaries import table_of
from finetune.differences import PairDifference, Tables, difference_of
from finetune.errors import ArtifactError, UserError
from finetune.files import write_text
from finetune.report.numbers import interval, seconds
from finetune.results import RESULTS, Estimate, Results, ScoreInfo, read_results
from finetune.wording import decimal, listing

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- findings, by benchmarks/clay/study.py -->", "<!-- end of findings -->"
DREAMBOOTH, WITHOUT_PRIOR = "dreambooth", "dreambooth without prior"
WRONG_NOUN, TEXTUAL_INVERSION = "dreambooth with wrong noun", "textual inversion"
SHOWN = (
    "subject_fidelity",
    "prompt_fidelity",
    "class_leak",
    "diversity",
    "class_drift",
    "copy_share",
)
"""Ids of the scores that the table of rows shows."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--window-size=1240,2400",
)
"""Of a browser that asks for nothing but the page."""

Outcome = Literal["reproduced", "reversed", "cannot tell", "not measured"]


@dataclass(frozen=True)
class Claim:
    """DreamBooth against another row in one score, as the paper has it."""

    text: str
    other: str
    score: str
    """Id."""
    expected: Literal["higher", "lower"]
    """DreamBooth's value, against the other row's."""
    published: tuple[tuple[str, float, float], ...]
    """The paper's scores: name, DreamBooth's value, the other's."""
    source: str

    def figures(self) -> str:
        """The published figures in words."""
        shown = [f"{name} {ours:.3f} against {other:.3f}" for name, ours, other in self.published]
        return f"{listing(shown) or 'in words alone'} ({self.source})"


TABLE_1 = "Table 1, Stable Diffusion"
TABLE_3 = "Table 3, Imagen"
CLAIMS = (
    Claim(
        "DreamBooth keeps the subject better than Textual Inversion",
        TEXTUAL_INVERSION,
        "subject_fidelity",
        "higher",
        (("DINO", 0.668, 0.569), ("CLIP-I", 0.803, 0.780)),
        TABLE_1,
    ),
    Claim(
        "DreamBooth obeys prompts better than Textual Inversion",
        TEXTUAL_INVERSION,
        "prompt_fidelity",
        "higher",
        (("CLIP-T", 0.305, 0.255),),
        TABLE_1,
    ),
    Claim(
        "The prior keeps the class from becoming the subject",
        WITHOUT_PRIOR,
        "class_leak",
        "lower",
        (("PRES", 0.493, 0.664),),
        TABLE_3,
    ),
    Claim(
        "The prior keeps pictures of a prompt diverse",
        WITHOUT_PRIOR,
        "diversity",
        "higher",
        (("DIV", 0.391, 0.371),),
        TABLE_3,
    ),
    Claim(
        "The prior keeps the class as the base draws it",
        WITHOUT_PRIOR,
        "class_drift",
        "lower",
        (),
        "as language drift",
    ),
    Claim(
        "The prior costs some subject fidelity",
        WITHOUT_PRIOR,
        "subject_fidelity",
        "lower",
        (("DINO", 0.684, 0.712), ("CLIP-I", 0.815, 0.828)),
        TABLE_3,
    ),
    Claim(
        "The right class noun keeps the subject better than a wrong one",
        WRONG_NOUN,
        "subject_fidelity",
        "higher",
        (("DINO", 0.744, 0.454), ("CLIP-I", 0.853, 0.728)),
        "Table 4",
    ),
)


@dataclass(frozen=True)
class Finding:
    """A claim by one encoder."""

    claim: Claim
    score: ScoreInfo
    difference: PairDifference | None
    """DreamBooth minus the other row; None where one of them has no value."""

    @property
    def outcome(self) -> Outcome:
        """In a word or two."""
        if self.difference is None:
            return "not measured"
        if self.difference.conclusion == "cannot tell":
            return "cannot tell"
        return "reproduced" if self.difference.conclusion == self.claim.expected else "reversed"


def findings(results: Results) -> list[Finding]:
    """Every claim by every encoder that makes its score, in the order of `CLAIMS`.

    Raises `ArtifactError` for results without the rows of configs/clay/study.yaml.
    """
    rows = (DREAMBOOTH, WITHOUT_PRIOR, WRONG_NOUN, TEXTUAL_INVERSION)
    missing = [row for row in rows if row not in {row.name for row in results.rows}]
    if missing:
        raise ArtifactError(
            f"These results have no row {listing(missing)}. Give those of configs/clay/study.yaml."
        )
    wanted = [score for score in results.scores if score.id in {c.score for c in CLAIMS}]
    tables: Tables = {
        row: {
            score.key: table
            for score in wanted
            if (table := table_of(results, row, score)) is not None
        }
        for row in rows
    }
    return [
        Finding(claim, score, _difference(tables, claim, score.key))
        for claim in CLAIMS
        for score in wanted
        if score.id == claim.score
    ]


def _difference(tables: Tables, claim: Claim, key: str) -> PairDifference | None:
    if key not in tables[DREAMBOOTH] or key not in tables[claim.other]:
        return None
    num_pairs = sum(other.score == claim.score for other in CLAIMS)
    return difference_of(tables, key, DREAMBOOTH, claim.other, num_pairs=num_pairs)


def markdown(results: Results, found: Sequence[Finding], *, minutes: float | None = None) -> str:
    """The findings, the rows' scores, and how they were made. `minutes` is how long it all took."""
    counts = Counter(finding.outcome for finding in found)
    told = [f"{count} {outcome}" for outcome, count in counts.most_common()]
    parts = [
        f"Of {len(found)} differences: {listing(told)}.",
        _findings_table(found),
        _samples(found),
        "\n".join([*_open_questions(found), *_failures(results)]),
        "## All rows",
        *_row_tables(results),
        "## How it was made",
        _made(results, minutes),
    ]
    return "\n\n".join(part for part in parts if part)


def _table(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heading, ["---"] * len(heading), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _findings_table(found: Sequence[Finding]) -> str:
    lines = []
    for finding in found:
        claim, difference = finding.claim, finding.difference
        shown = "–"
        if difference is not None:
            shown = decimal(difference.interval.mean, signed=True)
            shown += _ends(difference.interval.low, difference.interval.high, signed=True)
        lines.append(
            [
                claim.text,
                f"`{claim.other}`",
                f"{finding.score.short_title}, {finding.score.encoder}",
                claim.figures(),
                shown,
                f"**{finding.outcome}**",
            ]
        )
    return _table(
        ["the paper's finding", "`dreambooth` against", "score", "paper", "difference here", ""],
        lines,
    )


def _ends(low: float | None, high: float | None, *, signed: bool = False) -> str:
    ends = interval(Estimate(low=low, high=high), signed=signed)
    return f" ({ends})" if ends else ""


def _samples(found: Sequence[Finding]) -> str:
    """What the intervals speak of."""
    by_sample: dict[str, dict[str, None]] = {}
    for finding in found:
        if finding.difference is not None:
            sample = finding.difference.interval.speaks_of
            by_sample.setdefault(sample, {})[finding.score.short_title] = None
    told = [f"{sample} ({listing(list(titles))})" for sample, titles in by_sample.items()]
    return f"Intervals of 95 % speak of {'; of '.join(told)}." if told else ""


def _open_questions(found: Sequence[Finding]) -> Iterator[str]:
    """What would settle what cannot be told."""
    for finding in found:
        if finding.difference is not None and finding.difference.needed:
            yield f"- {finding.claim.text}, {finding.score.encoder}: {finding.difference.needed}"


def _failures(results: Results) -> Iterator[str]:
    for cell in results.failed:
        yield f"- `{cell.row}` failed on {cell.subject}: {cell.error}"


def _row_tables(results: Results) -> Iterator[str]:
    """Means of all rows, a table per encoder."""
    estimates = {(found.row, found.score): found.estimate for found in results.summaries}
    for encoder in results.encoders:
        scores = [s for s in results.scores if s.encoder == encoder.name and s.id in SHOWN]
        lines = []
        for row in results.rows:
            held = [estimates.get((row.name, score.key), Estimate()) for score in scores]
            values = [decimal(e.mean) + _ends(e.low, e.high) for e in held]
            if any(e.mean is not None for e in held):
                lines.append([row.name if row.kind == "reference" else f"`{row.name}`", *values])
        yield _table([encoder.name, *(score.short_title for score in scores)], lines)


def _made(results: Results, minutes: float | None) -> str:
    """Command, time, versions."""
    made, base = results.made, results.base
    trained = sum(cell.costs.train_seconds or 0 for cell in results.cells)
    drawn = sum(
        (cell.costs.picture_seconds or 0) * sum(map(len, cell.pictures)) for cell in results.cells
    )
    time = f"Optimizer steps took {seconds(trained)}, pictures {seconds(drawn)}"
    whole = "" if minutes is None else f"; everything {minutes:.0f} min"
    versions = ", ".join(f"{name} {version}" for name, version in made.versions.items())
    networks = [f"{encoder.name} {encoder.sha256[:12]}" for encoder in results.encoders]
    if base is not None:
        networks = [f"base {base.source} {base.fingerprint[:12]}", *networks]
    return (
        f"    {made.command}\n\n{time}{whole}, by {made.threads} thread"
        f"{'s' * (made.threads > 1)} on {made.device} ({made.platform}). {made.made_by}, Python "
        f"{made.python}, {versions}; {', '.join(networks)}."
    )


def replaced(page: str, section: str) -> str:
    """The text of a page with `section` between its marks. Raises `ArtifactError` where they are missing."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ArtifactError(f"The page lacks the lines {BEGIN} and {END}. Put both in.")
    return f"{head}{BEGIN}\n\n{section}\n\n{END}{tail}"


def photograph(page: Path, picture: Path) -> str:
    """Make a picture of the top of a report; what came of it, in a sentence."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return f"There is no Chromium here, so {picture} was not made."
    with tempfile.TemporaryDirectory() as profile:
        own = [f"--user-data-dir={profile}", f"--screenshot={picture.resolve()}"]
        command = [browser, *OPTIONS, *own, page.resolve().as_uri()]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        except (subprocess.SubprocessError, OSError) as error:
            return f"{picture} could not be made: {error}"
    return f"Picture: {picture}"


def publish(source: Path, page: Path, *, minutes: float | None = None) -> list[str]:
    """Write findings, results and picture beside each other; what to tell of it.

    `source` is the folder of a comparison, or a results.json. Raises `ArtifactError` for what is none.
    """
    results = read_results(source)
    section, text = markdown(results, findings(results), minutes=minutes), page.read_text("utf-8")
    replaced(text, section)  # marks are there, before anything is written
    file = source / RESULTS if source.is_dir() else source
    kept, picture = page.with_suffix(".json"), page.with_suffix(".png")
    if file.resolve() != kept.resolve():
        shutil.copyfile(file, kept)
    section += f"\n\nEvery number is in [{kept.name}]({kept.name})."
    report, told = file.parent / "report.html", []
    if report.is_file():
        told.append(photograph(report, picture))
    if picture.is_file():
        section += f" The top of the report:\n\n![The report]({picture.name})"
    write_text(page, replaced(text, section))
    return [section, *told, f"Page: {page}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="folder of the comparison, or its results.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "study.md")
    parser.add_argument("--minutes", type=float, help="how long the whole command took, to be told")
    arguments = parser.parse_args()
    try:
        told = publish(arguments.results, arguments.page, minutes=arguments.minutes)
    except (UserError, OSError) as error:
        parser.error(str(error))
    print("\n\n".join(told))


if __name__ == "__main__":
    main()
