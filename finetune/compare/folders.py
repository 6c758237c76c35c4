"""Pictures that any tool made, scored: a folder of pictures, the prompts they were made with, a subject.

Which prompt a picture is of is read from its name, `NN-anything.png` with NN the prompt's number from 0 (so
`finetune generate` writes them), from its subfolder, `NN` or `NN-anything`, or from a `metadata.jsonl` with
`file_name` and `prompt` (a number from 0, or the prompt itself). The seed, where there is one, is the number
after the first hyphen, or the key `seed`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.captions import fill_template
from data_prep.kinds import ALL_SUFFIXES
from data_prep.sources import leads_out, printable
from finetune.errors import ConfigError, DataError
from finetune.results import Prompt, Role

_NUMBER = re.compile(r"(\d+)(?:-(\d+))?")
METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class FoundPicture:
    """A picture with its place among the prompts."""

    path: Path
    prompt: int
    seed: int | None


Found = Sequence[Sequence[FoundPicture]]
"""Pictures [prompt, picture]."""


def prompts_of(templates: Sequence[str], class_noun: str) -> tuple[Prompt, ...]:
    """Prompts with their roles: with `{subject}` test, with `{class}` class, else unrelated.

    They keep their order, which pictures' names refer to.
    """

    def role(template: str) -> Role:
        if "{subject}" in template:
            return "test"
        return "class" if "{class}" in template else "unrelated"

    return tuple(
        Prompt(
            template=template,
            text=fill_template(
                template, subject=class_noun, class_noun=class_noun, field="--prompts"
            ),
            role=role(template),
        )
        for template in templates
    )


def find_pictures(folder: Path, prompts: Sequence[Prompt]) -> list[list[FoundPicture]]:
    """Pictures of a folder, [prompt, picture], by seed and then name. Raises `DataError`, with the file."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder. Give a folder of pictures.")
    listed = folder / METADATA
    found = list(_from_metadata(listed, prompts) if listed.is_file() else _by_name(folder))
    if not found:
        raise DataError(f"{folder} holds no pictures. Known kinds: {', '.join(ALL_SUFFIXES)}.")
    table: list[list[FoundPicture]] = [[] for _ in prompts]
    for picture in found:
        if picture.prompt >= len(prompts):
            raise DataError(
                f"{picture.path} is of prompt {picture.prompt}, but there are only {len(prompts)}, numbered "
                "from 0. Give the prompts file it was made with."
            )
        table[picture.prompt].append(picture)
    for row in table:
        row.sort(key=lambda picture: (picture.seed is None, picture.seed or 0, picture.path.name))
    if not any(table[place] for place, prompt in enumerate(prompts) if prompt.role == "test"):
        raise DataError(f"{folder} holds no picture of a prompt with {{subject}}, only of others.")
    return table


def _by_name(folder: Path) -> list[FoundPicture]:
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in ALL_SUFFIXES or path.name.startswith("."):
            continue
        relative = path.relative_to(folder)
        if len(relative.parts) == 1 and path.stem == "grid":  # what `finetune generate` adds
            continue
        match = _NUMBER.match(relative.parts[0])
        if match is None:
            raise DataError(
                f"{path} does not tell which prompt it is of. Name it NN-..., NN being the prompt's number "
                f"in the prompts file counted from 0, put it into a folder NN, or write {METADATA}."
            )
        own = _NUMBER.match(relative.name)
        seed = match.group(2) if len(relative.parts) == 1 else (own and own.group(1))
        found.append(FoundPicture(path, int(match.group(1)), None if seed is None else int(seed)))
    return found


def _from_metadata(path: Path, prompts: Sequence[Prompt]) -> list[FoundPicture]:
    texts = {text: place for place, p in enumerate(prompts) for text in (p.template, p.text)}
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason}. Save it as UTF-8.") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            picture, prompt = path.parent / str(row["file_name"]), row["prompt"]
            seed = row.get("seed")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{where}: expected file_name, prompt and perhaps seed ({error})."
            ) from error
        is_number = isinstance(prompt, int) and not isinstance(prompt, bool)
        place = prompt if is_number else texts.get(str(prompt))
        if place is None or place < 0:
            raise DataError(f"{where}: the prompt {prompt!r} is none of the prompts file.")
        if not _lies_in(path.parent, picture):
            shown = printable(str(row["file_name"]))
            raise DataError(f"{where}: there is no picture {shown} in {path.parent}.")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise DataError(f"{where}: seed is {seed!r}; give a whole number.")
        found.append(FoundPicture(picture, place, seed))
    return found


def _lies_in(folder: Path, picture: Path) -> bool:
    try:
        return not leads_out(picture, folder) and picture.is_file()
    except OSError:  # a name that no file can have, links in a circle
        return False


def check_same_seeds(tables: Mapping[str, Found]) -> None:
    """Raise `ConfigError` where two folders say that a picture's seed is another at the same place."""
    known: dict[tuple[int, int], tuple[str, FoundPicture]] = {}
    for name, table in tables.items():
        for prompt, row in enumerate(table):
            for place, picture in enumerate(row):
                if picture.seed is None:
                    continue
                other, first = known.setdefault((prompt, place), (name, picture))
                if first.seed != picture.seed:
                    raise ConfigError(
                        f"{first.path} and {picture.path}, both of prompt {prompt}, have different seeds, "
                        f"so {other} and {name} cannot be compared picture by picture. Make them with the "
                        "same seeds."
                    )
