"""Results to one self-contained HTML file: pictures inline, no script, everything escaped."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from finetune.compare import Comparison, Row, Score

_TEMPLATES = Path(__file__).resolve().parent


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _score(score: Score) -> str:
    return f"{score.mean:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _size(count: int | None) -> str:
    if count is None:
        return "–"
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"


def verdict(comparison: Comparison) -> list[str]:
    """What the intervals allow to say, in words: "cannot tell" where they overlap."""
    base, methods = comparison.rows[0], comparison.rows[1:]
    sentences = []
    for name, question, largest in (
        ("subject", "kept the subject best", True),
        ("prompt", "obeyed the prompts best", True),
        ("class_to_subject", "left the class alone best", False),
    ):
        ranked = sorted(methods, key=lambda row: row.scores[name].mean, reverse=largest)
        first = ranked[0].scores[name]

        def apart(
            other: Row, first: Score = first, name: str = name, largest: bool = largest
        ) -> bool:
            score = other.scores[name]
            return score.high < first.low if largest else score.low > first.high

        num_pictures = comparison.settings["num_images"] * (
            1 if name == "class_to_subject" else len(comparison.columns) - 1
        )
        ties = [row.name for row in ranked[1:] if num_pictures < 3 or not apart(row)]
        if ties:
            sentences.append(
                f"Which one {question}: cannot tell {ranked[0].name} from {', '.join(ties)}; their "
                f"intervals over {num_pictures} pictures overlap."
            )
        else:
            sentences.append(f"{ranked[0].name} {question} ({_score(first)}).")
    scale = f"For scale: the frozen base scores {base.scores['subject'].mean:.3f} on the subject"
    if comparison.real_similarity is not None:
        scale += f", the photos among themselves {comparison.real_similarity:.3f}"
    sentences.append(scale + ".")
    return sentences


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the page to `path`."""
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True)
    rows = [
        {
            "name": row.name,
            "subject": row.subject,
            "pictures": [[_data_uri(image) for image in column] for column in row.images],
            "scores": {name: _score(score) for name, score in row.scores.items()},
            "steps": "–" if row.num_steps is None else row.num_steps,
            "seconds": "–" if row.train_seconds is None else f"{row.train_seconds:.0f} s",
            "memory": _size(row.peak_memory_bytes),
            "artifact": _size(row.artifact_bytes),
        }
        for row in comparison.rows
    ]
    html = environment.get_template("page.html.jinja").render(
        class_noun=comparison.settings["data"]["class_noun"],
        photos=[_data_uri(photo) for photo in comparison.photos],
        columns=comparison.columns,
        rows=rows,
        verdict=verdict(comparison),
        scorer=comparison.scorer,
        num_images=comparison.settings["num_images"],
        settings=comparison.settings,
    )
    path.write_text(html, encoding="utf-8")
