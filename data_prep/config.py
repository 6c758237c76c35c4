"""Configuration of the data, and the base class of every configuration section."""

from __future__ import annotations

from typing import Literal

from PIL import ImageColor
from pydantic import BaseModel, ConfigDict, Field, field_validator


class Section(BaseModel):
    """A frozen part of a configuration: unknown keys are refused, field docstrings are help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataConfig(Section):
    """The subject's photos, and how they become training examples."""

    photos: str = Field(min_length=1)
    """Folder of pictures (captions optional: `metadata.jsonl` or a `.txt` beside each picture), a
    dataset saved with `save_to_disk`, or a Hub dataset id."""
    image_column: str = "image"
    """Column of pictures, for datasets."""
    caption_column: str | None = None
    """Column or metadata key of captions. A caption should hold `{subject}`. Null takes a `.txt` beside
    the picture, else `prompt`."""
    class_noun: str | None = None
    """What the subject is, in one or two words: "dog", "coffee mug"."""
    prompt: str = "a photo of a {subject}"
    """Caption of photos that have none of their own. `{subject}` becomes the method's phrase for
    the subject ("sks dog"), `{class}` the class noun."""
    size: int | None = Field(None, ge=8, multiple_of=8)
    """Side in pixels of the square that photos are resized and cropped to; null takes the base's."""
    background: str = "white"
    """Colour that shows where a photo is transparent: a name or `#rrggbb`."""
    crop: Literal["center", "random"] = "center"
    """Which part of a photo that is not square is kept; `random` draws one of nine positions."""
    flip_probability: float = Field(0.0, ge=0, le=1)
    """Share of times a photo is mirrored. Leave 0 for subjects with writing or a left and a right."""
    caption_dropout: float = Field(0.0, ge=0, le=1)
    """Share of times the caption is replaced by the empty one."""

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
