"""What is previewed is what the loader yields: pictures to the pixel, captions and counts to the one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.class_images import ClassPictures
from data_prep.config import DataConfig
from data_prep.decode import decode_each
from data_prep.instances import encode_photos
from data_prep.loader import TrainingData
from data_prep.preview import Preview, as_small_pixels, preview_of
from data_prep.sources import read_records


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures, one wide with a mask over its left half; a caption that names no subject."""
    for index, size in enumerate([(96, 48), (48, 48), (48, 48)]):
        pixels = np.random.RandomState(index).randint(0, 255, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    (tmp_path / "0.txt").write_text("a {subject} looking left")
    (tmp_path / "1.txt").write_text("some dog")
    (tmp_path / "mask").mkdir()
    mask = Image.new("L", (96, 48), 0)
    mask.paste(255, (0, 0, 48, 48))
    mask.save(tmp_path / "mask" / "0.png")
    return tmp_path


def data_of(folder: Path, *, prior: str = "none", **settings: Any) -> TrainingData:
    config = DataConfig(photos=str(folder), **settings)
    instances = encode_photos(
        decode_each(read_records(config)),
        config,
        size=48,
        subject="sks dog",
        encode_images=as_small_pixels,
        encoder_key="pixels",
        cache=None,
    )
    grey = as_small_pixels(torch.zeros(4, 3, 48, 48))
    own = {"photos": "dogs"} if prior == "own" else {}
    pictures = ClassPictures(grey, [(48, 48)] * 4, [(0, 0)] * 4, own)
    return TrainingData(
        config,
        instances,
        seed=0,
        batch_size=2,
        class_prompt=None if prior == "none" else "a dog",
        class_pictures=pictures if prior in ("class_images", "own") else None,
        instances_as_class=prior == "base_prediction",
    )


def previewed(data: TrainingData, num_steps: int = 30) -> Preview:
    return preview_of(data, num_steps=num_steps, subject="sks dog")


def test_counts_and_captions_are_those_of_the_batches(photos: Path) -> None:
    settings: dict[str, Any] = {"flip_probability": 0.5, "caption_dropout": 0.2, "buckets": True}
    data = data_of(photos, prior="base_prediction", **settings)
    preview = previewed(data)
    batches = [data.micro_batch(step, num_micro=1, micro=0) for step in range(30)]
    instances = Counter(prompt for batch in batches for prompt in batch.prompts[:2])
    assert sum((photo.prompts for photo in preview.photos), Counter()) == instances
    assert set(preview.photos[0].prompts) == {
        "a sks dog looking left",
        "a sks dog looking right",
        "",
    }
    assert sum(photo.num_as_class for photo in preview.photos) == 60
    shapes = Counter(tuple(batch.moments.mean.shape[2:]) for batch in batches)
    assert preview.steps_of_shape == dict(shapes) == {(32, 64): 10, (48, 48): 20}


def test_pictures_are_those_of_the_batches_to_the_pixel(photos: Path) -> None:
    preview = previewed(data_of(photos, crop="random", flip_probability=0.5))
    original = np.asarray(Image.open(photos / "0.png"))
    assert len(preview.photos[0].variants) > 10
    for variant, shown in preview.photos[0].variants.items():
        assert shown is not None
        left = round(48 * variant.crop / 8)
        crop = original[:, left : left + 48]
        expected = crop[:, ::-1] if variant.mirrored else crop
        assert np.array_equal(np.asarray(shown[0]), expected)


def test_what_a_mask_takes_away_is_pale(photos: Path) -> None:
    preview = previewed(data_of(photos, unmasked_weight=0.0, buckets=True))
    (shown,) = preview.photos[0].variants.values()
    assert shown is not None
    values = np.asarray(shown[0]).astype(float)
    half = values.shape[1] // 2
    assert values[:, half + 2 :].min() > 255 * 0.84
    original = np.asarray(Image.open(photos / "0.png"))
    assert values.shape == (32, 64, 3)
    assert abs(values[:, :half].mean() - original[:, :48].mean()) < 2


def test_table_names_shapes_classes_and_what_is_doubtful(photos: Path) -> None:
    preview = previewed(data_of(photos, prior="class_images"), num_steps=6)
    lines = preview.table().splitlines()
    assert lines[0] == "6 steps of 2 will show:"
    assert lines[1] == '  1  0.png  48 × 48  4 times  "a sks dog looking left"'
    assert lines[3] == '  3  2.png  48 × 48  4 times  "a photo of a sks dog"'
    assert lines[4] == 'Class examples, under "a dog": 4 pictures, 3 times each'
    assert lines[5].startswith("Warning: captions that do not name the subject (sks dog): 2.")
    assert "unmasked_weight is 1" in lines[6]
    bucketed = previewed(data_of(photos, buckets=True), num_steps=6).table()
    assert "64 × 32: 1 photo, 2 steps\n48 × 48: 2 photos, 4 steps" in bucketed
    assert "Warning: 64 × 32 has fewer photos than training.batch_size 2" in bucketed
    unseen = previewed(data_of(photos), num_steps=1).table()
    assert unseen.endswith("Warning: of 3 photos 1 are never seen: too few steps.")


def test_sheet_has_a_cell_for_each_way_with_its_caption(photos: Path) -> None:
    preview = previewed(data_of(photos, flip_probability=0.5))
    sheet = preview.contact_sheet()
    # Six cells of 192 px in rows of five, each row with 46 px for captions.
    assert sheet.size == (5 * 192, 2 * (192 + 46))
    strip = np.asarray(sheet)[192:238]
    assert strip[:, : 5 * 192].min() < 100  # written on
    values = preview.as_json()
    assert [photo["times"] for photo in values["photos"]] == [20, 20, 20]
    assert [photo["ways"] for photo in values["photos"]] == [2, 2, 2]
    assert [photo["mirrored_ways"] for photo in values["photos"]] == [1, 1, 1]


def test_own_photos_of_the_class_are_on_the_sheet_and_made_ones_are_not(photos: Path) -> None:
    sheets = {kind: previewed(data_of(photos, prior=kind)) for kind in ("class_images", "own")}
    assert sheets["class_images"].class_sheet == {}
    assert sorted(sheets["own"].class_sheet) == [0, 1, 2, 3]
    # Three photos, and four pictures of the class in their order.
    assert sheets["own"].contact_sheet().size == (5 * 192, 2 * (192 + 46))
