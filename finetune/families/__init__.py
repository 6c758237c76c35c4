"""One final class per model family: what a frozen base is. `find_family` recognises a checkpoint."""

from __future__ import annotations

from collections.abc import Collection

from finetune.errors import ArtifactError
from finetune.families.base import ModelFamily
from finetune.families.flux import Flux
from finetune.families.sd import StableDiffusion
from finetune.families.sd3 import StableDiffusion3
from finetune.families.sdxl import StableDiffusionXL

FAMILIES: tuple[ModelFamily, ...] = (
    StableDiffusion(),
    StableDiffusionXL(),
    StableDiffusion3(),
    Flux(),
)
_LIBRARIES = {"diffusers", "transformers", "stable_diffusion"}
"""Where the parts of a pipeline come from; the last is the old name of the safety checker's."""


def find_family(model_index: dict[str, object], source: str) -> ModelFamily:
    """The family of a checkpoint, told from its model_index.json before any weight is read.

    Raises `ArtifactError` for a pipeline of another class, and for one with code of its own.
    """
    require_known_libraries(model_index, source)
    for family in FAMILIES:
        if family.matches(model_index):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ArtifactError(
        f"{source} is a {model_index.get('_class_name', 'pipeline of unknown class')}; "
        f"this version trains {known} bases. Name one of those under base.source."
    )


def require_known_libraries(model_index: dict[str, object], source: str) -> None:
    """Raise `ArtifactError` if a model_index.json names code of other packages, or of its own."""
    for name, part in model_index.items():
        if not isinstance(part, list) or not part or part[0] is None:
            continue
        if part[0] not in _LIBRARIES:
            what = "its pipeline" if name == "_class_name" else name
            raise ArtifactError(
                f"{source} brings code of its own for {what} ({'.'.join(str(p) for p in part)}), which is "
                "never run. Use a checkpoint of diffusers' own classes."
            )


def find_single_file_family(keys: Collection[str], source: str) -> ModelFamily:
    """The family of a single-file checkpoint, told from the names of its tensors."""
    for family in FAMILIES:
        if family.matches_single_file(keys):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ArtifactError(
        f"{source} is no single-file checkpoint that can be read: the names of its tensors are those of "
        f"none of {known}, or its text encoder is missing. Give a diffusers folder."
    )


def family_named(name: str) -> ModelFamily:
    """The family called `name`. Raises `ArtifactError` for one that this version does not know."""
    for family in FAMILIES:
        if family.name == name:
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ArtifactError(f"There is no model family '{name}'; this version knows {known}.")
