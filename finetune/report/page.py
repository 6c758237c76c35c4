"""Results to one self-contained HTML file that opens offline: pictures inline, everything escaped.

The page asks nothing of the network: its content security policy forbids that, and allows the one style
sheet and the one script of this folder by their hashes. What users wrote (prompts, names, settings, errors)
reaches the page through an escaping template only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Final

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from finetune.files import write_text
from finetune.report import charts, gallery, numbers, tables
from finetune.report.pictures import PictureBook
from finetune.results import FROZEN_BASE, Results
from finetune.wording import NOTHING, decimal, plural

REPORT: Final = "report.html"
MAX_BYTES: Final = 15_000_000
_TEXT_BYTES: Final = 2_000_000
"""Kept free for everything but pictures."""
_HERE: Final = Path(__file__).resolve().parent
QUESTIONS: Final = {
    "subject": "Who kept the subject?",
    "prompt": "Who obeyed the prompt?",
    "class": "Who left the class alone?",
}


def write_page(results: Results, folder: Path) -> Path:
    """Write `folder`/report.html, whole or not at all; returns its path.

    Args:
        results: what the page shows; its pictures' paths are relative to `folder`. A picture that is not
            there or cannot be read leaves a box that says so.
        folder: where results.json lies.
    """
    path = folder / REPORT
    write_text(path, render(results, folder))
    return path


def render(results: Results, folder: Path, *, max_bytes: int = MAX_BYTES) -> str:
    """The page as HTML of at most `max_bytes` in UTF-8, as far as leaving out pictures achieves that."""
    book = PictureBook(folder, gallery.shelves(results), max_bytes=max(0, max_bytes - _TEXT_BYTES))
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "decimal": decimal,
        "plural": plural,
        "yaml": _yaml,
        "breakable": breakable,
    }
    galleries = gallery.galleries(results, book)
    num_variants = max((len(shown.variants) for shown in galleries), default=0)
    css = (_HERE / "page.css").read_text("utf-8") + _variant_rules(num_variants)
    script = (_HERE / "page.js").read_text("utf-8")
    return environment.get_template("page.html.jinja").render(
        results=results,
        css=Markup(css),
        script=Markup(script),
        policy=_policy(css, script),
        questions=QUESTIONS,
        arrows=numbers.ARROWS,
        directions=numbers.DIRECTIONS,
        facts=facts(results),
        num_compared=sum(row.kind != "reference" for row in results.rows),
        galleries=galleries,
        strips=gallery.strip_tables(results, book),
        book=book,
        num_variants=(num_variants, len(gallery.variants(results))),
        pareto=_svg(charts.pareto(results)),
        curves=_svg(charts.curves(results)),
        headline=tables.score_table(results, [s for s in results.scores if s.headline]),
        others=tables.score_table(results, [s for s in results.scores if not s.headline]),
        differences=tables.difference_tables(results),
        costs=tables.costs(results),
        trials=tables.trials(results),
        failures=tables.failures(results),
        judged={finding.score for finding in results.verdict},
        frozen_base=FROZEN_BASE,
        nothing=NOTHING,
        same_noise=same_noise(results),
    )


def facts(results: Results) -> list[str]:
    """What was compared, in a few short phrases."""
    compared = [row for row in results.rows if row.kind != "reference"]
    noun = "method" if all(row.kind == "method" for row in compared) else "row"
    prompts = [len([p for p in s.prompts if p.role == "test"]) for s in results.subjects]
    num_prompts = (
        f"{min(prompts)} to {max(prompts)}" if len(set(prompts)) > 1 else str(*set(prompts))
    )
    each = plural(results.num_images, "picture")
    found = [
        plural(len(compared), noun),
        plural(len(results.subjects), "subject"),
        f"{num_prompts} {'prompt' if num_prompts == '1' else 'prompts'}, {each} each",
        plural(len(results.seeds), "training seed"),
    ]
    if results.base is not None:
        found.append(f"base {results.base.source}")
    return found


def same_noise(results: Results) -> bool:
    """Whether every picture's noise is known and the same in every row."""
    seeds: dict[tuple[str, int, int, int], int] = {}
    for row in gallery.shown_rows(results):
        for cell in results.cells_of(row.name):
            for column, pictures in enumerate(cell.pictures):
                known = cell.noise_seeds[column] if column < len(cell.noise_seeds) else ()
                if len(known) != len(pictures):
                    return False
                for number, seed in enumerate(known):
                    if seeds.setdefault((cell.subject, cell.seed, column, number), seed) != seed:
                        return False
    return True


def _svg(drawn: list[tuple[str, str]]) -> list[tuple[str, Markup]]:
    return [(width, Markup(svg)) for width, svg in drawn]


def _yaml(values: Any) -> str:
    plain = json.loads(json.dumps(values, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def breakable(name: str) -> Markup:
    """`name`, escaped, that may go on in the next line after an underscore or a slash."""
    return Markup("").join(
        part + Markup("<wbr>") if part in "_/" else escape(part)
        for part in re.split("([_/])", name)
    )


def _variant_rules(num_variants: int) -> str:
    """CSS that shows, of every place in a table, the variant that is chosen above it."""
    chosen = [
        f'.gallery:has(input[value="{number}"]:checked) .shots > [data-variant="{number}"]'
        for number in range(num_variants)
    ]
    rule = ",\n".join(chosen) + " { display: block; }\n" if chosen else ""
    return f"@supports selector(:has(a)) {{\n{rule}}}\n"


def _policy(css: str, script: str) -> str:
    """The content security policy: nothing but this page's own pictures, style sheet and script."""

    def allowed(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    return "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            f"style-src {allowed(css)}",
            f"script-src {allowed(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
