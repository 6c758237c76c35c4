"""Configuration of the data, and the base class of every configuration section."""

from __future__ import annotations

from typing import Any, Literal

from PIL import ImageColor
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    """A frozen part of a configuration: unknown keys are refused, field docstrings are help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


MAX_REPEATS = 1000
"""Of a photo in an epoch."""


class PhotoSource(Section):
    """More photos of the same subject."""

    path: str = Field(min_length=1)
    """Folder or dataset, as `data.photos`."""
    prompt: str | None = None
    """Caption of its photos that have none of their own; null takes `data.prompt`."""
    repeats: int = Field(1, ge=1, le=MAX_REPEATS)
    """How often each of its photos comes in an epoch."""


class DataConfig(Section):
    """The subject's photos, and how they become training examples."""

    photos: str = Field(min_length=1)
    """Folder of pictures (captions optional: `metadata.jsonl` or a `.txt` beside each picture), a
    dataset saved with `save_to_disk`, or a Hub dataset id."""
    more_photos: tuple[PhotoSource, ...] = ()
    """Further folders or datasets of the subject, each `path`, `prompt` and `repeats`."""
    repeats: int = Field(1, ge=1, le=MAX_REPEATS)
    """How often each photo of `photos` comes in an epoch, which tells only beside `more_photos`; a key
    `repeats` in `metadata.jsonl` multiplies it for one photo."""
    image_column: str = "image"
    """Column of pictures, for datasets."""
    caption_column: str | None = None
    """Column or key of `metadata.jsonl` that holds captions, as `text`. A caption should hold `{subject}`.
    Null takes a `.txt` beside the picture, else `prompt`."""
    class_noun: str | None = None
    """What the subject is, in one or two words: "dog", "coffee mug"."""
    prompt: str | tuple[str, ...] = "a photo of a {subject}"
    """Caption of photos that have none of their own; of a list one is drawn each time. `{subject}`
    becomes the method's phrase for the subject ("sks dog"), `{class}` the class noun."""
    caption_template: str = "{caption}"
    """What is made of a photo's own caption, for instance "a photo of a {subject}, {caption}"."""
    caption_model: str | None = None
    """Model that captions the photos without a caption of their own: an image-to-text model of
    transformers, as a folder or Hub id. What it wrote is shown, and kept in the run folder as
    `captions.jsonl`; your files stay as they are."""
    size: int | None = Field(None, ge=8, multiple_of=8)
    """Side in pixels of the square that photos are resized and cropped to; null takes the base's."""
    buckets: bool = False
    """Train each photo at a shape near its own (up to 2 : 1), of the area of the square, instead of as a
    square. All photos of a step have one shape."""
    background: str = "white"
    """Colour that shows where a photo is transparent: a name or `#rrggbb`."""
    crop: Literal["center", "random", "subject"] = "center"
    """Which part of a photo is kept where the shape is another. `random` draws one of nine positions;
    `subject` keeps most of the mask or, where there is none, of what differs in colour from the edges."""
    flip_probability: float = Field(0.0, ge=0, le=1)
    """Share of times a photo is mirrored; its caption then says right for left and left for right. Leave
    0 for subjects with writing or a left and a right."""
    color_jitter: float = Field(0.0, ge=0, lt=1)
    """Largest relative change of brightness, contrast and saturation; one of four versions of a photo is
    drawn, the first unchanged. Hues stay, so colours in captions stay true."""
    unmasked_weight: float = Field(1.0, ge=0, le=1)
    """Weight in the loss of what lies outside a photo's mask; 1 takes no notice of masks, 0 learns nothing
    of the backdrop. A mask is a picture of the same name in a folder `mask` beside the photos, light where
    the subject is, else the photo's own transparency."""
    caption_dropout: float = Field(0.0, ge=0, le=1)
    """Share of times the caption is replaced by the empty one."""

    @field_validator("prompt", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        texts = value if isinstance(value, list | tuple) else [value]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError("should be a text or a list of texts")
        return value

    @field_validator("caption_template")
    @classmethod
    def _holds_the_caption(cls, value: str) -> str:
        if "{caption}" not in value:
            raise ValueError("should hold {caption}")
        return value

    @field_validator("background")
    @classmethod
    def _is_a_color(cls, value: str) -> str:
        ImageColor.getrgb(value)
        return value


class PriorConfig(Section):
    """Prior preservation: what keeps the class noun's meaning while the subject is learnt."""

    kind: Literal["none", "class_images", "base_prediction"] = "none"
    """`class_images`: train on the frozen base's own pictures of the class as well (Ruiz et al. 2023).
    `base_prediction`: on the subject's photos under the class prompt, ask for what the frozen base
    says; no pictures have to be made."""
    prompt: str = "a photo of a {class}"
    """Caption of class examples."""
    photos: str | None = Field(None, min_length=1)
    """Folder of photos of the class of your own, which `class_images` takes instead of made pictures."""
    num_images: int = Field(64, gt=0)
    """How many class pictures are made; they are kept and shared between runs."""
    batch_size: int = Field(16, gt=0)
    """Class pictures made at a time."""
    num_steps: int = Field(20, gt=0)
    """Sampling steps of a class picture (DPM-Solver++)."""
    guidance_scale: float = Field(3.0, ge=0)
    """Classifier-free guidance of class pictures."""
    seed: int = 0
    """Seed of the class pictures."""

    @model_validator(mode="after")
    def _photos_are_used(self) -> PriorConfig:
        if self.photos is not None and self.kind != "class_images":
            raise ValueError(
                f"photos are those of kind=class_images, but kind is {self.kind}; set one or the other"
            )
        return self
