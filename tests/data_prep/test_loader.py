"""Batches are a pure function of (seed, step), and photos are encoded once."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data_prep.batch import Batch, Moments
from data_prep.cache import TensorCache
from data_prep.class_images import ClassPictures
from data_prep.config import DataConfig
from data_prep.decode import Photo
from data_prep.instances import InstanceSet, Variant, encode_photos, variants_of
from data_prep.loader import TrainingData
from data_prep.transforms import crop_square, jittered, to_pixel_values

SIZE = 8


class Encoder:
    """Moments that tell pictures, crops and mirror images apart; counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, pixel_values: Tensor) -> Moments:
        assert pixel_values.shape == (1, 3, SIZE, SIZE)
        self.calls += 1
        mean = torch.nn.functional.avg_pool2d(pixel_values, 2)
        return Moments(mean, 0.1 * mean.abs())


def photo(index: int, size_wh: tuple[int, int] = (10, 10), caption: str | None = None) -> Photo:
    rng = np.random.RandomState(index)
    image = Image.fromarray(rng.randint(0, 255, (*size_wh[::-1], 3), np.uint8))
    return Photo(f"{index}.png", image, caption or f"photo {index} of a {{subject}}", ())


def encoded(
    photos: list[Photo],
    folder: Path,
    *,
    encoder: Encoder | None = None,
    encoder_key: str = "vae",
    **settings: object,
) -> InstanceSet:
    return encode_photos(
        photos,
        DataConfig(photos="photos", class_noun="dog", **settings),
        size=SIZE,
        subject="sks dog",
        encode_images=encoder or Encoder(),
        encoder_key=encoder_key,
        cache=TensorCache(folder),
    )


def training_data(
    folder: Path,
    *,
    num_photos: int = 5,
    seed: int = 0,
    batch_size: int = 2,
    prior: str = "none",
    wide: bool = False,
    **settings: object,
) -> TrainingData:
    photos = [photo(i, (24, 10) if wide else (10, 10)) for i in range(num_photos)]
    instances = encoded(photos, folder, **settings)
    latents = torch.arange(4.0)[:, None, None, None].expand(4, 3, 4, 4).contiguous()
    pictures = Moments(100 + latents, torch.zeros_like(latents))
    return TrainingData(
        DataConfig(photos="photos", **settings),
        instances,
        seed=seed,
        batch_size=batch_size,
        class_pictures=ClassPictures(pictures, [(SIZE, SIZE)] * 4, [(0, 0)] * 4, {})
        if prior == "class_images"
        else None,
        class_prompt=None if prior == "none" else "a photo of a dog",
        instances_as_class=prior == "base_prediction",
    )


def assert_same_moments(first: InstanceSet, second: InstanceSet) -> None:
    assert first.views.keys() == second.views.keys()
    for key, view in first.views.items():
        assert torch.equal(view.moments.mean, second.views[key].moments.mean)
        assert torch.equal(view.moments.std, second.views[key].moments.std)


def photos_seen(data: TrainingData, steps: range) -> list[int]:
    prompts = [p for step in steps for p in data.micro_batch(step, num_micro=1, micro=0).prompts]
    return [int(prompt.split()[1]) for prompt in prompts]


def assert_same(first: Batch, second: Batch) -> None:
    torch.testing.assert_close(first.moments.mean, second.moments.mean, atol=0, rtol=0)
    torch.testing.assert_close(first.moments.std, second.moments.std, atol=0, rtol=0)
    for name in ("prompts", "sample_index", "step", "original_size_hw", "crop_top_left_yx"):
        assert getattr(first, name) == getattr(second, name), name
    assert first.roles() == second.roles()


def test_every_photo_comes_once_per_epoch(tmp_path: Path) -> None:
    seen = photos_seen(training_data(tmp_path), range(20))
    epochs = [seen[start : start + 5] for start in range(0, 40, 5)]
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 8
    assert len({tuple(epoch) for epoch in epochs}) > 4


def test_order_changes_with_the_seed(tmp_path: Path) -> None:
    orders = {tuple(photos_seen(training_data(tmp_path, seed=s), range(10))) for s in range(5)}
    assert len(orders) == 5


@pytest.mark.parametrize("prior", ["none", "class_images", "base_prediction"])
def test_batch_is_a_pure_function_of_seed_and_step(tmp_path: Path, prior: str) -> None:
    settings = {"crop": "random", "flip_probability": 0.5, "caption_dropout": 0.3}
    first = training_data(tmp_path, prior=prior, wide=True, **settings)
    second = training_data(tmp_path, prior=prior, wide=True, **settings)
    forwards = [first.micro_batch(step, num_micro=1, micro=0) for step in range(8)]
    for step in reversed(range(8)):
        assert_same(second.micro_batch(step, num_micro=1, micro=0), forwards[step])
        assert forwards[step].step == step


def rows_of(batches: list[Batch], role: str) -> list[tuple[object, ...]]:
    return [
        (
            batch.moments.mean[row].tolist(),
            batch.moments.std[row].tolist(),
            batch.prompts[row],
            batch.sample_index[row],
            batch.original_size_hw[row],
            batch.crop_top_left_yx[row],
        )
        for batch in batches
        for row, found in enumerate(batch.roles())
        if found == role
    ]


@pytest.mark.parametrize("prior", ["none", "class_images", "base_prediction"])
@pytest.mark.parametrize("num_micro", [2, 4])
def test_micro_batches_together_are_the_whole_batch(
    tmp_path: Path, prior: str, num_micro: int
) -> None:
    data = training_data(
        tmp_path,
        prior=prior,
        batch_size=4,
        wide=True,
        crop="random",
        flip_probability=0.5,
        caption_dropout=0.3,
    )
    for step in range(3):
        whole = [data.micro_batch(step, num_micro=1, micro=0)]
        parts = [data.micro_batch(step, num_micro=num_micro, micro=m) for m in range(num_micro)]
        assert len(rows_of(whole, "instance")) == 4
        assert rows_of(parts, "instance") == rows_of(whole, "instance")
        assert len(rows_of(whole, "class")) == (0 if prior == "none" else 4)
        assert rows_of(parts, "class") == rows_of(whole, "class")
        assert whole[0].sample_index == [0, 1, 2, 3] * (1 if prior == "none" else 2)


def test_class_examples_follow_instance_examples(tmp_path: Path) -> None:
    data = training_data(tmp_path, prior="class_images")
    batch = data.micro_batch(3, num_micro=1, micro=0)
    assert len(batch) == 4
    assert batch.roles() == ["instance", "instance", "class", "class"]
    assert batch.prompts[2:] == ["a photo of a dog"] * 2
    assert batch.sample_index == [0, 1, 0, 1]
    assert float(batch.moments.mean[2:].min()) >= 100
    assert float(batch.moments.mean[:2].max()) <= 1
    assert float(batch.moments.std[2:].abs().max()) == 0
    assert batch.crop_top_left_yx[2:] == [(0, 0), (0, 0)]


def test_class_pictures_are_whole_and_of_the_size_trained_at(tmp_path: Path) -> None:
    batch = training_data(tmp_path, prior="class_images", wide=True).micro_batch(
        0, num_micro=1, micro=0
    )
    assert batch.original_size_hw == [(10, 24), (10, 24), (SIZE, SIZE), (SIZE, SIZE)]


def test_corner_of_a_mirrored_crop_is_that_in_the_mirrored_picture(tmp_path: Path) -> None:
    picture = photo(0, (2 * SIZE + 3, SIZE))
    instances = encoded([picture], tmp_path, crop="random", flip_probability=0.5)
    whole = to_pixel_values(picture.image)
    assert len(instances.views) == 18
    for (_, variant), view in instances.views.items():
        top, left = view.corner
        shown = whole.flip(2) if variant.mirrored else whole
        crop = shown[None, :, top : top + SIZE, left : left + SIZE]
        torch.testing.assert_close(view.moments.mean, Encoder()(crop).mean)


def test_some_examples_of_a_batch_keep_all_that_is_theirs(tmp_path: Path) -> None:
    data = training_data(tmp_path, prior="base_prediction", wide=True, crop="random")
    batch = data.micro_batch(0, num_micro=1, micro=0)
    part = batch[[3, 1]]
    assert part.roles() == ["class", "instance"]
    assert torch.equal(part.moments.mean, batch.moments.mean[[3, 1]])
    for name in ("prompts", "sample_index", "original_size_hw", "crop_top_left_yx"):
        values = getattr(batch, name)
        assert getattr(part, name) == [values[3], values[1]]


def test_every_class_picture_comes_once_per_epoch(tmp_path: Path) -> None:
    data = training_data(tmp_path, prior="class_images")
    batches = [data.micro_batch(step, num_micro=1, micro=0) for step in range(4)]
    seen = [int(level) - 100 for b in batches for level in b.moments.mean[2:, 0, 0, 0]]
    assert sorted(seen[:4]) == sorted(seen[4:]) == [0, 1, 2, 3]


def test_photos_under_the_class_prompt_are_photos(tmp_path: Path) -> None:
    data = training_data(tmp_path, prior="base_prediction")
    views = data.instances.views.values()
    known = {tuple(view.moments.mean.flatten().tolist()) for view in views}
    batches = [data.micro_batch(step, num_micro=1, micro=0) for step in range(5)]
    rows = [tuple(row.flatten().tolist()) for b in batches for row in b.moments.mean[2:]]
    assert set(rows[:5]) == set(rows[5:]) == known
    assert {p for b in batches for p in b.prompts[2:]} == {"a photo of a dog"}


def test_prompts_are_all_that_batches_hold(tmp_path: Path) -> None:
    """What is encoded beforehand: mirrored captions, the class prompt and the empty one included."""
    photos = [replace(photo(0), caption="a {subject} on the left"), replace(photo(1), caption=None)]
    settings = {"flip_probability": 0.5, "caption_dropout": 0.3, "prompt": ("a {subject}", "one")}
    instances = encoded(photos, tmp_path, **settings)
    config = DataConfig(photos="photos", class_noun="dog", **settings)
    data = TrainingData(
        config, instances, seed=0, batch_size=4, class_prompt="a dog", instances_as_class=True
    )
    batches = [data.micro_batch(step, num_micro=1, micro=0) for step in range(40)]
    assert {prompt for batch in batches for prompt in batch.prompts} == set(data.prompts)
    assert "a sks dog on the right" in data.prompts
    assert len(data.prompts) == 6


def flipped_share(data: TrainingData, num_steps: int) -> float:
    table = {
        tuple(view.moments.mean.flatten().tolist()): variant.mirrored
        for (_, variant), view in data.instances.views.items()
    }
    flipped = 0
    for step in range(num_steps):
        batch = data.micro_batch(step, num_micro=1, micro=0)
        flipped += sum(table[tuple(mean.flatten().tolist())] for mean in batch.moments.mean)
    return flipped / (num_steps * data.batch_size)


@pytest.mark.parametrize(("probability", "margin"), [(0.0, 0.0), (0.25, 0.03), (1.0, 0.0)])
def test_photos_are_flipped_at_the_stated_probability(
    tmp_path: Path, probability: float, margin: float
) -> None:
    data = training_data(tmp_path, batch_size=10, flip_probability=probability)
    # 2,000 draws: three standard deviations of the share at 0.25 are 0.029.
    assert flipped_share(data, 200) == pytest.approx(probability, abs=margin)


def test_mirrored_moments_are_those_of_the_mirrored_picture(tmp_path: Path) -> None:
    instances = encoded([photo(0)], tmp_path, flip_probability=0.5)
    plain, mirrored = (instances.views[0, Variant(0, f)].moments.mean for f in (False, True))
    torch.testing.assert_close(mirrored, plain.flip(-1), atol=1e-6, rtol=0)
    assert not torch.equal(mirrored, plain)


def test_captions_are_dropped_at_the_stated_probability(tmp_path: Path) -> None:
    data = training_data(tmp_path, batch_size=10, caption_dropout=0.2, prior="class_images")
    batches = [data.micro_batch(step, num_micro=1, micro=0) for step in range(200)]
    dropped = sum(prompt == "" for batch in batches for prompt in batch.prompts[:10])
    assert dropped / 2000 == pytest.approx(0.2, abs=0.027)  # three standard deviations
    assert "" not in {prompt for batch in batches for prompt in batch.prompts[10:]}


def test_random_crops_draw_all_nine_positions_alike(tmp_path: Path) -> None:
    data = training_data(tmp_path, num_photos=2, batch_size=10, wide=True, crop="random")
    batches = [data.micro_batch(step, num_micro=1, micro=0) for step in range(90)]
    corners = Counter(corner for batch in batches for corner in batch.crop_top_left_yx)
    # 24 × 10 becomes 19 × 8, so the left edge runs from 0 to 11.
    assert sorted(corners) == [(0, round(11 * position / 8)) for position in range(9)]
    assert min(corners.values()) > 60  # 100 each on average
    assert {size for batch in batches for size in batch.original_size_hw} == {(10, 24)}


def test_only_variants_that_can_be_drawn_are_encoded() -> None:
    def count(size_wh: tuple[int, int], **settings: object) -> int:
        return len(variants_of(photo(0, size_wh), DataConfig(photos="photos", **settings), SIZE))

    assert count((10, 10)) == 1
    assert count((10, 10), crop="random") == 1
    assert count((20, 10), crop="random") == 9
    assert count((20, 10), crop="random", flip_probability=0.5) == 18
    assert count((20, 10), flip_probability=1.0) == 1


def test_captions_are_filled_per_photo(tmp_path: Path) -> None:
    own = photo(0, caption="my {class}, a {subject}")
    without = Photo("1.png", photo(1).image, None, ())
    instances = encoded([own, without], tmp_path, prompt="a portrait of a {subject}")
    assert instances.captions == ["my dog, a sks dog", "a portrait of a sks dog"]


def test_moments_come_from_the_cache_the_second_time(tmp_path: Path) -> None:
    encoder, photos = Encoder(), [photo(0), photo(1, (20, 10))]
    first = encoded(photos, tmp_path, encoder=encoder, crop="random", flip_probability=0.5)
    assert encoder.calls == 2 + 18
    second = encoded(photos, tmp_path, encoder=encoder, crop="random", flip_probability=0.5)
    assert encoder.calls == 20
    assert_same_moments(first, second)


def test_cache_key_changes_with_pixels_and_encoder(tmp_path: Path) -> None:
    encoder = Encoder()
    original = encoded([photo(0)], tmp_path, encoder=encoder)
    changed = photo(0)
    changed.image.putpixel((5, 5), (0, 0, 0))
    other = encoded([changed], tmp_path, encoder=encoder)
    assert encoder.calls == 2
    assert original.contents != other.contents
    encoded([photo(0)], tmp_path, encoder=encoder, encoder_key="another vae")
    assert encoder.calls == 3
    # A caption or a file name shapes no moments.
    encoded([photo(0, caption="something else")], tmp_path, encoder=encoder, prompt="other")
    assert encoder.calls == 3


def test_damaged_cache_file_counts_as_missing(tmp_path: Path) -> None:
    encoder = Encoder()
    first = encoded([photo(0)], tmp_path, encoder=encoder)
    (stored,) = tmp_path.rglob("*.safetensors")
    stored.write_bytes(stored.read_bytes()[:50])
    second = encoded([photo(0)], tmp_path, encoder=encoder)
    assert encoder.calls == 2
    assert_same_moments(first, second)
    encoded([photo(0)], tmp_path, encoder=encoder)
    assert encoder.calls == 2


def test_cache_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    encoder = Encoder()
    usual = encoded([photo(0)], tmp_path / "cache", encoder=encoder)
    without = encoded([photo(0)], tmp_path / "file", encoder=encoder)
    assert encoder.calls == 2
    assert_same_moments(usual, without)
    assert (tmp_path / "file").read_text() == "no folder"


def test_photos_are_looked_at_one_at_a_time(tmp_path: Path) -> None:
    """Full-size photos go as soon as they are encoded: a thousand of 12 megapixels would be 36 GB."""
    alive: set[int] = set()
    most = 0

    def photos() -> Iterator[Photo]:
        nonlocal most
        for index in range(6):
            made = photo(index)
            alive.add(index)
            weakref.finalize(made, alive.discard, index)
            most = max(most, len(alive))
            yield made
            del made

    instances = encoded(photos(), tmp_path)
    assert most <= 2  # one is made while the loop still holds the one before
    assert instances.names == [f"{index}.png" for index in range(6)]
    assert len(set(instances.contents)) == 6
    again = encoded([photo(index) for index in range(6)], tmp_path)
    assert again.contents == instances.contents
    assert encoded([photo(0)], tmp_path, flip_probability=0.5).contents != again.contents[:1]


def test_a_cached_tensor_that_has_changed_counts_as_missing(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    cache.put("key", {"mean": torch.arange(32.0), "std": torch.ones(3)})
    path = cache.path("key")
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert cache.get("key") is None, place
        path.write_bytes(content[:place])
        assert cache.get("key") is None
    path.write_bytes(content)
    found = cache.get("key")
    assert found is not None
    assert torch.equal(found["mean"], torch.arange(32.0))


def test_a_full_cache_costs_work_and_nothing_else(tmp_path: Path, files_up_to: Any) -> None:
    cache = TensorCache(tmp_path)
    with files_up_to(100):
        made = cache.get_or_make("key", lambda: {"a": torch.ones(99)})
    assert torch.equal(made["a"], torch.ones(99))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    cache.put("key", made)
    assert cache.get("key") is not None


def test_runs_that_share_a_cache_at_the_same_time_read_whole_tensors(tmp_path: Path) -> None:
    def work(number: int) -> int:
        cache, found = TensorCache(tmp_path), 0
        for turn in range(60):
            key = f"{turn % 3:02d}"
            stored = cache.get(key)
            if stored is not None:
                assert torch.equal(stored["a"], torch.full((2000,), float(turn % 3)))
                found += 1
            cache.put(key, {"a": torch.full((2000,), float(turn % 3))})
        return found

    with ThreadPoolExecutor(4) as pool:
        assert min(pool.map(work, range(4))) > 50
    assert not list(tmp_path.rglob("*.partial"))


def test_colours_and_captions_are_drawn_alike_and_photos_by_their_repeats(tmp_path: Path) -> None:
    photos = [replace(photo(0), caption=None), replace(photo(1), caption=None, repeats=3)]
    settings = {"color_jitter": 0.3, "prompt": ("one {subject}", "two {subject}")}
    instances = encoded(photos, tmp_path, **settings)
    assert len(instances.views) == 2 * 4
    config = DataConfig(photos="photos", **settings)
    data = TrainingData(config, instances, seed=0, batch_size=10)
    draws = [draw for step in range(200) for draw in data.draws(step)]
    assert Counter(draw.index for draw in draws) == {0: 500, 1: 1500}
    colors = Counter(draw.variant.color for draw in draws if draw.variant)
    assert sorted(colors) == [0, 1, 2, 3]
    assert min(colors.values()) > 440  # 500 on average, three standard deviations are 58
    texts = Counter(draw.prompt for draw in draws)
    assert sorted(texts) == ["one sks dog", "two sks dog"]
    assert min(texts.values()) > 930
    # The moments of a draw are those of its version, not of another.
    pictures = {
        color: to_pixel_values(jittered(crop_square(photos[1].image, SIZE)[0], color, 0.3))
        for color in range(4)
    }
    batch = data.micro_batch(0, num_micro=1, micro=0)
    for row, draw in enumerate(data.draws(0)):
        if draw.index == 1 and draw.variant is not None:
            expected = Encoder()(pictures[draw.variant.color][None]).mean[0]
            torch.testing.assert_close(batch.moments.mean[row], expected)


def test_contents_tell_what_training_sees_of_a_photo(tmp_path: Path) -> None:
    """What a resumed run compares: another mask, repeat or colour is another photo, a name is not."""
    mask = Image.new("L", (10, 10), 255)
    half = mask.copy()
    half.paste(0, (0, 0, 5, 10))
    first = photo(0)
    variants = {
        "as it is": encoded([first], tmp_path),
        "repeats": encoded([replace(first, repeats=2)], tmp_path),
        "colours": encoded([first], tmp_path, color_jitter=0.2),
        "mask": encoded([replace(first, mask=half)], tmp_path, unmasked_weight=0.5),
        "other mask": encoded([replace(first, mask=mask)], tmp_path, unmasked_weight=0.5),
    }
    contents = {tuple(instances.contents) for instances in variants.values()}
    assert len(contents) == len(variants)
    renamed = encoded([replace(first, name="b.png")], tmp_path)
    assert renamed.contents == variants["as it is"].contents
