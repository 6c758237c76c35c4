"""Templates are filled with the subject and its class, with the article that fits, and nothing else."""

from __future__ import annotations

import pytest

from data_prep.captions import fill_template
from data_prep.errors import DataError


def filled(template: str, subject: str = "sks dog", class_noun: str | None = "dog") -> str:
    return fill_template(template, subject=subject, class_noun=class_noun, field="data.prompt")


@pytest.mark.parametrize(
    ("template", "subject", "class_noun", "expected"),
    [
        ("a photo of a {subject}", "sks dog", "dog", "a photo of a sks dog"),
        ("a photo of a {subject}", "<subject>", "dog", "a photo of a <subject>"),
        ("a photo of a {class}", "sks dog", "orange car", "a photo of an orange car"),
        ("A {class}, the {subject}", "sks owl", "owl", "An owl, the sks owl"),
        ("an {class}", "sks dog", "dog", "a dog"),
        ("an {class}", "sks owl", "owl", "an owl"),
        ("{subject} and {subject}", "sks dog", "dog", "sks dog and sks dog"),
        ("no placeholder", "sks dog", "dog", "no placeholder"),
        ("", "sks dog", "dog", ""),
    ],
)
def test_placeholders_and_articles(
    template: str, subject: str, class_noun: str, expected: str
) -> None:
    assert filled(template, subject, class_noun) == expected


@pytest.mark.parametrize(
    ("noun", "phrase"),
    [
        ("unicorn", "a unicorn"),
        ("uniform", "a uniform"),
        ("umbrella", "an umbrella"),
        ("one-eyed cat", "a one-eyed cat"),
        ("European cat", "a European cat"),
        ("Elephant", "an Elephant"),
    ],
)
def test_article_follows_the_sound(noun: str, phrase: str) -> None:
    assert filled("a {class}", class_noun=noun) == phrase
    assert filled("an {class}", class_noun=noun) == phrase


def test_the_users_own_words_are_left_alone() -> None:
    caption = "vitamin A is near a UFO, plan a escape, a {subject}"
    assert filled(caption) == caption.replace("{subject}", "sks dog")


def test_subject_that_looks_like_a_placeholder_is_not_filled_again() -> None:
    assert filled("a {subject}", subject="{class}") == "a {class}"


def test_class_without_a_class_noun_is_refused_with_the_field() -> None:
    with pytest.raises(
        DataError, match=r"^data\.prompt: 'a \{class\}' holds .*data\.class_noun=dog"
    ):
        filled("a {class}", class_noun=None)
    assert filled("a {subject}", class_noun=None) == "a sks dog"


@pytest.mark.parametrize("template", ["a {subjekt}", "a {}", "a { subject }"])
def test_unknown_placeholder_is_refused_with_the_field(template: str) -> None:
    with pytest.raises(DataError, match=r"^data\.prompt: .*only \{subject\} and \{class\} are"):
        filled(template)
