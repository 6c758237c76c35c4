"""The part of a photo that is kept: the middle, a random one, or the subject's."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data_prep.config import DataConfig
from data_prep.decode import Photo
from data_prep.framing import Frame, frames_of
from data_prep.measures import standing_out, to_lab
from data_prep.transforms import color_factors, crop_to, jittered


def photo(size: tuple[int, int], subject: tuple[int, int, int, int] | None = None) -> Photo:
    """A green lawn with grain, and a red subject in a box."""
    rng = np.random.RandomState(0)
    lawn = np.clip(rng.normal((60, 140, 60), 12, (size[1], size[0], 3)), 0, 255)
    image = Image.fromarray(lawn.astype(np.uint8))
    if subject is not None:
        ImageDraw.Draw(image).ellipse(subject, fill=(200, 40, 30))
    return Photo("a.png", image, None, ())


def with_mask(given: Photo, box: tuple[int, int, int, int]) -> Photo:
    mask = Image.new("L", given.image.size, 0)
    mask.paste(255, box)
    return Photo(given.name, given.image, None, (), mask=mask)


def share(given: Photo, size: int = 32, **settings: object) -> float:
    (frame,) = frames_of(given, DataConfig(photos="p", crop="subject", **settings), size)
    return frame.share


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 60, 80, 180), 0.0),
        ((320, 60, 400, 180), 1.0),
        ((240, 60, 320, 180), (280 - 100) / 200),  # its middle, 280, is that of the crop
        ((160, 60, 240, 180), 0.5),
    ],
    ids=["left", "right", "right of the middle", "middle"],
)
def test_a_mask_is_put_into_the_middle_as_far_as_there_is_room(
    box: tuple[int, int, int, int], expected: float
) -> None:
    # 400 × 200: a square crop can begin anywhere from 0 to 200.
    assert share(with_mask(photo((400, 200)), box)) == pytest.approx(expected, abs=0.01)


def test_of_a_subject_longer_than_the_crop_as_much_as_fits_is_kept() -> None:
    given = with_mask(photo((400, 200)), (0, 0, 300, 200))
    image, (_, left) = crop_to(given.image, (32, 32), share=share(given))
    assert left <= 16  # of 32 px, so that all 32 columns show subject, which reaches to 48
    assert image.size == (32, 32)


@pytest.mark.parametrize("upright", [False, True])
def test_without_a_mask_the_subject_is_what_differs_from_the_edges(upright: bool) -> None:
    given = photo((400, 200), (240, 70, 320, 150))
    if upright:
        turned = given.image.transpose(Image.Transpose.ROTATE_270)  # its right is now below
        given = Photo("a.png", turned, None, ())
    assert share(given) == pytest.approx(0.9, abs=0.06)


def test_where_nothing_stands_out_the_middle_is_kept() -> None:
    assert share(photo((400, 200))) == 0.5
    assert share(Photo("a.png", Image.new("RGB", (40, 20), "white"), None, ())) == 0.5


def test_what_stands_out_is_measured_against_all_colours_of_the_edges() -> None:
    """A picture with a blue sky and a green lawn: neither stands out, the red disc between does."""
    image = Image.new("RGB", (64, 64), (90, 140, 220))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 30, 63, 63), fill=(60, 140, 60))
    draw.ellipse((24, 22, 40, 38), fill=(200, 40, 30))
    away = standing_out(to_lab(image))
    assert away[28:32, 30:34].min() > 40
    assert away[:20].max() == 0
    assert away[45:].max() == 0


def test_frames_of_each_kind_of_crop() -> None:
    wide = photo((40, 20))

    def frames(**settings: object) -> list[Frame]:
        return frames_of(wide, DataConfig(photos="p", **settings), 48)

    assert frames() == [Frame((48, 48), 0.5)]
    assert frames(crop="random") == [Frame((48, 48), place / 8) for place in range(9)]
    # In a bucket of its own shape nothing is cut off, so there is nothing to draw.
    assert frames(crop="random", buckets=True) == [Frame((32, 64), 0.5)]
    assert frames(crop="subject", buckets=True) == [Frame((32, 64), 0.5)]


def test_crop_to_a_shape_by_hand() -> None:
    ramp = np.arange(12, dtype=np.uint8)[None, :, None].repeat(4, 0).repeat(3, 2) * 20
    picture = Image.fromarray(ramp)  # 12 × 4, columns 0, 20, 40, …
    crop, corner = crop_to(picture, (4, 6), share=1.0)
    assert corner == (0, 6)
    assert np.asarray(crop)[0, :, 0].tolist() == [120, 140, 160, 180, 200, 220]
    crop, corner = crop_to(picture.rotate(90, expand=True), (6, 4), share=0.0)
    assert corner == (0, 0)
    assert np.asarray(crop)[:, 0, 0].tolist() == [220, 200, 180, 160, 140, 120]


def test_colours_change_within_the_stated_strength_and_hues_stay() -> None:
    image = Image.new("RGB", (2, 2), (160, 80, 80))
    assert color_factors(0, 0.5) == (1, 1, 1)
    assert jittered(image, 0, 0.5).tobytes() == image.tobytes()
    factors = [color_factors(version, 0.2) for version in (1, 2, 3)]
    assert len(set(factors)) == 3
    assert all(0.8 <= factor <= 1.2 for version in factors for factor in version)
    for version in (1, 2, 3):
        red, green, blue = jittered(image, version, 0.2).getpixel((0, 0))  # type: ignore[misc]
        assert (red, green) != (160, 80)
        assert green == blue < red
    # Brightness alone: 160 · f.
    brightness, _, _ = color_factors(1, 0.2)
    grey = Image.new("RGB", (2, 2), (100, 100, 100))
    assert jittered(grey, 1, 0.2).getpixel((0, 0))[0] == pytest.approx(100 * brightness, abs=1)  # type: ignore[index]
