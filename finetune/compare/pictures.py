"""The pictures of a cell: which noise each starts from, made in batches that a killed run goes on from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from finetune.base import BasePipeline
from finetune.compare.suite import SuiteSubject
from finetune.config import RunConfig
from finetune.errors import CheckpointError
from finetune.files import partial_of
from finetune.generate import SamplingConfig, generate
from finetune.seeding import derive_seed


@dataclass(frozen=True)
class Place:
    """Where a cell is: one row on one subject at one training seed."""

    row: str
    subject: str
    seed: int

    def folder(self, root: Path) -> Path:
        """The cell's own folder."""
        return root / "cells" / self.row / self.subject / f"seed-{self.seed}"


def noise_seeds(
    subject: SuiteSubject, *, root_seed: int, training_seed: int, num_images: int
) -> list[list[int]]:
    """Noise seeds [prompt, picture] of a subject at a training seed: the same in every row.

    A function of names and prompts, not of how many there are, so cells do not depend on each other.
    """
    return [
        [
            derive_seed(root_seed, f"noise/{subject.name}/{prompt.template}", training_seed, index)
            for index in range(num_images)
        ]
        for prompt in subject.prompts
    ]


def picture_files(folder: Path, num_prompts: int, num_images: int) -> list[list[Path]]:
    """Where a cell's pictures are, [prompt, picture]."""
    return [
        [folder / "pictures" / f"{prompt:02d}-{index:02d}.png" for index in range(num_images)]
        for prompt in range(num_prompts)
    ]


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all. Raises `CheckpointError` where that is impossible."""
    partial = partial_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(partial, "PNG")
        partial.replace(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be written: {error}. Make room and start again; what is finished is kept."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def open_picture(path: Path, *, remedy: str | None = None) -> Image.Image:
    """A picture of a cell, or another one with a `remedy` to name.

    Raises `CheckpointError` if it is gone or damaged.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        again = f"Remove the folder {path.parent.parent}, and its cell is made again."
        raise CheckpointError(
            f"The picture {path} cannot be read: {error}. {remedy or again}"
        ) from error


def make_pictures(
    base: BasePipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    files: Sequence[Path],
    sampling: SamplingConfig,
) -> float | None:
    """Make the pictures that are not there yet; returns seconds per picture, None if all were there.

    Batches are always the same ones, because a picture's last bits may depend on its batch's size.
    """
    made, started = 0, time.monotonic()
    for start in range(0, len(files), sampling.batch_size):
        part = slice(start, start + sampling.batch_size)
        if all(path.is_file() for path in files[part]):
            continue
        images = generate(base, prompts[part], seeds[part], sampling, show_progress=True)
        for image, path in zip(images, files[part], strict=True):
            save_picture(image, path)
        made += len(images)
    return (time.monotonic() - started) / made if made else None


def sampling_of(run: RunConfig, size: int) -> SamplingConfig:
    """A run's sampling with the pictures' size filled in."""
    return run.sampling.model_copy(update={"size": run.sampling.size or size})
