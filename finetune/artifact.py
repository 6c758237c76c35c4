"""What the user takes away: files that a plain diffusers pipeline loads, and a note of how they were made."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune import __version__
from finetune.base import MAX_SIZE, BasePipeline
from finetune.config import RunConfig
from finetune.errors import ArtifactError
from finetune.files import atomic_folder, read_json
from finetune.method import ArtifactFormat, Method

NOTE = "artifact.json"
WEIGHT_FILES: dict[str, str] = {
    "lora": "pytorch_lora_weights.safetensors",
    "textual_inversion": "learned_embeds.safetensors",
}
"""Format -> file name; the format "pipeline" is a diffusers folder."""
TEXT_PREFIX = "text_model."
"""Stands before a text encoder's modules in files, whether or not the installed CLIP class nests."""


def names_module(ending: str, module: str) -> bool:
    """Whether a key of a LoRA's rank or alpha pattern, an ending or regular expression, names `module`.

    PEFT's rule (`peft.utils.other.get_pattern_key`). Raises `re.error` for what is no expression, or one
    that could take hours: patterns come with files of strangers.
    """
    if len(ending) > 200 or re.search(r"\)[*+?{]", ending) or len(re.findall(r"[*+{]", ending)) > 2:
        raise re.error("it is too long, repeats a group or repeats more than twice")
    return re.match(rf"(.*\.)?({ending})$", module) is not None


@dataclass(frozen=True)
class Artifact:
    """The note that lies beside an artifact's weights."""

    format: ArtifactFormat
    method: dict[str, Any]
    """The method's settings, `kind` included."""
    class_noun: str | None
    subject: str
    """What stands for the subject in prompts."""
    base: dict[str, Any]
    """The configuration of the base it was trained on."""
    base_fingerprint: str
    components: tuple[str, ...]
    """Networks that differ from the base, for the format "pipeline"."""
    size: Annotated[int, Field(ge=8, le=MAX_SIZE)]
    """Side in pixels it was trained at."""
    made_by: str = f"finetune {__version__}"
    family: str = "sd"
    """Name of the base's model family."""
    prediction_type: str | None = None
    """What the base's denoiser predicts, for the headers of other tools."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """How the run makes pictures, fields of `SamplingConfig`; what `finetune generate` takes for want of
    options."""


def artifact_bytes(folder: Path) -> int:
    """Bytes of all files of an artifact."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _bytes_of(base: BasePipeline, method: Method, artifact: Artifact) -> int:
    """Room that the weights take on the disk."""
    if artifact.format == "pipeline":
        states = [module.state_dict() for module in base.modules.values()]
    else:
        states = [method.state_dict(base)]
    return sum(t.numel() * t.element_size() for state in states for t in state.values())


def save_artifact(base: BasePipeline, method: Method, config: RunConfig, folder: Path) -> Artifact:
    """Write what an attached `method` has learnt into `folder`, whole or not at all."""
    requirements = method.requirements()
    artifact = Artifact(
        format=requirements.artifact_format,
        method=config.method.model_dump(mode="json"),
        class_noun=config.data.class_noun,
        subject=method.subject_phrase(config.data.class_noun or ""),
        base=config.base.model_dump(mode="json"),
        base_fingerprint=base.fingerprint,
        components=base.family.component_names(requirements.trainable_components),
        size=config.data.size or base.family.default_size(base.components),
        family=base.family.name,
        prediction_type=base.noise_process.prediction_type,
        sampling=config.sampling.model_dump(mode="json", exclude={"size", "cpu_offload"}),
    )
    with atomic_folder(folder, needed_bytes=_bytes_of(base, method, artifact)) as temporary:
        if artifact.format == "pipeline":
            base.pipeline().save_pretrained(temporary, safe_serialization=True)
        else:
            state = {k: v.contiguous().cpu() for k, v in method.state_dict(base).items()}
            metadata = {"format": "pt", **method.artifact_metadata(base)}
            save_file(state, temporary / WEIGHT_FILES[artifact.format], metadata)
        (temporary / NOTE).write_text(json.dumps(asdict(artifact), indent=1), encoding="utf-8")
    return artifact


def find_artifact(path: Path) -> Path:
    """The artifact's folder, given it or its run folder. Raises `ArtifactError`."""
    for candidate in (path / "artifact", path):
        if (candidate / NOTE).is_file():
            return candidate
    state = "there is no such folder" if not path.exists() else f"it holds no {NOTE}"
    raise ArtifactError(
        f"{path} is neither a finished run nor an artifact: {state}. Give the folder that "
        "`finetune train` wrote; an interrupted run is finished with `finetune train --resume`."
    )


def read_artifact(folder: Path) -> Artifact:
    """The note of an artifact. Raises `ArtifactError` if it cannot be read."""
    try:
        artifact = Artifact(**read_json(folder / NOTE))
        return TypeAdapter(Artifact).validate_python(vars(artifact))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{folder / NOTE} cannot be read: {field}: {first['msg']}.") from error
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"{folder / NOTE} cannot be read: {error}") from error


def read_state(folder: Path, artifact: Artifact, base: BasePipeline) -> dict[str, Tensor]:
    """An artifact's weights under the keys of `Method.state_dict`. Raises `ArtifactError`."""
    try:
        if artifact.format != "pipeline":
            return load_file(folder / WEIGHT_FILES[artifact.format])
        state = {}
        for component in artifact.components:
            names = base.modules[component].state_dict()
            buffers = {name for name, _ in base.modules[component].named_buffers()}
            for path in sorted((folder / component).glob("*.safetensors")):
                for key, value in load_file(path).items():
                    # transformers writes the prefix back if the base's own file had it
                    name = key if key in names else key.removeprefix(TEXT_PREFIX)
                    if name not in buffers:  # SD3's table of positions, which nothing trains
                        state[f"{component}.{name}"] = value
        return state
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"The weights of the artifact {folder} cannot be read: {error}. Train again or copy the "
            "folder anew."
        ) from error


def attach(base: BasePipeline, method: Method, folder: Path, artifact: Artifact) -> None:
    """Put an artifact onto a base: prepares `method` and loads its state, or leaves the base alone."""
    if artifact.base_fingerprint != base.fingerprint:
        raise ArtifactError(
            f"{folder} was trained on the base {artifact.base['source']} "
            f"({artifact.base_fingerprint[:8]}), this base is {base.source} ({base.fingerprint[:8]})."
        )
    attach_state(base, method, read_state(folder, artifact, base), artifact.class_noun)


def attach_state(
    base: BasePipeline, method: Method, state: dict[str, Tensor], class_noun: str | None
) -> None:
    """Prepare `method` and load `state` into it, or leave the base alone."""
    method.subject_phrase(class_noun or "")
    try:
        method.prepare(base)
        method.load_state_dict(base, state)
    except BaseException:
        method.detach(base)
        raise
