"""What the loader will yield over a run, looked at before the run: pictures, captions, roles, how often.

Asks `TrainingData` itself, built with pixels in the place of latents: nothing here knows how a photo is
cropped or drawn.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data_prep.batch import Batch, Moments
from data_prep.buckets import Shape
from data_prep.contact_sheet import Cell, cell_size, contact_sheet
from data_prep.instances import Variant
from data_prep.loader import Draw, TrainingData
from data_prep.transforms import to_image

MAX_CELLS = 60
"""Of the contact sheet, for photos; every photo has one at least."""
MAX_CLASS_CELLS = 15
"""Of the contact sheet, for photos of the class."""


_SIDE = 192
"""Longest side in pixels of the pictures that stand for latents."""


def as_small_pixels(pixel_values: Tensor) -> Moments:
    """For `encode_photos` in the place of an autoencoder: the pixels themselves, no larger than a cell."""
    height, width = pixel_values.shape[2:]
    scale = min(1.0, _SIDE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    pixels = F.interpolate(pixel_values, size, mode="area") if scale < 1 else pixel_values
    return Moments(pixels, torch.zeros(1, 1, 1, 1).expand_as(pixels))


@dataclass
class Seen:
    """One photo over a run."""

    name: str
    shape: Shape
    """Height and width in pixels that it is trained at."""
    prompts: Counter[str] = field(default_factory=Counter)
    """As an instance example: caption -> times."""
    num_as_class: int = 0
    """As a class example, under the class prompt."""
    variants: dict[Variant, tuple[Image.Image, str] | None] = field(default_factory=dict)
    """The ways it is shown; some with their picture and one of its captions."""

    @property
    def num_times(self) -> int:
        """How often it is an instance example."""
        return self.prompts.total()


@dataclass
class Preview:
    """What `num_steps` steps show."""

    num_steps: int
    batch_size: int
    photos: list[Seen]
    steps_of_shape: dict[Shape, int]
    class_prompt: str | None
    class_pictures: Counter[int]
    """Number of a class picture -> times."""
    class_sheet: dict[int, Image.Image]
    """Some of the class pictures, where they are the user's own."""
    warnings: list[str]

    def count(self, draw: Draw, num_class_cells: int) -> bool:
        """Count a draw; whether its picture is wanted for the sheet."""
        if draw.variant is None:
            self.class_pictures[draw.index] += 1
            is_new = draw.index not in self.class_sheet
            return is_new and len(self.class_sheet) < num_class_cells
        photo = self.photos[draw.index]
        if draw.role == "class":
            photo.num_as_class += 1
            return False
        photo.prompts[draw.prompt] += 1
        if draw.variant in photo.variants:
            return False
        wanted = len(photo.variants) < max(1, MAX_CELLS // len(self.photos))
        photo.variants[draw.variant] = None
        return wanted

    def keep(self, draw: Draw, picture: Image.Image) -> None:
        """Put the picture of a draw onto the sheet."""
        if draw.variant is None:
            self.class_sheet[draw.index] = picture
        else:
            self.photos[draw.index].variants[draw.variant] = picture, draw.prompt

    def table(self) -> str:
        """A line for each photo, then shapes, class examples and warnings."""
        width = max(len(photo.name) for photo in self.photos)
        lines = [f"{self.num_steps} steps of {self.batch_size} will show:"]
        for number, photo in enumerate(self.photos, 1):
            height, across = photo.shape
            ways = f" in {len(photo.variants)} ways" if len(photo.variants) > 1 else ""
            told = ", ".join(
                f'"{prompt}"' + (f" ({times})" if len(photo.prompts) > 1 else "")
                for prompt, times in photo.prompts.most_common(4)
            )
            more = f" and {len(photo.prompts) - 4} more" if len(photo.prompts) > 4 else ""
            lines.append(
                f"{number:3}  {photo.name:{width}}  {across} × {height}  {photo.num_times} times{ways}  "
                f"{told}{more}"
            )
        for shape, steps in self.steps_of_shape.items():
            count = sum(photo.shape == shape for photo in self.photos)
            if len(self.steps_of_shape) > 1:
                photos = "1 photo" if count == 1 else f"{count} photos"
                lines.append(f"{shape[1]} × {shape[0]}: {photos}, {steps} steps")
        if self.class_prompt is not None:
            lines.append(f'Class examples, under "{self.class_prompt}": {self._class_examples()}')
        return "\n".join([*lines, *(f"Warning: {warning}" for warning in self.warnings)])

    def _class_examples(self) -> str:
        if not self.class_pictures:
            return f"the photos, {sum(photo.num_as_class for photo in self.photos)} times"
        times = self.class_pictures.values()
        often = f"{min(times)} to {max(times)}" if min(times) < max(times) else str(max(times))
        return f"{len(self.class_pictures)} pictures, {often} times each"

    def contact_sheet(self) -> Image.Image:
        """The pictures as the loader yields them, with a caption; what a mask takes away is pale."""
        cell = cell_size(len(self.photos))
        cells = [
            Cell(number, shown[0], doubtful=False, caption=shown[1] or "(no caption)")
            for number, photo in enumerate(self.photos, 1)
            for shown in photo.variants.values()
            if shown is not None
        ]
        cells += [
            Cell(len(self.photos) + 1 + index, image, False, f"class: {self.class_prompt}")
            for index, image in sorted(self.class_sheet.items())
        ]
        return contact_sheet(cells, cell=cell)

    def as_json(self) -> dict[str, Any]:
        """The same as plain values for `json.dumps`."""
        photos = [
            {
                "number": number,
                "name": photo.name,
                "height": photo.shape[0],
                "width": photo.shape[1],
                "times": photo.num_times,
                "times_as_class": photo.num_as_class,
                "ways": len(photo.variants),
                "mirrored_ways": sum(variant.mirrored for variant in photo.variants),
                "prompts": dict(photo.prompts),
            }
            for number, photo in enumerate(self.photos, 1)
        ]
        shapes = [
            {"height": shape[0], "width": shape[1], "steps": steps}
            for shape, steps in self.steps_of_shape.items()
        ]
        return {
            "num_steps": self.num_steps,
            "batch_size": self.batch_size,
            "photos": photos,
            "shapes": shapes,
            "class_prompt": self.class_prompt,
            "class_pictures": len(self.class_pictures),
            "warnings": self.warnings,
        }


def _picture(batch: Batch, row: int) -> Image.Image:
    """Pixels as trained; the less a place weighs, the paler it is."""
    pixels = batch.moments.mean[row]
    if batch.weights is not None:
        weight = batch.weights[row] / batch.weights[row].max()
        pixels = torch.lerp(torch.ones_like(pixels), pixels, 0.15 + 0.85 * weight)
    return to_image(pixels)


def _warnings(preview: Preview, data: TrainingData, subject: str) -> list[str]:
    warnings = []
    strangers = [
        number
        for number, photo in enumerate(preview.photos, 1)
        if any(prompt and subject not in prompt for prompt in photo.prompts)
    ]
    if strangers:
        numbers = ", ".join(map(str, strangers[:20])) + (" …" if len(strangers) > 20 else "")
        warnings.append(
            f"captions that do not name the subject ({subject}): {numbers}. What they show is learned as "
            "something else; put {subject} into them or into data.caption_template."
        )
    for shape, photos in data.buckets.items():
        if len(set(photos)) < preview.batch_size and len(data.buckets) > 1:
            warnings.append(
                f"{shape[1]} × {shape[0]} has fewer photos than training.batch_size "
                f"{preview.batch_size}: its steps show one photo several times."
            )
    if any(data.instances.masked) and data.config.unmasked_weight == 1:
        warnings.append(
            "some photos have masks, of which the loss takes no notice (data.unmasked_weight is 1)."
        )
    unseen = sum(not photo.num_times for photo in preview.photos)
    if unseen:
        warnings.append(f"of {len(preview.photos)} photos {unseen} are never seen: too few steps.")
    return warnings


def preview_of(data: TrainingData, *, num_steps: int, subject: str) -> Preview:
    """What `num_steps` steps of `data` show, which holds pixels in the place of latents."""
    instances, cell = data.instances, cell_size(len(data.instances))
    preview = Preview(
        num_steps,
        data.batch_size,
        [Seen(name, shape) for name, shape in zip(instances.names, instances.shapes, strict=True)],
        dict.fromkeys(data.buckets, 0),
        data.class_prompt,
        Counter(),
        {},
        [],
    )
    # Pictures that are yet to be made have no provenance, and nothing to show.
    num_class_cells = MAX_CLASS_CELLS if data.class_pictures and data.class_pictures.manifest else 0
    for step in range(num_steps):
        draws = data.draws(step)
        preview.steps_of_shape[preview.photos[draws[0].index].shape] += 1
        wanted = [row for row, draw in enumerate(draws) if preview.count(draw, num_class_cells)]
        if wanted:
            batch = data.micro_batch(step, num_micro=1, micro=0)
        for row in wanted:
            picture = _picture(batch, row)
            picture.thumbnail((cell, cell), Image.Resampling.LANCZOS)
            preview.keep(draws[row], picture)
    preview.warnings += _warnings(preview, data, subject)
    return preview
