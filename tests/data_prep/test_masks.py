"""Masks come from files or transparency, become weights of mean 1, and are refused where they do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data_prep.batch import Moments
from data_prep.cache import TensorCache
from data_prep.config import DataConfig
from data_prep.decode import Photo, decode_each
from data_prep.errors import DataError
from data_prep.instances import InstanceSet, Variant, encode_photos
from data_prep.loader import TrainingData
from data_prep.masks import latent_weights
from data_prep.sources import ignored_files, read_records


def grey(levels: list[list[int]]) -> Image.Image:
    return Image.fromarray(np.array(levels, np.uint8))


def test_weights_by_hand() -> None:
    # Latents of 2 × 2 pixels: shares of subject 1, 1/2, 1/4, 0.
    mask = grey([[255, 255, 255, 0], [255, 255, 0, 255], [255, 0, 0, 0], [0, 0, 0, 0]])
    weights = latent_weights(mask, (2, 2), 0.2)
    # m + 0.2 (1 - m) = 1, 0.6, 0.4, 0.2 with mean 0.55.
    expected = torch.tensor([[[[1, 0.6], [0.4, 0.2]]]]) / 0.55
    torch.testing.assert_close(weights, expected)
    only = latent_weights(mask, (2, 2), 0.0)
    torch.testing.assert_close(only, torch.tensor([[[[1, 0.5], [0.25, 0]]]]) / 0.4375)


@pytest.mark.parametrize("unmasked_weight", [0.0, 0.1, 0.3, 1.0])
def test_a_full_mask_weighs_as_none(unmasked_weight: float) -> None:
    weights = latent_weights(Image.new("L", (24, 16), 255), (2, 3), unmasked_weight)
    assert torch.equal(weights, torch.ones(1, 1, 2, 3))


def save(path: Path, size: tuple[int, int], color: object = "gray", mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)  # type: ignore[arg-type]


def photos_of(folder: Path, **settings: object) -> list[Photo]:
    return list(decode_each(read_records(DataConfig(photos=str(folder), **settings))))


def left_half(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(exist_ok=True)
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    mask.save(path)


def test_mask_file_of_the_same_stem_belongs_to_its_photo(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", (40, 20))
    save(tmp_path / "b.png", (40, 20))
    left_half(tmp_path / "mask" / "a.png", (20, 10))  # may be smaller: it is fitted
    first, second = photos_of(tmp_path)
    assert second.mask is None
    assert first.mask is not None
    assert first.mask.size == (40, 20)
    levels = np.asarray(first.mask)
    assert levels[:, :18].min() == 255
    assert levels[:, 22:].max() == 0
    assert ignored_files(DataConfig(photos=str(tmp_path))) == {}


def test_transparency_is_a_mask_unless_there_is_a_file(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (4, 4), (200, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 4, 2))
    picture.save(tmp_path / "a.png")
    (photo,) = photos_of(tmp_path)
    assert photo.mask is not None
    assert np.asarray(photo.mask).tolist() == [[0] * 4] * 2 + [[255] * 4] * 2
    left_half(tmp_path / "mask" / "a.png", (4, 4))
    (photo,) = photos_of(tmp_path)
    assert photo.mask is not None
    assert np.asarray(photo.mask).tolist() == [[255, 255, 0, 0]] * 4


def test_a_mask_file_that_is_transparent_counts_by_its_opacity(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (4, 4))
    (tmp_path / "mask").mkdir()
    drawn = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    drawn.paste((0, 0, 0, 255), (0, 0, 4, 1))
    drawn.save(tmp_path / "mask" / "a.png")
    (photo,) = photos_of(tmp_path)
    assert photo.mask is not None
    assert np.asarray(photo.mask).tolist() == [[255] * 4] + [[0] * 4] * 3


def test_mask_of_a_photo_turned_by_exif_is_that_of_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    left_half(tmp_path / "mask" / "a.png", (20, 40))
    (photo,) = photos_of(tmp_path)
    assert photo.image.size == (20, 40)
    assert photo.mask is not None
    assert photo.mask.size == (20, 40)
    left_half(tmp_path / "mask" / "a.png", (40, 20))
    with pytest.raises(DataError, match=r"mask of a\.jpg has 40 × 20 pixels, the photo 20 × 40"):
        photos_of(tmp_path)


def test_masks_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (20, 20))
    save(tmp_path / "mask" / "b.png", (20, 20))
    with pytest.raises(DataError, match=r"b\.png is the mask of no photo"):
        photos_of(tmp_path)
    (tmp_path / "mask" / "b.png").unlink()
    save(tmp_path / "mask" / "a.png", (20, 20), "black")
    with pytest.raises(DataError, match=r"mask of a\.png is dark throughout"):
        photos_of(tmp_path)
    save(tmp_path / "mask" / "a.jpg", (20, 20), "white")
    with pytest.raises(DataError, match=r"are masks of one photo"):
        photos_of(tmp_path)
    (tmp_path / "mask" / "a.jpg").unlink()
    (tmp_path / "mask" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"the mask of a\.png cannot be read as a picture"):
        photos_of(tmp_path)


def test_masks_beside_photos_that_metadata_names(tmp_path: Path) -> None:
    save(tmp_path / "sub" / "a.png", (20, 20))
    left_half(tmp_path / "sub" / "mask" / "a.png", (20, 20))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "sub/a.png"}\n')
    (photo,) = photos_of(tmp_path)
    assert photo.mask is not None


def encoder(pixel_values: Tensor) -> Moments:
    mean = torch.nn.functional.avg_pool2d(pixel_values, 2)
    return Moments(mean, 0.1 * mean.abs())


def masked(
    *boxes: tuple[int, int, int, int] | None, cache: TensorCache | None = None, **settings: object
) -> InstanceSet:
    """Photos of 8 × 16, each with a mask that is light in a box (or without one), trained at 8."""
    photos = []
    for index, box in enumerate(boxes):
        rng = np.random.RandomState(index)
        image = Image.fromarray(rng.randint(0, 255, (8, 16, 3), np.uint8))
        mask = None
        if box is not None:
            mask = Image.new("L", (16, 8), 0)
            mask.paste(255, box)
        photos.append(Photo(f"{index}.png", image, None, (), mask=mask))
    return encode_photos(
        photos,
        DataConfig(photos="photos", unmasked_weight=0, **settings),
        size=8,
        subject="sks dog",
        encode_images=encoder,
        encoder_key="vae",
        cache=cache,
    )


def test_weights_are_those_of_the_crop_and_mirrored_with_it(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    for _ in range(2):  # the second time moments come from the cache
        instances = masked((4, 0, 8, 8), flip_probability=0.5, cache=cache)
        plain, mirrored = (instances.views[0, Variant(0, flip)].weights for flip in (False, True))
        # The middle of 16 pixels is 4 … 12, of which 4 … 8 are subject: the left two of four latents.
        expected = torch.tensor([2.0, 2, 0, 0]).expand(1, 1, 4, 4)
        assert torch.equal(plain, expected)
        assert torch.equal(mirrored, expected.flip(3))


def test_crops_without_any_subject_are_not_drawn() -> None:
    instances = masked((0, 0, 2, 8), crop="random")
    # Positions 0, 1, 2, … start at pixel 0, 1, 2, …; the first two show some of pixels 0 and 1.
    assert sorted(variant.crop for _, variant in instances.views) == [0, 1]
    with pytest.raises(DataError, match=r"0\.png: the crop cuts off all that its mask shows"):
        masked((0, 0, 2, 8))
    subject = masked((0, 0, 2, 8), crop="subject")
    assert subject.views[0, Variant(0, False)].corner == (0, 0)


def test_photos_without_mask_and_class_examples_are_weighted_alike() -> None:
    instances = masked((4, 0, 8, 8), None)
    data = TrainingData(
        DataConfig(photos="photos"),
        instances,
        seed=0,
        batch_size=2,
        class_prompt="a dog",
        instances_as_class=True,
    )
    batch = data.micro_batch(0, num_micro=1, micro=0)
    assert batch.weights is not None
    assert batch.weights.shape == (4, 1, 4, 4)
    sums = sorted(float(weights[..., 3].sum()) for weights in batch.weights[:2])
    assert sums == [0, 4]  # the masked one has nothing at the right
    assert torch.equal(batch.weights[2:], torch.ones(2, 1, 4, 4))
    torch.testing.assert_close(batch.weights.mean((1, 2, 3)), torch.ones(4))
    part = batch[[1, 2]]
    assert torch.equal(part.weights, batch.weights[[1, 2]])


def test_masks_are_left_alone_at_weight_one_and_missed_below() -> None:
    photo = Photo("a.png", Image.new("RGB", (8, 8)), None, (), mask=Image.new("L", (8, 8), 255))
    settings: dict[str, object] = {
        "size": 8,
        "subject": "s",
        "encode_images": encoder,
        "encoder_key": "",
        "cache": None,
    }
    plain = encode_photos([photo], DataConfig(photos="photos"), **settings)  # type: ignore[arg-type]
    assert plain.masked == [True]
    assert [view.weights for view in plain.views.values()] == [None]
    with pytest.raises(DataError, match=r"unmasked_weight is 0\.5, but no photo has a mask"):
        encode_photos(
            [Photo("a.png", photo.image, None, ())],
            DataConfig(photos="photos", unmasked_weight=0.5),
            **settings,  # type: ignore[arg-type]
        )
