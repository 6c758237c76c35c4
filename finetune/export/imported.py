"""Artifacts made elsewhere, put onto a base as if they were ours.

`open_source` recognises a file or folder by its names, before any base is read; `attached` fits it to a base
and hands back the note that goes with it. Our own artifacts take the same way.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from finetune.artifact import (
    NOTE,
    WEIGHT_FILES,
    Artifact,
    attach,
    attach_state,
    find_artifact,
    read_artifact,
)
from finetune.base import BaseConfig, BasePipeline
from finetune.bases import resolve_base
from finetune.config import MethodLoader, validate
from finetune.errors import ArtifactError
from finetune.export import a1111, kohya
from finetune.export.fitting import fit_updates
from finetune.export.headers import Header, trigger_phrase
from finetune.export.low_rank import parse_diffusers_key, read_diffusers, to_method
from finetune.export.reading import PICKLE_SUFFIXES, read_pickle, read_safetensors
from finetune.families import FAMILIES
from finetune.families.base import ForeignNames

Kind = Literal["ours", "pipeline", "kohya", "diffusers", "embedding"]
SINGLE_FILE_KEY = "model.diffusion_model."
_SHARED_KEYS = {"emb_params", "string_to_param", "*"}
"""Keys of embedding files that are no token."""


@dataclass(frozen=True)
class Source:
    """What lies where the user pointed to."""

    path: Path
    """Our artifact's folder, a diffusers folder, or a file."""
    kind: Kind
    subject: str | None
    """What stands for the subject in prompts; None where the file does not say."""
    note: Artifact | None
    """Of our own artifacts."""
    content: dict[str, Any]
    """What a LoRA or embedding file holds."""
    header: Header


def open_source(path: Path, *, allow_pickle: bool = False) -> Source:
    """Recognise an artifact: ours, or a pipeline, LoRA or embedding made elsewhere.

    Raises `ArtifactError` for what is none of these, for a pickle without `allow_pickle`, and for a family
    that cannot be imported.
    """
    if path.is_file():
        return _open_file(path, allow_pickle=allow_pickle)
    if not any((folder / NOTE).is_file() for folder in (path / "artifact", path)):
        if (path / "model_index.json").is_file():
            return Source(path, "pipeline", None, None, {}, {})
        for name in WEIGHT_FILES.values():
            for file in (path / name, (path / name).with_suffix(".bin")):
                if file.is_file():
                    return _open_file(file, allow_pickle=allow_pickle)
        if (path / "adapter_config.json").is_file():
            raise ArtifactError(
                f"{path} is a folder of PEFT's own, which does not name its networks. Save it with "
                "diffusers' save_lora_weights and give that."
            )
    folder = find_artifact(path)
    note = read_artifact(folder)
    return Source(folder, "ours", note.subject, note, {}, {})


def _open_file(path: Path, *, allow_pickle: bool) -> Source:
    content: dict[str, Any]
    header: Header = {}
    if path.suffix in PICKLE_SUFFIXES:
        content = read_pickle(path, allow_pickle=allow_pickle)
    elif path.suffix == ".safetensors":
        content, header = read_safetensors(path, whole_model_root=SINGLE_FILE_KEY)
    else:
        raise ArtifactError(f"{path} is no .safetensors file, so it is no artifact.")
    kind = _kind_of(path, content)
    if kind != "embedding":
        for name, value in content.items():
            if not isinstance(value, Tensor):
                raise ArtifactError(f"{path} is no LoRA that can be read: {name} is no tensor.")
    subject = trigger_phrase(header)
    if kind == "embedding":
        subject = _token(path, content)
    return Source(path, kind, subject, None, content, header)


def _kind_of(path: Path, content: dict[str, Any]) -> Kind:
    families = [family.foreign_names for family in FAMILIES if family.foreign_names]
    if any(key.startswith(SINGLE_FILE_KEY) for key in content):
        for names in families:
            roots = (*names.single_file_roots.items(), *names.open_clip_roots.items())
            text = tuple(root for component, root in roots if component in names.embedding_keys)
            if any(key.startswith(text) for key in content):
                return "pipeline"
        raise ArtifactError(
            f"{path} is a checkpoint of another family, or one without its text encoder. This version "
            f"imports checkpoints of {_known_families()}."
        )
    if any(key.startswith("lora_") and "." in key for key in content):
        known = tuple(
            f"{p}_" for names in families for ps in names.kohya_prefixes.values() for p in ps
        )
        strange = [key.partition(".")[0] for key in content if not key.startswith(known)]
        _require_known(path, strange)
        return "kohya"
    parsed = [parse_diffusers_key(key) for key in content]
    if parsed and all(parsed):
        components = {place[0] for place in parsed if place}
        strange = sorted(components - {c for names in families for c in names.kohya_prefixes})
        _require_known(path, strange)
        return "diffusers"
    if set(content) & _SHARED_KEYS or len(content) == 1 or set(content) == a1111.SDXL_KEYS:
        return "embedding"
    raise ArtifactError(
        f"{path} is {kohya.algorithm_of(content)}, no embedding and no checkpoint in Stable Diffusion's "
        f"original layout, so it cannot be used. It begins with {', '.join(sorted(content)[:3])}."
    )


def _require_known(path: Path, strange: Sequence[str]) -> None:
    if strange:
        raise ArtifactError(
            f"{path} is a LoRA for another family: it updates {strange[0]}. This version imports LoRAs for "
            f"{_known_families()}."
        )


def _known_families() -> str:
    return ", ".join(family.name for family in FAMILIES if family.foreign_names)


def _token(path: Path, content: dict[str, Any]) -> str:
    """An embedding's word: diffusers' key, else the file's name, as A1111 and ComfyUI have it."""
    (key, *others) = content
    return path.stem if others or key in _SHARED_KEYS else str(key)


def bases_of(sources: Sequence[Source], base: str | None) -> list[BaseConfig]:
    """The base of each source: a pipeline is its own, all others share `base` or our artifacts' one.

    Raises `ArtifactError` where our artifacts have different bases, or none is known.
    """
    ours = [(source, source.note) for source in sources if source.note is not None]
    for source, note in ours:
        if note.base_fingerprint != ours[0][1].base_fingerprint:
            raise ArtifactError(
                f"{source.path} and {ours[0][0].path} were trained on different bases."
            )
    configs = []
    for source in sources:
        if source.kind == "pipeline":
            folder = None if base is None or source.path.is_dir() else resolve_base(base)
            configs.append(BaseConfig(source=str(source.path), single_file_config=folder))
        elif base is not None:
            configs.append(BaseConfig(source=base))
        elif ours:
            where = f"The base in {ours[0][0].path / NOTE}"
            configs.append(validate(BaseConfig, ours[0][1].base, where))
        else:
            raise ArtifactError(
                f"{source.path} was made elsewhere and does not name its base. Say which with --base, for "
                "instance --base stable-diffusion-v1-5/stable-diffusion-v1-5."
            )
    return configs


def fit(source: Source, base: BasePipeline) -> tuple[Artifact, dict[str, Tensor]]:
    """Note and method state of an artifact made elsewhere. Raises `ArtifactError` if it does not fit."""
    note = Artifact(
        format="pipeline",
        method={},
        class_noun=None,
        subject=source.subject or "",
        base={"source": base.source},
        base_fingerprint=base.fingerprint,
        components=(),
        size=base.family.default_size(base.components),
        family=base.family.name,
    )
    if source.kind == "pipeline":
        return note, {}
    names = base.family.foreign_names
    if names is None:
        raise ArtifactError(
            f"{source.path} cannot be put onto {base.source}: nothing can be imported for the family "
            f"{base.family.name}."
        )
    if source.kind == "embedding":
        token, rows = _fit_embedding(source, base, names)
        settings, state = a1111.to_method(rows, names, token)
        return replace(note, format="textual_inversion", method=settings, subject=token), state
    if source.kind == "kohya":
        updates = kohya.read_kohya(source.content, base, source.path)
    else:
        updates = read_diffusers(source.content, source.header)
    settings, state = to_method(fit_updates(updates, base, source.path), base)
    return replace(note, format="lora", method=settings), state


def _fit_embedding(
    source: Source, base: BasePipeline, names: ForeignNames
) -> tuple[str, dict[str, Tensor]]:
    """Word and rows [n, D] by text encoder of an embedding."""
    token = str(source.subject).lower()  # CLIP's tokenizer knows no capitals
    if any(token in known.get_vocab() for known in base.components.tokenizers.values()):
        token = f"<{token}>"
    rows = a1111.rows_of(source.content, names, source.path)
    for name, tensor in rows.items():
        encoder: Any = base.components.text_encoders[name]
        width = encoder.get_input_embeddings().weight.shape[1]
        if tensor.shape[1] != width:
            made_for = names.versions.get(tensor.shape[1])
            raise ArtifactError(
                f"{source.path} holds vectors of {tensor.shape[1]} numbers"
                f"{f' (as for {made_for.title})' if made_for else ''}; the text encoder of {base.source} "
                f"takes {width}. Give the base it was made for."
            )
    return token, rows


def with_token(prompt: str, note: Artifact) -> str:
    """`prompt` with an embedding's word in the spelling of its token, whatever capitals it has there.

    diffusers expands a word of several vectors only where prompt and token agree letter by letter.
    """
    if note.format != "textual_inversion":
        return prompt
    return re.sub(re.escape(note.subject), lambda _: note.subject, prompt, flags=re.IGNORECASE)


@contextlib.contextmanager
def attached(source: Source, base: BasePipeline, load_method: MethodLoader) -> Iterator[Artifact]:
    """A context in which an artifact is on its base; hands back its note."""
    note, state = (source.note, {}) if source.note is not None else fit(source, base)
    if source.kind == "pipeline":
        yield note
        return
    method_class = load_method(str(note.method.get("kind")))
    where = source.path / NOTE if source.kind == "ours" else source.path
    method = method_class(
        validate(method_class.config_class, note.method, f"The method in {where}")
    )
    if source.kind == "ours":
        attach(base, method, source.path, note)
    else:
        attach_state(base, method, state, note.class_noun)
    try:
        yield note
    finally:
        method.detach(base)
