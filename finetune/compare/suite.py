"""Subjects and prompts of a comparison: one subject, or a folder of them with subjects.yaml."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from data_prep.captions import fill_template
from data_prep.config import DataConfig, Section
from data_prep.sources import printable
from finetune.compare.config import CompareConfig, SubjectKind
from finetune.config import is_plain_name, read_yaml, validate
from finetune.errors import ConfigError, DataError, did_you_mean
from finetune.photos import ScoredPhoto, scored_photos
from finetune.prompts import PromptLine, PromptSet, normalised, read_prompts, require_subject
from finetune.results import Prompt, Role
from finetune.validation import ValidationConfig

SUBJECTS_FILE = "subjects.yaml"
_LINES = "a line for each subject ('rex: {class_noun: dog, kind: live}')"


class SubjectEntry(Section):
    """What subjects.yaml says of one subject."""

    class_noun: str = Field(min_length=1)
    """What it is: "dog", "coffee mug"."""
    kind: SubjectKind = "object"
    """Which prompts of a prompts file are for it."""
    photos: str | None = Field(None, min_length=1)
    """Its photos, relative to the file; null takes the folder of its name."""


@dataclass(frozen=True)
class SuiteSubject:
    """One subject, with all that pictures of it are made and scored by."""

    name: str
    class_noun: str
    kind: SubjectKind
    data: DataConfig
    photos: tuple[ScoredPhoto, ...]
    prompts: tuple[Prompt, ...]
    """In the order test, class, unrelated."""
    validation: tuple[str, ...]
    """Templates of the validation prompts."""

    def identity(self) -> dict[str, Any]:
        """What a comparison remembers of it: no paths."""
        data = self.data.model_dump(mode="json", exclude={"photos", "more_photos", "class_noun"})
        return {
            "class_noun": self.class_noun,
            "photos": [photo.identity() for photo in self.photos],
            "prompts": [[prompt.role, prompt.template] for prompt in self.prompts],
            "validation_prompts": list(self.validation),
            "data": data,
        }


def subject_name(photos: str) -> str:
    """What a subject is called: as the folder, or data set, of its photos."""
    name = printable(Path(photos).expanduser().resolve().name) or "subject"
    return name if is_plain_name(name) else "subject"


def subject_names(config: CompareConfig) -> list[str]:
    """All that there are, of which `subjects` may choose some. Raises `ConfigError`."""
    return list(_entries(config.model_copy(update={"subjects": ()})))


def _entries(config: CompareConfig) -> dict[str, SubjectEntry]:
    """Name -> entry, its `photos` a path that can be read from here."""
    data = config.data
    folder = Path(data.photos).expanduser()
    file = folder / SUBJECTS_FILE
    if not file.is_file():
        if config.subjects:
            raise ConfigError(
                f"subjects: {data.photos} is one subject; it holds no {SUBJECTS_FILE}."
            )
        _refuse_bare_suite(folder)
        if not data.class_noun:
            raise ConfigError(
                "data.class_noun is not set; the frozen base needs it (data.class_noun=dog)."
            )
        entry = SubjectEntry(class_noun=data.class_noun, kind=config.kind, photos=data.photos)
        return {subject_name(data.photos): entry}
    for field, given in (("class_noun", data.class_noun), ("more_photos", data.more_photos)):
        if given:
            raise ConfigError(
                f"data.{field}: of a folder of subjects {file} says it for each. Set data.{field}=null."
            )
    entries = _listed(file)
    for name in config.subjects:
        if name not in entries:
            raise ConfigError(
                f"subjects: {file} has no '{name}'; it has {', '.join(entries)}."
                f"{did_you_mean(name, entries)}"
            )
    return {name: entries[name] for name in config.subjects} or entries


def _listed(file: Path) -> dict[str, SubjectEntry]:
    """What subjects.yaml holds."""
    values_by_name = read_yaml(file, holding=_LINES)
    if not values_by_name:
        raise ConfigError(f"{file} should hold {_LINES}.")
    entries = {}
    for name, values in values_by_name.items():
        if not is_plain_name(str(name)) or str(name).startswith("."):
            raise ConfigError(f"{file}: '{name}' cannot be a folder's name. Choose another.")
        said = values if isinstance(values, dict) else {"class_noun": values}
        entry = validate(SubjectEntry, said, f"{file}, {name}")
        photos = str(file.parent / (entry.photos or str(name)))
        entries[str(name)] = entry.model_copy(update={"photos": photos})
    return entries


def _refuse_bare_suite(folder: Path) -> None:
    """Raise `ConfigError` for a folder of folders without the file that says what they are."""
    if not folder.is_dir() or any(path.is_file() for path in folder.iterdir()):
        return
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if folders:
        raise ConfigError(
            f"data.photos: {folder} holds no photos but folders. If each is a subject, say what it is in "
            f"{folder / SUBJECTS_FILE}, one line each: '{folders[0]}: {{class_noun: dog, kind: live}}'."
        )


def _prompts(
    lines: Sequence[PromptLine], config: CompareConfig, class_noun: str
) -> tuple[Prompt, ...]:
    """Test prompts, class prompts and unrelated prompts of a subject."""

    def prompt(template: str, role: Role, field: str) -> Prompt:
        text = fill_template(template, subject=class_noun, class_noun=class_noun, field=field)
        return Prompt(template=template, text=text, role=role)

    of_class = read_prompts(config.class_prompts, field="class_prompts").of("object")
    for line in of_class:
        if "{class}" not in line.text or "{subject}" in line.text:
            raise ConfigError(
                f"{line.where}: '{line.text}' should hold {{class}} and not {{subject}}."
            )
    return (
        *(prompt(line.text, "test", line.where) for line in lines),
        *(prompt(line.text, "class", line.where) for line in of_class),
        *(
            prompt(text, "unrelated", "unrelated_prompts")
            for text in _unrelated(config, class_noun)
        ),
    )


def _unrelated(config: CompareConfig, class_noun: str) -> list[str]:
    """The unrelated prompts that do not name a class, be it as one or as several."""
    if not config.unrelated_prompts:
        return []
    class_named = re.compile(rf"\b{re.escape(normalised(class_noun))}(?:e?s)?\b")
    found = []
    for line in read_prompts(config.unrelated_prompts, field="unrelated_prompts").of("object"):
        if "{" in line.text:
            raise ConfigError(f"{line.where}: '{line.text}' is about the subject or its class.")
        if not class_named.search(normalised(line.text)):
            found.append(line.text)
    return found


def check_disjoint(prompts: Sequence[Prompt], validation: Sequence[str]) -> None:
    """Raise `ConfigError` if a validation prompt is one that rows are ranked by."""
    ranked = {normalised(prompt.template) for prompt in prompts}
    for template in validation:
        if normalised(template) in ranked:
            raise ConfigError(
                f"validation.prompts: '{template}' is also a prompt of the comparison. Settings would be "
                "chosen on what they are ranked by; give other validation prompts."
            )


def uses_validation(config: CompareConfig) -> bool:
    """Whether anything is measured on validation prompts."""
    return config.validation.every is not None or config.tune is not None


def load_suite(config: CompareConfig, *, size: int) -> tuple[SuiteSubject, ...]:
    """All subjects, photos decoded at `size`. Raises `ConfigError` or `DataError` for what cannot be used."""
    given: PromptSet = read_prompts(config.prompts, field="prompts")
    subjects = []
    for name, entry in _entries(config).items():
        lines = given.of(entry.kind)
        require_subject(lines)
        prompts = _prompts(lines, config, entry.class_noun)
        validation: tuple[str, ...] = ()
        if uses_validation(config):
            validation = _validation(config.validation, entry, prompts)
        data = config.data.model_copy(
            update={"photos": entry.photos, "class_noun": entry.class_noun}
        )
        try:
            photos = scored_photos(data, size=size)
        except DataError as error:
            raise DataError(f"Subject {name}: {error}") from error
        subject = SuiteSubject(
            name, entry.class_noun, entry.kind, data, tuple(photos), prompts, validation
        )
        subjects.append(subject)
    return tuple(subjects)


def _validation(
    config: ValidationConfig, entry: SubjectEntry, prompts: Sequence[Prompt]
) -> tuple[str, ...]:
    """A subject's validation templates; of the defaults those that are prompts of the comparison are left."""
    templates = config.templates(entry.kind)
    if "prompts" not in config.model_fields_set:
        ranked = {normalised(prompt.template) for prompt in prompts}
        kept = tuple(template for template in templates if normalised(template) not in ranked)
        config.model_copy(update={"prompts": kept}).templates(entry.kind)  # still of both kinds
        return kept
    check_disjoint(prompts, templates)
    return templates
