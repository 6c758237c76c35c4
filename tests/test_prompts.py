"""Prompts from lists and files; every mistake with its file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from finetune.errors import ConfigError
from finetune.prompts import normalised, read_prompts, require_subject


def read_all(given: str | list[str]) -> None:
    for kind in ("live", "object"):
        require_subject(read_prompts(given, field="prompts").of(kind))


def refused(given: str | list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        read_all(given)


def test_the_dreambooth_prompts_are_25_per_kind_of_which_15_are_shared() -> None:
    prompts = read_prompts("dreambooth", field="prompts")
    live, thing = ([line.text for line in prompts.of(kind)] for kind in ("live", "object"))
    assert len(live) == len(thing) == 25
    assert len(set(live) & set(thing)) == 15
    assert "a {subject} in a purple wizard outfit" in set(live) - set(thing)
    assert "a {subject} with the Eiffel Tower in the background" in set(thing) - set(live)
    require_subject(prompts.of("live"))


def test_a_text_file_is_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("# places\na {subject} at sea\n\n  a {subject} at home \n", "utf-8")
    lines = read_prompts(str(path), field="prompts").of("live")
    assert [line.text for line in lines] == ["a {subject} at sea", "a {subject} at home"]
    assert lines[1].where == f"{path}, line 4"


def test_a_missing_placeholder_is_named_by_file_and_line(tmp_path: Path) -> None:
    text, table = tmp_path / "prompts.txt", tmp_path / "prompts.yaml"
    text.write_text("a {subject} at sea\na dog at home\n")
    refused(str(text), re.escape(f"{text}, line 2: 'a dog at home' does not mention {{subject}}"))
    table.write_text("# mine\nobject:\n  - a {subject}\nlive:\n  - a {subject}\n  - a dog\n")
    refused(str(table), re.escape(f"{table}, line 6: 'a dog' does not mention {{subject}}"))
    refused(["a {subject}", "a dog"], "prompts, number 2: 'a dog' does not mention")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("live:\n  - a {subject}\n", "no prompts for subjects of the kind object"),
        ("alive:\n  - a {subject}\n", "line 1: 'alive' is no kind .* Did you mean 'live'"),
        ("- {subject} at sea\n", "not valid YAML|quotes: YAML reads braces as a table"),
        ("- a {subject}\n- {subject}\n", "line 2: a prompt should be a text.*quotes"),
        ("- a {subject} of {foo}\n", "line 1.*{foo}"),
        ("- a {subject}\n- A  {subject}.\n", "line 2.*stands at .* line 1 already"),
        ("42", "should hold a list"),
        ("live: 3\n", "line 1: live should hold a list"),
        ("[]", "holds no prompts"),
    ],
)
def test_a_prompts_file_that_cannot_be_used(content: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(content)
    refused(str(path), match)


def test_a_prompts_file_that_is_not_there(tmp_path: Path) -> None:
    refused("dreamboth", "no shipped set .*Did you mean 'dreambooth'")
    binary = tmp_path / "prompts.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    refused(str(binary), "not UTF-8")


def test_prompts_are_the_same_whatever_their_capitals_and_spaces() -> None:
    assert normalised(" A {subject}  at sea. ") == normalised("a {subject} at sea")
