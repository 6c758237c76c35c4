"""Captions: templates with placeholders for the subject and its class."""

from __future__ import annotations

import re

from data_prep.errors import DataError

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
