"""Which method trains which model family, told by what both say of themselves."""

from __future__ import annotations

from collections.abc import Mapping

from finetune.families import FAMILIES
from finetune.method import Method, why_unsupported


def support_table(methods: Mapping[str, Method]) -> list[tuple[str, ...]]:
    """A row per family below a row of headings; a cell is "yes", or "no" and the reason."""
    rows = [("family", "bases", *methods, "trainable text encoders")]
    for family in FAMILIES:
        cells = []
        for method in methods.values():
            reason = why_unsupported(method.requirements(), family)
            cells.append("yes" if reason is None else f"no: {reason}")
        encoders = ", ".join(family.trainable_text_encoders)
        rows.append((family.name, family.title, *cells, encoders))
    return rows


def as_markdown(rows: list[tuple[str, ...]]) -> str:
    """The rows as a table in Markdown, without a line break at the end."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
