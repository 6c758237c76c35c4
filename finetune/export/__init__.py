"""Artifacts as files that other tools read; `imported` goes the other way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from finetune.artifact import NOTE, WEIGHT_FILES, Artifact, find_artifact, read_artifact
from finetune.base import DTYPES
from finetune.errors import ArtifactError, did_you_mean
from finetune.export import a1111, kohya, single_file
from finetune.export.headers import Header, save_tensors
from finetune.export.low_rank import read_diffusers
from finetune.export.reading import read_safetensors
from finetune.families import family_named
from finetune.families.base import ForeignNames
from finetune.files import atomic_folder
from finetune.method import ArtifactFormat


@dataclass(frozen=True)
class ForeignFile:
    """What a foreign format makes of an artifact, before it is written."""

    state: dict[str, Tensor]
    header: Header
    remarks: list[str]
    """What the user should know, a sentence each."""


@dataclass(frozen=True)
class Export:
    """What `export_artifact` wrote."""

    path: Path
    remarks: list[str]


@dataclass(frozen=True)
class Format:
    """A format of other tools."""

    artifact_format: ArtifactFormat
    what: str
    """What it holds, for messages."""
    convert: Callable[[Path, Artifact, ForeignNames, str, torch.dtype | None], ForeignFile]


def cast(state: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Tensors in `dtype`, as they are where it is None; single numbers (alphas) keep their precision."""
    return {
        name: tensor if dtype is None or tensor.ndim == 0 else tensor.to(dtype)
        for name, tensor in state.items()
    }


def _kohya(
    folder: Path, note: Artifact, names: ForeignNames, title: str, dtype: torch.dtype | None
) -> ForeignFile:
    updates = read_diffusers(*read_safetensors(folder / WEIGHT_FILES["lora"]))
    state = cast(kohya.to_kohya(updates, names), dtype)
    header = kohya.header_of(note, updates, names, title, state)
    return ForeignFile(state, header, kohya.remarks(updates))


def _a1111(
    folder: Path, note: Artifact, names: ForeignNames, title: str, dtype: torch.dtype | None
) -> ForeignFile:
    content, _ = read_safetensors(folder / WEIGHT_FILES["textual_inversion"])
    keys = names.row_keys(note.subject)
    if missing := set(keys.values()) - content.keys():
        what = ", ".join(sorted(missing))
        raise ArtifactError(f"{folder} holds no embedding of {what}; it is damaged.")
    rows = {encoder: content[key] for encoder, key in keys.items()}
    state = cast(a1111.to_a1111(rows, names), dtype)
    header = a1111.header_of(note, names, title, state)
    remark = f"The file's name is its trigger word: write '{title}' where you wrote {note.subject}."
    return ForeignFile(state, header, [remark])


def _single_file(
    folder: Path, note: Artifact, names: ForeignNames, title: str, dtype: torch.dtype | None
) -> ForeignFile:
    state = cast(single_file.to_single_file(folder, names), dtype)
    header = single_file.header_of(note, folder, names, title, state)
    return ForeignFile(state, header, single_file.remarks(note, folder, names))


FORMATS: dict[str, Format] = {
    "kohya": Format("lora", "a LoRA", _kohya),
    "a1111": Format("textual_inversion", "a Textual Inversion embedding", _a1111),
    "single-file": Format("pipeline", "a whole model (DreamBooth)", _single_file),
}
"""Name -> format of one file; "diffusers", the artifact itself, comes on top."""
FORMAT_NAMES = (*FORMATS, "diffusers")


def export_artifact(
    source: Path,
    format_name: str,
    output: Path,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
) -> Export:
    """Write the artifact in `source` (a run, or an artifact folder) to `output` for other tools.

    `dtype` is a name of `finetune.base.DTYPES`; None keeps what the artifact has. Raises `ArtifactError`
    where the format does not hold what the method learnt, and where `output` exists without `overwrite`.
    """
    if format_name not in FORMAT_NAMES:
        raise ArtifactError(
            f"--format: '{format_name}' is not one of {', '.join(FORMAT_NAMES)}."
            f"{did_you_mean(format_name, FORMAT_NAMES)}"
        )
    if dtype is not None and dtype not in DTYPES:
        raise ArtifactError(
            f"--dtype: '{dtype}' is not one of {', '.join(DTYPES)}.{did_you_mean(dtype, DTYPES)}"
        )
    folder = find_artifact(source)
    note = read_artifact(folder)
    if format_name == "diffusers":
        return _copy(folder, output, dtype, overwrite=overwrite)
    chosen = FORMATS[format_name]
    if chosen.artifact_format != note.format:
        fitting = [name for name, form in FORMATS.items() if form.artifact_format == note.format]
        raise ArtifactError(
            f"--format {format_name} is for {chosen.what}; {source} holds "
            f"{FORMATS[fitting[0]].what}. Use --format {fitting[0]} or diffusers."
        )
    names = family_named(note.family).foreign_names
    if names is None:
        raise ArtifactError(
            f"The family {note.family} cannot be exported to {format_name} yet. Use --format diffusers."
        )
    path = output if output.suffix else output.with_suffix(".safetensors")
    if path.suffix != ".safetensors":
        raise ArtifactError(f"--output: {path} has to end in .safetensors.")
    _check_free(path, overwrite=overwrite)
    made = chosen.convert(folder, note, names, path.stem, DTYPES[dtype] if dtype else None)
    save_tensors(made.state, path, made.header)
    return Export(path, made.remarks)


def _check_free(path: Path, *, overwrite: bool) -> None:
    if path.is_dir():
        raise ArtifactError(f"--output: {path} is a folder; name the file in it.")
    if path.exists() and not overwrite:
        raise ArtifactError(
            f"--output: {path} exists. Replace it with --overwrite or choose another."
        )


def _copy(folder: Path, output: Path, dtype: str | None, *, overwrite: bool) -> Export:
    if dtype is not None:
        raise ArtifactError(
            "--dtype: --format diffusers copies the artifact as it is. Leave it out."
        )
    if output.is_file():
        raise ArtifactError(f"--output: {output} is a file; --format diffusers writes a folder.")
    if output.exists() and any(output.iterdir()):
        if not overwrite:
            raise ArtifactError(
                f"--output: {output} exists. Replace it with --overwrite or choose another."
            )
        if not (output / NOTE).is_file():
            raise ArtifactError(
                f"--output: {output} is not empty and is no artifact (no {NOTE}), so --overwrite will not "
                "delete it. Choose another folder."
            )
    inside, target = folder.resolve(), output.resolve()
    if inside == target or inside in target.parents or target in inside.parents:
        raise ArtifactError(
            f"--output: {output} overlaps the artifact itself. Choose another folder."
        )
    with atomic_folder(output) as temporary:
        # Content only: safetensors makes files that their owner alone may read.
        shutil.copytree(folder, temporary, copy_function=shutil.copyfile, dirs_exist_ok=True)
    return Export(output, [])
