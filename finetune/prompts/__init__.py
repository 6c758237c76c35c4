"""Prompts of a suite: a list, a text file with a prompt a line, or YAML with a list per kind of subject.

`dreambooth`, the prompts of Ruiz et al. 2023, lies beside this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from data_prep.captions import fill_template
from data_prep.errors import DataError, did_you_mean
from finetune.errors import ConfigError

FOLDER = Path(__file__).resolve().parent
KINDS = ("live", "object")
MAX_PROMPT_BYTES = 1_000_000
"""Of a prompts file; larger ones are refused unread."""


@dataclass(frozen=True)
class PromptLine:
    """A prompt and where it stands."""

    text: str
    where: str
    """For messages: "prompts.txt, line 3"."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts for every kind of subject."""

    by_kind: dict[str, tuple[PromptLine, ...]]
    source: str
    """For messages."""

    def of(self, kind: str) -> tuple[PromptLine, ...]:
        """The prompts for subjects of a kind. Raises `ConfigError` if there are none."""
        if kind not in self.by_kind:
            raise ConfigError(
                f"{self.source} has no prompts for subjects of the kind {kind}. Add a list '{kind}:'."
            )
        return self.by_kind[kind]


def shipped_prompts() -> dict[str, Path]:
    """Name -> file of the prompts that come with the package."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def read_prompts(given: str | Sequence[str], *, field: str) -> PromptSet:
    """Prompts of a list, or of the file or shipped set that `given` names.

    Raises `ConfigError`, with file and line, for what is no prompt: no text, or an unknown placeholder.
    """
    if isinstance(given, str):
        name = shipped_prompts().get(given, Path(given).expanduser())
        lines = _from_file(name, given, field)
    else:
        both = tuple(PromptLine(text, f"{field}, number {n}") for n, text in enumerate(given, 1))
        lines = dict.fromkeys(KINDS, both)
    for kind, prompts in lines.items():
        _check(prompts, kind, given if isinstance(given, str) else field)
    return PromptSet(lines, given if isinstance(given, str) else field)


def require_subject(prompts: Sequence[PromptLine]) -> None:
    """Raise `ConfigError`, with file and line, unless every prompt mentions the subject."""
    for prompt in prompts:
        if "{subject}" not in prompt.text:
            raise ConfigError(
                f"{prompt.where}: '{prompt.text}' does not mention {{subject}}. Write it where the subject's "
                "name goes, as in 'a {subject} on the beach'."
            )


def _check(prompts: Sequence[PromptLine], kind: str, source: str) -> None:
    if not prompts:
        raise ConfigError(f"{source} holds no prompts for subjects of the kind {kind}.")
    seen: dict[str, str] = {}
    for prompt in prompts:
        try:
            fill_template(prompt.text, subject="dog", class_noun="dog", field=prompt.where)
        except DataError as error:
            raise ConfigError(str(error)) from error
        if not prompt.text.strip():
            raise ConfigError(f"{prompt.where}: the prompt is empty. Write one, or remove it.")
        if normalised(prompt.text) in seen:
            raise ConfigError(
                f"{prompt.where}: '{prompt.text}' stands at {seen[normalised(prompt.text)]} already. Remove "
                "one of them; num_images makes more pictures of a prompt."
            )
        seen[normalised(prompt.text)] = prompt.where


def normalised(prompt: str) -> str:
    """A prompt as it is compared with others: capitals, spaces and a last full stop do not count."""
    return " ".join(prompt.lower().split()).rstrip(" .")


def _from_file(path: Path, given: str, field: str) -> dict[str, tuple[PromptLine, ...]]:
    try:
        if path.stat().st_size > MAX_PROMPT_BYTES:
            raise ConfigError(f"{field}: {path} is larger than a megabyte. Shorten it.")
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{field}: {path} is not UTF-8 text: {error.reason}.") from error
    except OSError as error:
        known = shipped_prompts()
        raise ConfigError(
            f"{field}: '{given}' is no prompts file here ({error.strerror}) and no shipped set "
            f"({', '.join(known)}).{did_you_mean(given, known)}"
        ) from error
    if path.suffix.lower() in (".yaml", ".yml"):
        return _from_yaml(text, path)
    prompts = tuple(
        PromptLine(line.strip(), f"{path}, line {number}")
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip() and not line.lstrip().startswith("#")
    )
    return dict.fromkeys(KINDS, prompts)


def _from_yaml(text: str, path: Path) -> dict[str, tuple[PromptLine, ...]]:
    """A list, or lists per kind; composed, not loaded, because only nodes know their lines."""
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if isinstance(root, yaml.SequenceNode):
        return dict.fromkeys(KINDS, _lines(root, path))
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path} should hold a list of prompts, or one for each of {KINDS}.")
    found = {}
    for key, value in root.value:
        line = key.start_mark.line + 1
        if key.value not in KINDS:
            raise ConfigError(
                f"{path}, line {line}: '{key.value}' is no kind of subject; known: {', '.join(KINDS)}."
                f"{did_you_mean(str(key.value), KINDS)}"
            )
        if not isinstance(value, yaml.SequenceNode):
            raise ConfigError(f"{path}, line {line}: {key.value} should hold a list of prompts.")
        found[str(key.value)] = _lines(value, path)
    return found


def _lines(node: yaml.SequenceNode, path: Path) -> tuple[PromptLine, ...]:
    prompts = []
    for item in node.value:
        where = f"{path}, line {item.start_mark.line + 1}"
        if not isinstance(item, yaml.ScalarNode):
            hint = " Put it into quotes: YAML reads braces as a table."
            raise ConfigError(f"{where}: a prompt should be a text.{hint}")
        prompts.append(PromptLine(item.value, where))
    return tuple(prompts)
