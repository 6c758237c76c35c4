"""Captions: templates with placeholders, what mirroring changes, and captions that a model writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from PIL import Image

from data_prep.errors import DataError

CaptionImages = Callable[[Sequence[Image.Image]], list[str]]
"""Pictures -> what they show, one text each."""

_PLACEHOLDER = re.compile(r"(?:\b([Aa])n? )?\{([^{}]*)\}")
"""A placeholder and the article before it."""
_VOWEL_SOUND = re.compile(r"(?!uni(?![dmn])|use|eu|one\b)[aeiou]", re.IGNORECASE)


def fill_template(template: str, *, subject: str, class_noun: str | None, field: str) -> str:
    """`template` with `{subject}` and `{class}` replaced, and "a"/"an" before them agreeing.

    Raises `DataError`, naming `field`, for another placeholder or for `{class}` without a class noun.
    """

    def value(name: str) -> str:
        if name == "subject":
            return subject
        if name == "class":
            if not class_noun:
                raise DataError(
                    f"{field}: '{template}' holds {{class}}, but data.class_noun is not set. Say what "
                    "the subject is, for instance data.class_noun=dog."
                )
            return class_noun
        raise DataError(
            f"{field}: '{template}' holds {{{name}}}; only {{subject}} and {{class}} are known."
        )

    def phrase(match: re.Match[str]) -> str:
        article, filled = match.group(1), value(match.group(2))
        if article is None:
            return filled
        return f"{article}{'n' if _VOWEL_SOUND.match(filled) else ''} {filled}"

    return _PLACEHOLDER.sub(phrase, template)


_SIDE = re.compile(
    r"(?<!all )\b(left|right)(?=(?:most|wards?)?\b)"
    r"(?! (?:now|away|angle|angled|angles|over|behind|alone|next|before|after)\b)",
    re.IGNORECASE,
)
"""The sides, but not "right now", "all right", "left over" and their like."""


def mirrored_caption(caption: str) -> str:
    """`caption` of the mirrored photo: left and right change places, capitals stay.

    Other words that a mirror falsifies (what is written in the photo) are not known.
    """

    def other(match: re.Match[str]) -> str:
        side = match.group(1)
        swapped = "right" if side.lower() == "left" else "left"
        if side.isupper():
            return swapped.upper()
        return swapped.capitalize() if side[0].isupper() else swapped

    return _SIDE.sub(other, caption)


def with_subject(caption: str, class_noun: str | None, *, is_named: bool = False) -> str:
    """A model's `caption` as a template: the first mention of the class noun becomes `{subject}`.

    Where the class is not mentioned, "a photo of a {subject}" goes before it. With `is_named` the words
    stay, because those around them name the subject already.
    """
    text = " ".join(caption.replace("{", "(").replace("}", ")").split()).rstrip(" .")
    if is_named:
        return text
    if class_noun:
        noun = re.compile(rf"\b{re.escape(class_noun)}\b", re.IGNORECASE)
        found, count = noun.subn("{subject}", text, count=1)
        if count:
            return found
    return f"a photo of a {{subject}}, {text}" if text else "a photo of a {subject}"
