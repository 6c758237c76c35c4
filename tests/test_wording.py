"""Numbers, lists and plurals in words."""

from __future__ import annotations

import pytest

from finetune.wording import decimal, listing, plural

MINUS = "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (None, False, "–"),
        (0.12345, False, "0.123"),
        (-0.12345, False, f"{MINUS}0.123"),
        (0.12345, True, "+0.123"),
        (-0.0001, True, "0.000"),
        (0.0, True, "0.000"),
        (1.0, False, "1.000"),
    ],
)
def test_decimals(value: float | None, signed: bool, text: str) -> None:
    assert decimal(value, signed=signed) == text


def test_lists_and_plurals() -> None:
    assert [listing(["a", "b", "c"][:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert listing(["a", "b", "c"], last="or") == "a, b or c"
    assert [plural(n, "prompt") for n in (0, 1, 2)] == ["0 prompts", "1 prompt", "2 prompts"]
