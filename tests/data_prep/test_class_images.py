"""Class pictures are made once, topped up, and never taken for those of another base or prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from data_prep.batch import Moments
from data_prep.cache import TensorCache, digest_of
from data_prep.class_images import made_pictures, own_pictures
from data_prep.config import DataConfig, PriorConfig
from data_prep.transforms import to_image


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
    where = {"prompt": "a photo of a dog", "base_fingerprint": "abc", "size": 16, "sampler": "ddim"}
    where.update({key: changes.pop(key) for key in list(changes) if key in where})
    return made_pictures(
        PriorConfig(kind="class_images", **{"num_images": 5, "batch_size": 2, **changes}),
        generate=generator,
        cache=TensorCache(folder),
        **where,
    ).moments


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
        {"sampler": "ddpm"},
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


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [
        flip_last_byte,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: path.write_bytes(b"no tensors"),
        Path.unlink,
    ],
    ids=["flipped", "empty", "cut", "foreign", "gone"],
)
def test_a_damaged_picture_is_found_and_made_anew_alone(tmp_path: Path, spoil: Any) -> None:
    first = latents(tmp_path, Generator())
    stored = sorted(tmp_path.rglob("*.safetensors"))
    assert len(stored) == 5
    spoil(stored[2])
    generator = Generator()
    assert torch.equal(latents(tmp_path, generator).mean, first.mean)
    assert generator.num_made == 1
    again = Generator()
    assert torch.equal(latents(tmp_path, again).mean, first.mean)
    assert again.num_made == 0


def test_a_picture_under_the_name_of_another_is_not_taken_for_it(tmp_path: Path) -> None:
    dog = latents(tmp_path, Generator(), num_images=1)
    (dog_file,) = tmp_path.rglob("*.safetensors")
    latents(tmp_path, Generator(), num_images=1, prompt="a photo of a horse")
    (horse_file,) = set(tmp_path.rglob("*.safetensors")) - {dog_file}
    dog_file.write_bytes(horse_file.read_bytes())
    generator = Generator()
    assert torch.equal(latents(tmp_path, generator, num_images=1).mean, dog.mean)
    assert generator.num_made == 1


def test_an_interrupted_job_goes_on_where_it_was(tmp_path: Path) -> None:
    class Stops(Generator):
        def __call__(self, prompts: list[str], seeds: list[int]) -> Tensor:
            if self.asked:
                raise KeyboardInterrupt
            return super().__call__(prompts, seeds)

    with pytest.raises(KeyboardInterrupt):
        latents(tmp_path, Stops())
    generator = Generator()
    latents(tmp_path, generator)
    assert generator.asked == [[2, 3], [4]]


def test_provenance_is_told_and_stored_with_each_picture(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    config = PriorConfig(kind="class_images", num_images=2, seed=3, num_steps=7, guidance_scale=2)
    settings: dict[str, Any] = {"prompt": "a dog", "base_fingerprint": "abc", "sampler": "ddim"}
    made = made_pictures(config, size=16, generate=Generator(), cache=cache, **settings)
    told = {
        "base": "abc", "prompt": "a dog", "sampler": "ddim",
        "num_steps": 7, "guidance_scale": 2.0, "size": 16,
    }  # fmt: skip
    assert made.manifest["made_by"] == told
    assert [p["seed"] for p in made.manifest["pictures"]] == [3_000_009, 3_000_010]
    for place, picture in enumerate(made.manifest["pictures"]):
        assert digest_of({"latents": made.moments.mean[[place]]}) == picture["latents"]
        with safe_open(cache.path(picture["key"]), "pt") as stored:
            header = stored.metadata()
        assert header["digest"] == picture["latents"]
        seed = str(picture["seed"])
        assert {k: header[k] for k in told} | {"seed": header["seed"]} == {
            **{key: str(value) for key, value in told.items()},
            "seed": seed,
        }


def test_own_photos_of_the_class_are_taken_whole_and_as_they_are(tmp_path: Path) -> None:
    rng = np.random.RandomState(0)
    pixels = rng.randint(0, 255, (8, 12, 3), np.uint8)
    folder = tmp_path / "dogs"
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "wide.png")
    Image.fromarray(pixels[:, :8]).save(folder / "square.png")
    (folder / "wide.txt").write_text("{class} and {nothing}")  # captions are not asked for
    # Nothing that is asked for the subject's photos is done to these.
    data = DataConfig(photos="p", flip_probability=1, crop="random", color_jitter=0.5, buckets=True)
    pictures = own_pictures(
        str(folder),
        data,
        prompt="a dog",
        size=8,
        encode_images=lambda values: Moments(values, 0 * values),
        encoder_key="pixels",
        cache=None,
    )
    assert [entry["file"] for entry in pictures.manifest["pictures"]] == ["square.png", "wide.png"]
    assert pictures.original_size_hw == [(8, 8), (8, 12)]
    assert pictures.corners == [(0, 0), (0, 2)]
    for place, expected in enumerate((pixels[:, :8], pixels[:, 2:10])):
        assert np.array_equal(np.asarray(to_image(pictures.moments.mean[place])), expected)
