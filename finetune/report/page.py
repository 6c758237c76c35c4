"""Results to one self-contained HTML file: pictures inline, no script, everything escaped."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from finetune.files import write_text
from finetune.results import Results

_TEMPLATES = Path(__file__).resolve().parent


def write_page(results: Results, folder: Path) -> Path:
    """Write `folder`/report.html and return its path."""
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True)
    html = environment.get_template("page.html.jinja").render(results=results)
    path = folder / "report.html"
    write_text(path, html)
    return path
