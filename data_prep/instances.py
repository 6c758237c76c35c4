"""Photos in every way that training can show them, as latent moments from the cache.

A view is what one draw yields: crop, mirroring and colours of one photo, with the captions, sizes and
loss weights that belong to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from PIL import ImageOps
from torch import Tensor

from data_prep.batch import Moments
from data_prep.buckets import Shape
from data_prep.cache import TensorCache, cache_key, digest_of, pixels_key
from data_prep.captions import fill_template, mirrored_caption
from data_prep.config import DataConfig
from data_prep.decode import Photo
from data_prep.errors import DataError
from data_prep.framing import frames_of, shape_of
from data_prep.masks import MASK_FOLDER, latent_weights, shows_subject
from data_prep.transforms import NUM_COLORS, crop_to, jittered, resized_wh, to_pixel_values

EncodeImages = Callable[[Tensor], Moments]
"""Pixels [batch, 3, height, width] in [-1, 1] -> scaled latent moments."""


@dataclass(frozen=True)
class Variant:
    """One way a photo is shown: number of the frame, mirroring, number of the colours."""

    crop: int
    mirrored: bool
    color: int = 0


@dataclass(frozen=True)
class View:
    """A photo as one variant shows it."""

    moments: Moments
    """Of one sample."""
    captions: tuple[str, ...]
    """One is drawn."""
    corner: tuple[int, int]
    """Top and left of the crop in the resized picture as it is shown (mirrored or not)."""
    weights: Tensor | None
    """[1, 1, height, width], as in `Batch`; None without a mask."""


@dataclass
class InstanceSet:
    """All photos in all their variants; the lists have an entry for each photo."""

    views: dict[tuple[int, Variant], View] = field(default_factory=dict)
    """By the photo's place and the variant."""
    names: list[str] = field(default_factory=list)
    """For messages."""
    captions: list[str] = field(default_factory=list)
    """All that a photo can be called, a line each."""
    contents: list[str] = field(default_factory=list)
    """Hash of what training sees of a photo, and how often."""
    original_size_hw: list[tuple[int, int]] = field(default_factory=list)
    """Of the files."""
    repeats: list[int] = field(default_factory=list)
    """How often a photo comes in an epoch."""
    shapes: list[Shape] = field(default_factory=list)
    """Height and width in pixels that a photo is trained at."""
    masked: list[bool] = field(default_factory=list)
    """Whether a photo has a mask."""

    def __len__(self) -> int:
        return len(self.names)


def variants_of(photo: Photo, config: DataConfig, size: int) -> list[Variant]:
    """The variants that training can draw of `photo`."""
    crops = range(len(frames_of(photo, config, size)))
    flips = {0.0: [False], 1.0: [True]}.get(config.flip_probability, [False, True])
    colors = range(NUM_COLORS if config.color_jitter else 1)
    return [
        Variant(crop, mirrored, color) for crop in crops for mirrored in flips for color in colors
    ]


def captions_of(
    photo: Photo, config: DataConfig, *, subject: str, mirrored: bool
) -> tuple[str, ...]:
    """The captions that training can draw for `photo`, filled in; those of its mirror image."""
    if photo.caption is not None:
        templates = [config.caption_template.replace("{caption}", photo.caption)]
        named = f"caption of {photo.name}"
    else:
        own = config.prompt if photo.prompt is None else photo.prompt
        templates = [own] if isinstance(own, str) else list(own)
        named = "data.prompt" if photo.prompt is None else f"prompt of {photo.name}"
    return tuple(
        fill_template(
            mirrored_caption(template) if mirrored else template,
            subject=subject,
            class_noun=config.class_noun,
            field=named,
        )
        for template in templates
    )


def _views_of(
    photo: Photo, config: DataConfig, *, size: int, encode: Callable[[Tensor], Moments]
) -> Iterator[tuple[Variant, str, Moments, tuple[int, int], Tensor | None]]:
    """Pixels' hash, moments, corner and weights of every variant.

    Frames that hold nothing of a mask are left out.
    """
    variants = variants_of(photo, config, size)
    for number, frame in enumerate(frames_of(photo, config, size)):
        cropped, (top, left) = crop_to(photo.image, frame.size_hw, share=frame.share)
        mask = None
        if photo.mask is not None and config.unmasked_weight < 1:
            mask, _ = crop_to(photo.mask, frame.size_hw, share=frame.share)
            if not shows_subject(mask):
                continue
        from_right = resized_wh(photo.image.size, frame.size_hw)[0] - frame.size_hw[1] - left
        for variant in (variant for variant in variants if variant.crop == number):
            picture = jittered(cropped, variant.color, config.color_jitter)
            pixel_values = to_pixel_values(picture)
            if variant.mirrored:
                pixel_values = pixel_values.flip(2)
            moments = encode(pixel_values)
            weights = None
            if mask is not None:
                shown = ImageOps.mirror(mask) if variant.mirrored else mask
                latent_hw = (moments.mean.shape[2], moments.mean.shape[3])
                weights = latent_weights(shown, latent_hw, config.unmasked_weight)
            corner = (top, from_right if variant.mirrored else left)
            yield variant, pixels_key(pixel_values), moments, corner, weights


def _add(
    instances: InstanceSet,
    photo: Photo,
    config: DataConfig,
    *,
    size: int,
    subject: str,
    encode: Callable[[Tensor], Moments],
) -> None:
    place = len(instances)
    seen: list[str] = []
    captions = {
        mirrored: captions_of(photo, config, subject=subject, mirrored=mirrored)
        for mirrored in sorted({v.mirrored for v in variants_of(photo, config, size)})
    }
    for variant, pixels, moments, corner, weights in _views_of(
        photo, config, size=size, encode=encode
    ):
        view = View(moments, captions[variant.mirrored], corner, weights)
        instances.views[place, variant] = view
        # Not the latents, which differ by rounding from machine to machine.
        seen += [pixels, f"{variant} {corner}"]
        if weights is not None:
            seen.append(digest_of({"weights": weights}))
    if not seen:
        raise DataError(
            f"{photo.name}: the crop cuts off all that its mask shows. Set data.crop=subject."
        )
    instances.names.append(photo.name)
    instances.captions.append("\n".join(dict.fromkeys(sum(captions.values(), ()))))
    instances.contents.append(cache_key(seen=seen, repeats=photo.repeats))
    instances.original_size_hw.append(photo.size_hw)
    instances.repeats.append(photo.repeats)
    instances.shapes.append(shape_of(photo, config, size))
    instances.masked.append(photo.mask is not None)


def encode_photos(
    photos: Iterable[Photo],
    config: DataConfig,
    *,
    size: int,
    subject: str,
    encode_images: EncodeImages,
    encoder_key: str,
    cache: TensorCache | None,
) -> InstanceSet:
    """Every photo in every variant; moments come from `cache` where it has them.

    `encoder_key` stands for the autoencoder and its precision. Of `photos` one at a time is looked at.
    Raises `DataError` where a mask is all cut off, or masks are asked for and there is none.
    """

    def encode(pixel_values: Tensor) -> Moments:
        def make() -> dict[str, Tensor]:
            moments = encode_images(pixel_values[None])
            return {"mean": moments.mean, "std": moments.std}

        if cache is None:
            return Moments(**make())
        key = cache_key(kind="moments", encoder=encoder_key, pixels=pixels_key(pixel_values))
        return Moments(**cache.get_or_make(key, make))

    instances = InstanceSet()
    for photo in photos:
        _add(instances, photo, config, size=size, subject=subject, encode=encode)
    if config.unmasked_weight < 1 and not any(instances.masked):
        raise DataError(
            f"data.unmasked_weight is {config.unmasked_weight}, but no photo has a mask. Put masks into a "
            f"folder {MASK_FOLDER} beside the photos, or set it to 1."
        )
    return instances
