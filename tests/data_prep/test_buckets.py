"""Shapes near those of the photos, one for each step, and every photo as often as promised."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data_prep.batch import Batch, Moments
from data_prep.buckets import BucketOrder, bucket_shapes, nearest_shape
from data_prep.config import DataConfig
from data_prep.decode import Photo
from data_prep.instances import encode_photos
from data_prep.loader import TrainingData

SIZE = 48  # its shapes are 48 × 48, 32 × 64 and 64 × 32


@pytest.mark.parametrize("size", [48, 128, 512, 1000, 1024])
def test_shapes_have_at_most_the_area_of_the_square_and_sides_of_a_grid(size: int) -> None:
    shapes = bucket_shapes(size)
    assert (size, size) in shapes
    assert {(width, height) for height, width in shapes} == set(shapes)
    for height, width in shapes:
        assert height * width <= size * size
        assert max(height, width) <= 2 * min(height, width)
        assert (height, width) == (size, size) or height % 16 == width % 16 == 0
    # No ratio of sides is far from one of them.
    ratios = sorted(height / width for height, width in shapes)
    if size >= 512:
        assert max(b / a for a, b in zip(ratios, ratios[1:], strict=False)) < 1.16
        assert min(height * width for height, width in shapes) > 0.88 * size * size


def test_shapes_of_512_by_hand() -> None:
    # 512 // 256 * 16 = 32 pixels apart; of height 544 there is room for 481 of width, so 480.
    assert {(512, 512), (544, 480), (480, 544), (384, 672), (352, 704)} <= set(bucket_shapes(512))
    assert bucket_shapes(SIZE) == [(32, 64), (48, 48), (64, 32)]


@pytest.mark.parametrize(
    ("size_hw", "expected"),
    [
        ((100, 100), (48, 48)),
        ((100, 140), (48, 48)),  # log 1.4 is nearer to 0 than to log 2
        ((100, 142), (32, 64)),
        ((3000, 1000), (64, 32)),
    ],
)
def test_nearest_shape_by_ratio(size_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    assert nearest_shape(size_hw, bucket_shapes(SIZE)) == expected


def test_steps_of_each_bucket_are_its_share_in_every_round() -> None:
    order = BucketOrder([6, 9, 3], seed=0)  # shares 2 : 3 : 1
    rounds = [[order.bucket_of(step)[0] for step in range(r, r + 6)] for r in range(0, 60, 6)]
    assert {tuple(sorted(buckets)) for buckets in rounds} == {(0, 0, 1, 1, 1, 2)}
    assert len({tuple(buckets) for buckets in rounds}) > 3
    before: Counter[int] = Counter()
    for step in range(60):
        bucket, turn = order.bucket_of(step)
        assert turn == before[bucket]
        before[bucket] += 1
    assert order.bucket_of(17) == BucketOrder([6, 9, 3], seed=0).bucket_of(17)


def photo(index: int, size_wh: tuple[int, int]) -> Photo:
    rng = np.random.RandomState(index)
    image = Image.fromarray(rng.randint(0, 255, (*size_wh[::-1], 3), np.uint8))
    return Photo(f"{index}.png", image, f"photo {index} of a {{subject}}", ())


def encoder(pixel_values: Tensor) -> Moments:
    mean = torch.nn.functional.avg_pool2d(pixel_values, 8)
    return Moments(mean, 0.1 * mean.abs())


WIDE, TALL, SQUARE = (100, 50), (50, 100), (60, 60)
SHAPES = [WIDE, SQUARE, TALL, SQUARE, SQUARE, WIDE]
REPEATS = [1, 2, 1, 1, 1, 3]


def bucketed(*, batch_size: int = 4, prior: bool = False, **settings: object) -> TrainingData:
    photos = [
        replace(photo(index, size), repeats=repeats)
        for index, (size, repeats) in enumerate(zip(SHAPES, REPEATS, strict=True))
    ]
    config = DataConfig(photos="photos", buckets=True, **settings)
    instances = encode_photos(
        photos,
        config,
        size=SIZE,
        subject="sks dog",
        encode_images=encoder,
        encoder_key="",
        cache=None,
    )
    return TrainingData(
        config,
        instances,
        seed=0,
        batch_size=batch_size,
        class_prompt="a photo of a dog" if prior else None,
        instances_as_class=prior,
    )


LATENTS = {WIDE: (4, 8), SQUARE: (6, 6), TALL: (8, 4)}


def test_a_step_is_of_one_shape_and_photos_keep_theirs() -> None:
    data = bucketed(prior=True)
    shapes = set()
    for step in range(30):
        batch = data.micro_batch(step, num_micro=1, micro=0)
        shapes.add(tuple(batch.moments.mean.shape[2:]))
        for prompt, size_hw in zip(batch.prompts[:4], batch.original_size_hw[:4], strict=True):
            assert size_hw == SHAPES[int(prompt.split()[1])][::-1]
            assert LATENTS[size_hw[::-1]] == tuple(batch.moments.mean.shape[2:])
        assert {LATENTS[size_hw[::-1]] for size_hw in batch.original_size_hw[4:]} == {
            tuple(batch.moments.mean.shape[2:])
        }
    assert shapes == set(LATENTS.values())


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_every_photo_is_seen_as_often_as_promised(batch_size: int) -> None:
    data = bucketed(batch_size=batch_size)
    # Nine samples an epoch: 4 wide, 4 square and 1 tall, so a round is of nine steps.
    num_steps = 9 * 4
    seen = Counter(
        draw.index for step in range(num_steps) for draw in data.draws(step) if draw.prompt
    )
    expected = [repeats * num_steps * batch_size // 9 for repeats in REPEATS]
    assert [seen[index] for index in range(len(SHAPES))] == expected
    # On the way no photo is far from its share.
    for end in range(9, num_steps, 9):
        so_far = Counter(draw.index for step in range(end) for draw in data.draws(step))
        for index, repeats in enumerate(REPEATS):
            assert abs(so_far[index] - repeats * end * batch_size / 9) <= repeats


def rows(batches: list[Batch]) -> list[tuple[object, ...]]:
    return [
        (b.moments.mean[row].tolist(), b.prompts[row], b.sample_index[row], b.crop_top_left_yx[row])
        for b in batches
        for row in range(len(b))
    ]


@pytest.mark.parametrize(("num_accumulated", "world"), [(2, 1), (4, 1), (1, 2), (2, 2)])
def test_accumulation_and_processes_see_the_same_batch(num_accumulated: int, world: int) -> None:
    settings = {"crop": "random", "flip_probability": 0.5, "color_jitter": 0.2}
    num_micro = num_accumulated * world
    for step in range(8):
        whole = bucketed(**settings).micro_batch(step, num_micro=1, micro=0)
        parts: dict[int, Batch] = {}
        for rank in range(world):  # each process has its own loader and asks for its own parts
            data = bucketed(**settings)
            for micro in range(rank, num_micro, world):
                parts[micro] = data.micro_batch(step, num_micro=num_micro, micro=micro)
        assert rows([parts[micro] for micro in range(num_micro)]) == rows([whole])


def test_order_does_not_depend_on_what_was_asked_before() -> None:
    forwards, backwards = bucketed(), bucketed()
    first = [forwards.draws(step) for step in range(20)]
    assert [backwards.draws(step) for step in reversed(range(20))][::-1] == first
