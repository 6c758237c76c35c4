"""Templates are filled with the subject and its class, with the article that fits, and nothing else."""

from __future__ import annotations

import pytest
from PIL import Image
from pydantic import ValidationError

from data_prep.captions import fill_template, mirrored_caption, with_subject
from data_prep.config import DataConfig
from data_prep.decode import Photo
from data_prep.errors import DataError
from data_prep.instances import captions_of


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


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("a {subject} looking left", "a {subject} looking right"),
        ("Left of the tree, RIGHT of the house", "Right of the tree, LEFT of the house"),
        ("on the left-hand side, leftmost, turned rightwards", None),
        ("all right, right now and right next to the left over food", None),
        ("bright, cleft, upright, rights", None),
        ("", None),
    ],
)
def test_left_and_right_change_places_in_a_mirrored_caption(
    caption: str, mirrored: str | None
) -> None:
    by_hand = {
        "on the left-hand side, leftmost, turned rightwards": (
            "on the right-hand side, rightmost, turned leftwards"
        )
    }
    expected = mirrored if mirrored is not None else by_hand.get(caption, caption)
    assert mirrored_caption(caption) == expected
    assert mirrored_caption(expected) == caption


@pytest.mark.parametrize(
    ("caption", "template"),
    [
        ("a brown dog on a sofa .", "a brown {subject} on a sofa"),
        ("A Dog and another dog", "A {subject} and another dog"),
        ("a hotdog {on} a plate", "a photo of a {subject}, a hotdog (on) a plate"),
        ("", "a photo of a {subject}"),
    ],
)
def test_the_class_noun_in_a_models_caption_becomes_the_subject(
    caption: str, template: str
) -> None:
    assert with_subject(caption, "dog") == template


def test_a_models_caption_stays_where_its_template_names_the_subject() -> None:
    assert with_subject("a  dog {x} .", "dog", is_named=True) == "a dog (x)"


def photo_with(caption: str | None, prompt: str | None = None) -> Photo:
    return Photo("a.png", Image.new("RGB", (8, 8)), caption, (), prompt=prompt)


def captions(photo: Photo, *, mirrored: bool = False, **settings: object) -> tuple[str, ...]:
    config = DataConfig(photos="p", class_noun="dog", **settings)
    return captions_of(photo, config, subject="sks dog", mirrored=mirrored)


def test_captions_come_from_the_photo_its_folder_or_the_configuration() -> None:
    several = ("a {subject}", "the {subject}, left of a {class}")
    assert captions(photo_with(None), prompt=several) == ("a sks dog", "the sks dog, left of a dog")
    assert captions(photo_with(None), prompt=several, mirrored=True)[1] == (
        "the sks dog, right of a dog"
    )
    assert captions(photo_with(None, "my {subject}"), prompt=several) == ("my sks dog",)
    own = photo_with("on a sofa", "my {subject}")
    assert captions(own, prompt=several) == ("on a sofa",)
    template = "a photo of a {subject}, {caption}"
    assert captions(own, caption_template=template) == ("a photo of a sks dog, on a sofa",)
    with pytest.raises(DataError, match=r"caption of a\.png: 'a \{subjekt\}'"):
        captions(photo_with("a {subjekt}"))
    with pytest.raises(DataError, match=r"prompt of a\.png"):
        captions(photo_with(None, "a {x}"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt", [], "a text or a list of texts"),
        ("prompt", 3, "a text or a list of texts"),
        ("caption_template", "a photo", "should hold {caption}"),
        ("repeats", 0, "greater than or equal to 1"),
        ("more_photos", [{"path": "a", "repeats": 2000}], "less than or equal to 1000"),
        ("unmasked_weight", 1.5, "less than or equal to 1"),
        ("color_jitter", 1.0, "less than 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate({"photos": "p", field: value})
