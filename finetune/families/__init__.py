"""One final class per model family: what a frozen base is. `find_family` recognises a checkpoint."""

from __future__ import annotations

from finetune.errors import ArtifactError
from finetune.families.base import ModelFamily
from finetune.families.sd import StableDiffusion

FAMILIES: tuple[ModelFamily, ...] = (StableDiffusion(),)


def find_family(model_index: dict[str, object], source: str) -> ModelFamily:
    """The family of a checkpoint, told from its model_index.json before any weight is read."""
    for family in FAMILIES:
        if family.matches(model_index):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ArtifactError(
        f"{source} is a {model_index.get('_class_name', 'pipeline of unknown class')}; "
        f"this version trains {known} bases. Name one of those under base.source."
    )


def family_named(name: str) -> ModelFamily:
    """The family called `name`. Raises `ArtifactError` for one that this version does not know."""
    for family in FAMILIES:
        if family.name == name:
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ArtifactError(f"There is no model family '{name}'; this version knows {known}.")
