"""A short, seeded form of benchmarks/fuzz.py: mutated inputs give a value or one clear error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from finetune.config import parse_yaml
from finetune.errors import ConfigError

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "fuzz.py"


_TARGETS = {"png", "jpeg", "webp", "safetensors", "yaml", "metadata.jsonl", "notes", "checkpoint"}


@pytest.fixture(scope="module")
def fuzz(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    return load_script(SCRIPT)


@pytest.mark.parametrize("name", sorted(_TARGETS))
def test_mutated_inputs_give_a_value_or_a_clear_error(fuzz: ModuleType, name: str) -> None:
    assert set(fuzz.TARGETS) == _TARGETS
    results, longest, _ = fuzz.run_chunk(name, 0, 60)
    assert [found for found in results if found[1] not in ("value", "refused")] == []
    # Of a damaged checkpoint nothing is read.
    possible = {"refused"} if name == "checkpoint" else {"value", "refused"}
    assert {result for _, result in results} == possible
    assert longest < 5


def test_a_crash_would_be_found(fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(content: bytes, folder: Path) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setitem(fuzz.TARGETS, "yaml", (fuzz.TARGETS["yaml"][0], crash, True))
    assert fuzz.run_chunk("yaml", 3, 1)[0] == [(3, "ZeroDivisionError: by zero")]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "x: " + "9" * 5000,
        "x: 2001-99-99",
        "x: !!timestamp y",
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
            for old, new in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "a: &a {b: *a}",
    ],
    ids=["deep", "number", "date", "no date", "aliases", "circle"],
)
def test_hostile_yaml_is_refused_quickly(text: str) -> None:
    with pytest.raises(ConfigError, match="^here (is not valid YAML|holds more than)"):
        parse_yaml(text, "here")
