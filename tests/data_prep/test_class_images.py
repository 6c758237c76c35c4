"""Class pictures are made once, topped up, and never taken for those of another base or prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_prep.batch import Moments
from data_prep.cache import TensorCache
from data_prep.class_images import class_latents
from data_prep.config import PriorConfig


class Generator:
    """Latents that depend on prompt and seed alone; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, prompts: list[str], seeds: list[int]) -> Tensor:
        self.asked.append(seeds)
        rows = [
            torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(seed + len(prompt)))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return torch.stack(rows)

    @property
    def num_made(self) -> int:
        return sum(len(seeds) for seeds in self.asked)


def latents(folder: Path, generator: Generator, **changes: Any) -> Moments:
    where = {"prompt": "a photo of a dog", "base_fingerprint": "abc", "size": 16}
    where.update({key: changes.pop(key) for key in list(changes) if key in where})
    return class_latents(
        PriorConfig(kind="class_images", **{"num_images": 5, "batch_size": 2, **changes}),
        generate=generator,
        cache=TensorCache(folder),
        **where,
    )


def test_pictures_are_made_in_batches_with_one_seed_each(tmp_path: Path) -> None:
    generator = Generator()
    moments = latents(tmp_path, generator)
    assert generator.asked == [[0, 1], [2, 3], [4]]
    assert moments.mean.shape == (5, 4, 2, 2)
    assert torch.equal(moments.std, torch.zeros(5, 4, 2, 2))
    assert len({tuple(row.flatten().tolist()) for row in moments.mean}) == 5


def test_second_time_nothing_is_made(tmp_path: Path) -> None:
    first = latents(tmp_path, Generator())
    generator = Generator()
    again = latents(tmp_path, generator)
    assert generator.asked == []
    assert torch.equal(again.mean, first.mean)


def test_top_up_makes_only_what_is_missing_and_keeps_the_first(tmp_path: Path) -> None:
    first = latents(tmp_path, Generator())
    generator = Generator()
    more = latents(tmp_path, generator, num_images=8, batch_size=16)
    assert generator.asked == [[5, 6, 7]]
    assert torch.equal(more.mean[:5], first.mean)
    at_once = latents(tmp_path / "other", Generator(), num_images=8)
    assert torch.equal(more.mean, at_once.mean)


def test_fewer_pictures_are_the_first_ones_and_the_rest_is_kept(tmp_path: Path) -> None:
    generator = Generator()
    first = latents(tmp_path, generator)
    assert torch.equal(latents(tmp_path, generator, num_images=3).mean, first.mean[:3])
    assert torch.equal(latents(tmp_path, generator).mean, first.mean)
    assert generator.num_made == 5


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a photo of a cat!"},
        {"base_fingerprint": "abd"},
        {"seed": 1},
        {"num_steps": 21},
        {"guidance_scale": 3.5},
        {"size": 24},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_shapes_the_pictures_makes_new_ones(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    generator = Generator()
    first = latents(tmp_path, generator)
    latents(tmp_path, generator, **change)
    assert generator.num_made == 10
    # The ones made before are still there.
    assert torch.equal(latents(tmp_path, generator).mean, first.mean)
    assert generator.num_made == 10


def test_seeds_share_no_picture(tmp_path: Path) -> None:
    generator = Generator()
    for seed in range(4):
        latents(tmp_path, generator, seed=seed, num_images=100, batch_size=100)
    assert len({seed for seeds in generator.asked for seed in seeds}) == 400


def test_damaged_store_is_made_anew(tmp_path: Path) -> None:
    first = latents(tmp_path, Generator())
    (stored,) = tmp_path.rglob("*.safetensors")
    stored.write_bytes(b"")
    generator = Generator()
    assert torch.equal(latents(tmp_path, generator).mean, first.mean)
    assert generator.num_made == 5
