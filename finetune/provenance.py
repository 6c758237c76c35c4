"""What a run was made of, and whether it still is: a resumed run is the same run or it is refused.

Knows which settings may change on the way because they do not touch what is learnt, or do so in a way
that the user wants.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from data_prep.loader import TrainingData
from finetune.base import BasePipeline
from finetune.config import RunConfig, differences
from finetune.errors import CheckpointError, ConfigError, did_you_mean

SAFE_CHANGES: dict[str, str] = {
    "training.num_steps": "longer or shorter; a falling schedule then falls to the new end",
    "training.gradient_accumulation_steps": "the same but for rounding",
    "training.checkpoint_every": "how much a crash may cost",
    "training.max_non_finite_steps": "when to give up",
    "training.gradient_checkpointing": "memory against time",
    "training.offload": "what rests in main memory",
    "training.attention": "the same but for rounding",
    "training.compile": "the same but for rounding",
    "prior.batch_size": "class pictures made at a time",
    "sampling": "how pictures are made",
    "samples": "pictures made while training",
    "tracking": "where figures go",
    "base.source": "the base has moved; its weights have to be the same",
    "base.single_file_config": "the same configurations elsewhere",
    "data.photos": "the photos have moved; they have to be the same",
    "data.more_photos": "the same",
    "prior.photos": "the same",
}
"""What `--allow-change` takes, with what it means."""


def check_allowed(allow_changes: Collection[str]) -> None:
    """Raise `ConfigError` for a field that cannot change within one run."""
    for field in allow_changes:
        if not any(field == safe or field.startswith(f"{safe}.") for safe in SAFE_CHANGES):
            raise ConfigError(
                f"--allow-change: {field} shapes what is learnt; with another value it is another run. "
                f"May change: {', '.join(SAFE_CHANGES)}.{did_you_mean(field, SAFE_CHANGES)}"
            )


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _resolved(values: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
    """A run's stored values with defaults for fields that are newer than the run."""
    try:
        method = type(config.method).model_validate(values["method"])
        old = RunConfig.model_validate({**values, "method": method})
    except (ValidationError, KeyError, TypeError):
        return {key: value for key, value in values.items() if key != "output"}
    return old.model_dump(mode="json", exclude={"output"})


def check_config(
    stored: Mapping[str, Any], config: RunConfig, folder: Path, *, allow_changes: Collection[str]
) -> None:
    """Raise `CheckpointError` with a diff if `config` is not the run's, but for `allow_changes`."""
    # A run may have been moved, so where it lies makes no difference.
    old, now = _resolved(stored, config), config.model_dump(mode="json", exclude={"output"})
    before, after = dict(_leaves(old)), dict(_leaves(now))
    missing = object()
    changed = [
        key
        for key in {**before, **after}
        if before.get(key, missing) != after.get(key, missing)
        and not any(key == field or key.startswith(f"{field}.") for field in allow_changes)
    ]
    if not changed:
        return
    texts = [
        yaml.safe_dump({key: side[key] for key in changed if key in side}, sort_keys=False)
        for side in (before, after)
    ]
    safe = [k for k in changed if any(k == s or k.startswith(f"{s}.") for s in SAFE_CHANGES)]
    hint = f" May change with {' '.join(f'--allow-change {key}' for key in safe)}." if safe else ""
    raise CheckpointError(
        f"{folder} was started with another configuration, so it cannot be resumed with this one. Undo the "
        f"changes or start a new run (output=...).{hint}\n{differences(texts[0], texts[1], 'the run', 'now')}"
    )


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def fingerprints(base: BasePipeline, data: TrainingData) -> dict[str, Any]:
    """Hashes of base, photos, captions and class examples; no names, no captions, no paths."""
    instances, moments = data.instances, data.class_moments
    return {
        "base": base.fingerprint,
        "photos": instances.contents,
        "captions": [_hash(caption.encode()) for caption in instances.captions],
        "class_prompt": _hash((data.class_prompt or "").encode()),
        "class_pictures": None if moments is None else _hash(moments.mean.numpy().tobytes()),
    }


def _photo_differences(
    before: Mapping[str, Any], now: Mapping[str, Any], names: list[str]
) -> Iterator[str]:
    known = Counter(zip(before["photos"], before["captions"], strict=True))
    contents = set(before["photos"])
    for name, *pair in zip(names, now["photos"], now["captions"], strict=True):
        if known[pair[0], pair[1]]:
            known[pair[0], pair[1]] -= 1
        elif pair[0] in contents:
            yield f"the caption of {name} has changed"
        else:
            yield f"{name} is new or has changed"
    missing = Counter(before["photos"]) - Counter(now["photos"])
    if missing:
        yield f"photos of the run that are gone or have changed: {missing.total()}"
    elif before["photos"] != now["photos"] and len(before["photos"]) == len(now["photos"]):
        yield "the photos come in another order (they are sorted by name)"


def check_fingerprints(
    before: Mapping[str, Any], now: Mapping[str, Any], names: list[str], checkpoint: Path
) -> None:
    """Raise `CheckpointError` that lists what is other than when `checkpoint` was written."""
    try:
        found = list(_photo_differences(before, now, names))
        for key, what in (
            ("base", "the base's weights are others"),
            ("class_prompt", "the class prompt is another"),
            ("class_pictures", "the class pictures are others"),
        ):
            if before[key] != now[key]:
                found.append(what)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint} does not say what it was trained on ({error}); it is from another version. "
            "Start again with --overwrite."
        ) from error
    if found:
        lines = "\n  ".join(found)
        raise CheckpointError(
            f"{checkpoint} was made with other data, so a resumed run would not be the same run. Restore "
            f"it, or start again with --overwrite:\n  {lines}"
        )
