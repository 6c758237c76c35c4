"""The methods: name -> class, imported only when asked for, so that a broken plug-in breaks nobody else.

Another package adds a method with an entry point in the group `finetune.methods`:

    [project.entry-points."finetune.methods"]
    my_method = "my_package.my_module:MyMethod"
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any

from finetune.errors import ConfigError, did_you_mean

METHODS: dict[str, str] = {
    "dreambooth": "methods.dreambooth:DreamBooth",
    "textual_inversion": "methods.textual_inversion:TextualInversion",
    "lora": "methods.lora:LoRA",
}
"""Name -> "module:Class" of the methods that come with the toolkit."""

ENTRY_POINT_GROUP = "finetune.methods"


def available_methods() -> dict[str, str]:
    """Name -> "module:Class", those of other installed packages included."""
    found = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    return {**found, **METHODS}


def load_method(kind: str) -> Any:
    """The class of the method `kind`. Raises `ConfigError` for an unknown or broken one."""
    known = available_methods()
    if kind not in known:
        raise ConfigError(
            f"method.kind: there is no method '{kind}'. Known: {', '.join(sorted(known))}."
            f"{did_you_mean(kind, known)}"
        )
    module_name, _, class_name = known[kind].partition(":")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # whatever a foreign module raises
        raise ConfigError(
            f"method.kind: the method '{kind}' ({known[kind]}) cannot be imported: {error}. "
            "Reinstall or remove the package that provides it."
        ) from error
