"""Names to loaded encoders: where the weights are, what kind they are, their hash."""

from __future__ import annotations

import functools
import hashlib
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from finetune.bases import EMBEDDED
from finetune.encoders.encoder import COSINE, Encoder
from finetune.encoders.names import EMBEDDED_SCORERS, PRESETS
from finetune.errors import ArtifactError, ConfigError, did_you_mean
from finetune.files import sha256_of
from finetune.results import EncoderInfo

if TYPE_CHECKING:
    import torch

_SMALL = ["*.json", "*.txt"]
_SAFE, _PICKLED = "model*.safetensors", "pytorch_model*.bin"


@dataclass(frozen=True)
class _Wanted:
    """What a name asks for: the name shown, and a folder or a Hub id."""

    name: str
    folder: Path | None
    hub_id: str | None
    kind: str | None
    """Of a preset; what lies there has to be of it."""


def _parse(name: str) -> _Wanted:
    """Raises `ConfigError` for what can be no encoder."""
    preset, is_elsewhere, place = name.partition("=")
    if is_elsewhere:
        if preset not in PRESETS:
            raise ConfigError(
                f"The scorer '{name}' names no preset before its '='. Presets: {', '.join(PRESETS)}."
                f"{did_you_mean(preset, PRESETS)}"
            )
        folder = Path(place).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"The scorer '{name}': there is no folder {folder}.")
        return _Wanted(preset, folder, None, PRESETS[preset].kind)
    if name in PRESETS:
        return _Wanted(name, None, PRESETS[name].hub_id, PRESETS[name].kind)
    if name in EMBEDDED_SCORERS:
        if not (EMBEDDED / name).is_dir():
            raise ConfigError(
                f"The scorer '{name}' is not in this copy of the package: there is no {EMBEDDED / name}. "
                "Make it: finetune pretrain configs/clay/pretrain.yaml"
            )
        return _Wanted(name, EMBEDDED / name, None, None)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return _Wanted(folder.resolve().name, folder, None, None)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        return _Wanted(name, None, name, None)
    known = [*EMBEDDED_SCORERS, *PRESETS]
    raise ConfigError(
        f"There is no scorer '{name}': it is none of {', '.join(known)}, no folder, and no Hub id "
        f"(owner/name).{did_you_mean(name, known)}"
    )


def check_encoder_name(name: str) -> None:
    """Raise `ConfigError` for a name that can be no encoder; loads and downloads nothing."""
    _parse(name)


def _download(wanted: _Wanted) -> Path:
    """The folder of a Hub id, from the Hub or its local cache. Raises `ArtifactError`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    assert wanted.hub_id is not None
    try:
        folder = Path(snapshot_download(wanted.hub_id, allow_patterns=[*_SMALL, _SAFE]))
        if wanted.kind is not None and not any(folder.glob(_SAFE)):
            folder = Path(snapshot_download(wanted.hub_id, allow_patterns=[*_SMALL, _PICKLED]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtifactError(
            f"The scorer '{wanted.name}' ({wanted.hub_id}) is not downloaded and could not be had from the "
            f"Hub: {reason} Check the connection, or give a folder with its weights"
            + (f": {wanted.name}=FOLDER." if wanted.kind else ".")
        ) from error
    return folder


def _weights(folder: Path, wanted: _Wanted) -> list[Path]:
    """Files of weights as transformers chooses them. Pickles are only read for presets, as tensors alone."""
    patterns = [_SAFE, _PICKLED] if wanted.kind is not None else [_SAFE]
    for pattern in patterns:
        single = folder / pattern.replace("*", "")
        parts = sorted(folder.glob(pattern))
        if single.is_file():
            return [single]
        if parts and (folder / f"{single.name}.index.json").is_file():
            return parts
    raise ArtifactError(
        f"The scorer '{wanted.name}' has no weights in {folder}: there is no model.safetensors."
    )


@functools.lru_cache(maxsize=64)
def _hash_once(path: Path, size: int, changed_ns: int) -> str:
    return sha256_of(path)


def _sha256(files: list[Path]) -> str:
    found = [_hash_once(p, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def load_encoder(name: str, *, device: str | torch.device = "cpu") -> Encoder:
    """The encoder of a name: a preset, PRESET=FOLDER, an embedded one, a Hub id or a folder; in float32.

    Presets read pictures as their papers' code does. Raises `ConfigError` where the name can be none, and
    `ArtifactError` where it is not downloaded and cannot be, is damaged, or of an unknown kind.
    """
    from finetune.encoders.kinds import kind_of

    wanted = _parse(name)
    folder = wanted.folder or _download(wanted)
    kind = kind_of(folder, name)
    if wanted.kind not in (None, kind.name):
        raise ArtifactError(
            f"The scorer '{name}': {folder} holds an encoder of the kind '{kind.name}', but "
            f"{wanted.name} is of the kind '{wanted.kind}'."
        )
    weights = _weights(folder, wanted)
    try:
        network, digest = kind.load(folder), _sha256(weights)
    except ArtifactError as error:
        raise ArtifactError(f"The scorer '{name}' cannot be used: {error}") from error
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"The scorer '{name}' cannot be used: {weights[0]} holds more than tensors, or is damaged."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(f"The scorer '{name}' cannot be read: {reason}") from error
    card = EncoderInfo(
        name=wanted.name,
        source=wanted.hub_id or folder.resolve().name,
        kind=kind.name,
        preprocessing=network.preprocessing,
        sha256=digest,
        dimensions=network.dimensions,
        scale=COSINE,
    )
    return Encoder(card, network, device=device)


def load_text_encoder(name: str, *, device: str | torch.device = "cpu") -> Encoder:
    """`load_encoder`, of one that reads texts. Raises `ConfigError` for others."""
    encoder = load_encoder(name, device=device)
    encoder.require_texts()
    return encoder
