"""Names to places: where a base's weights are. The embedded base `clay` lies beside this file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from finetune.errors import ArtifactError, did_you_mean

EMBEDDED = Path(__file__).resolve().parent

_NETWORKS = ("text_encoder*", "unet", "transformer", "vae")
_CONFIGURATIONS = [
    "model_index.json",
    "scheduler/*.json",
    "tokenizer*/*.json",
    "tokenizer*/*.txt",
    *(f"{folder}/*.json" for folder in _NETWORKS),
]
_WANTED = [*_CONFIGURATIONS, *(f"{folder}/*.safetensors" for folder in _NETWORKS)]
_UNWANTED = ["*fp16*", "*non_ema*"]
"""What a pipeline folder is read from; repositories hold several times as much."""


def embedded_bases() -> dict[str, Path]:
    """Name -> folder of every base that comes with the package."""
    return {path.parent.name: path.parent for path in sorted(EMBEDDED.glob("*/model_index.json"))}


def resolve_base(
    source: str,
    *,
    revision: str | None = None,
    only_index: bool = False,
    weights: bool = True,
    without: Collection[str] = (),
) -> Path:
    """Folder or file of the base `source`; a Hub id is downloaded, or taken from the local cache.

    With `only_index` no more than its model_index.json is, without `weights` no weights are; `without`
    names networks that are not.

    Raises `ArtifactError` where there is nothing of that name.
    """
    if source in embedded_bases():
        return embedded_bases()[source]
    path = Path(source).expanduser()
    if path.exists():
        return path
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ArtifactError(
            f"There is no base '{source}': it is no embedded base ({', '.join(embedded_bases())}), no "
            f"folder or file, and no Hub id (owner/name).{did_you_mean(source, embedded_bases())}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = _WANTED if weights else _CONFIGURATIONS
    try:
        folder = snapshot_download(
            source,
            revision=revision,
            allow_patterns=["model_index.json"] if only_index else wanted,
            ignore_patterns=[*_UNWANTED, *(f"{name}/*" for name in without)],
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtifactError(
            f"The base '{source}' could not be had from the Hub: {reason} Check the id and the "
            "connection, or give a local diffusers folder as base.source."
        ) from error
    return Path(folder)
