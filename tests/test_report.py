"""What a comparison says in words, and the page it says it on."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from finetune.compare import Comparison, Row, Score
from finetune.report import write_page
from finetune.report.page import verdict


def row(name: str, subject: float, prompt: float = 0.5, class_to_subject: float = 0.2) -> Row:
    """A row whose intervals reach 0.05 to both sides."""
    values = {"subject": subject, "prompt": prompt, "class_to_subject": class_to_subject}
    scores = {key: Score(mean, mean - 0.05, mean + 0.05) for key, mean in values.items()}
    images = [[Image.new("RGB", (8, 8), "red")]] * 3
    return Row(name, "sks dog", scores, images=images)


def comparison(*methods: Row, num_images: int = 4, photos: float | None = 0.9) -> Comparison:
    return Comparison(
        photos=[Image.new("RGB", (8, 8))],
        columns=["a photo of a dog", "a dog & a <b>cat</b>", "a dog"],
        rows=[row("frozen base", 0.31), *methods],
        scorer="clay-clip",
        real_similarity=photos,
        settings={"num_images": num_images, "data": {"class_noun": "<script>dog"}},
    )


def test_the_best_is_named_when_no_interval_reaches_its_own() -> None:
    sentences = verdict(comparison(row("a", 0.6), row("b", 0.71, class_to_subject=0.31)))
    assert sentences[0] == "b kept the subject best (0.710 [0.660, 0.760])."
    assert sentences[1] == (
        "Which one obeyed the prompts best: cannot tell a from b; their intervals over 8 pictures "
        "overlap."
    )
    assert sentences[2] == "a left the class alone best (0.200 [0.150, 0.250])."  # lowest is best
    assert sentences[3] == (
        "For scale: the frozen base scores 0.310 on the subject, the photos among themselves 0.900."
    )


def test_only_those_it_cannot_be_told_from_are_named() -> None:
    sentences = verdict(comparison(row("a", 0.3), row("b", 0.7), row("c", 0.65)))
    assert "cannot tell b from c;" in sentences[0]


def test_two_pictures_tell_nothing() -> None:
    sentences = verdict(comparison(row("a", 0.1), row("b", 0.9), num_images=1))
    assert "cannot tell b from a" in sentences[0]  # two prompts of one picture each


def test_a_single_photo_has_no_ceiling() -> None:
    assert verdict(comparison(row("a", 0.5), photos=None))[-1] == (
        "For scale: the frozen base scores 0.310 on the subject."
    )


def test_what_users_wrote_is_escaped_on_the_page(tmp_path: Path) -> None:
    write_page(comparison(row("<i>a</i>", 0.5)), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<script" not in page
    assert "<i>a" not in page
    assert "&lt;b&gt;cat" in page
