"""What a run trains on: its photos and class examples, as latents of a base or as pixels to look at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data_prep.batch import Moments
from data_prep.cache import TensorCache, default_cache_folder
from data_prep.captions import CaptionImages, fill_template, with_subject
from data_prep.class_images import ClassPictures, made_pictures, own_pictures
from data_prep.config import DataConfig
from data_prep.decode import Photo, decode_each
from data_prep.instances import EncodeImages, encode_photos
from data_prep.loader import TrainingData
from data_prep.preview import as_small_pixels
from data_prep.sources import read_records
from finetune.base import MAX_SIZE, BasePipeline
from finetune.captioner import load_captioner
from finetune.config import RunConfig
from finetune.errors import ConfigError
from finetune.files import write_text
from finetune.generate import SamplingConfig, generate_latents
from finetune.method import Method


def captioned(
    photos: Iterable[Photo],
    caption: CaptionImages,
    *,
    config: DataConfig,
    written: dict[str, str],
) -> Iterator[Photo]:
    """The photos in turn, those without a caption captioned; what was written is said and noted."""
    for photo in photos:
        if photo.caption is None:
            template = with_subject(
                caption([photo.image])[0],
                config.class_noun,
                is_named="{subject}" in config.caption_template,
            )
            written[photo.name] = template
            tqdm.write(f"{photo.name} was captioned: {template}")
            photo = replace(photo, caption=template)
        yield photo


@dataclass(frozen=True)
class _Place:
    """Where pictures become what is trained on."""

    size: int
    encode_images: EncodeImages
    encoder_key: str
    cache: TensorCache | None
    make_class_pictures: Callable[[str], ClassPictures]
    """Class prompt -> made pictures."""
    device: torch.device


def _assemble(method: Method, config: RunConfig, place: _Place) -> TrainingData:
    data, prior = config.data, config.prior
    subject = method.subject_phrase(data.class_noun or "")
    photos: Iterable[Photo] = decode_each(read_records(data), background=data.background)
    provenance: dict[str, Any] = {}
    if data.caption_model is not None:
        caption = load_captioner(data.caption_model, device=place.device)
        written = provenance["captions"] = {}
        photos = captioned(photos, caption, config=data, written=written)
    encoding: dict[str, Any] = {
        "size": place.size,
        "encode_images": place.encode_images,
        "encoder_key": place.encoder_key,
        "cache": place.cache,
    }
    instances = encode_photos(photos, data, subject=subject, **encoding)
    wants_class = prior.kind != "none" and method.requirements().uses_class_examples
    class_prompt, class_pictures = None, None
    if wants_class:
        class_prompt = fill_template(
            prior.prompt, subject=subject, class_noun=data.class_noun, field="prior.prompt"
        )
        if prior.kind == "class_images":
            class_pictures = (
                place.make_class_pictures(class_prompt)
                if prior.photos is None
                else own_pictures(prior.photos, data, prompt=class_prompt, **encoding)
            )
            provenance["class_pictures"] = class_pictures.manifest
    return TrainingData(
        data,
        instances,
        seed=config.training.seed,
        batch_size=config.training.batch_size,
        class_pictures=class_pictures,
        class_prompt=class_prompt,
        instances_as_class=prior.kind == "base_prediction",
        provenance=provenance,
    )


def picture_size(base: BasePipeline, config: RunConfig) -> int:
    """Side of the pictures in pixels. Raises `ConfigError` for one that the base cannot do."""
    size = config.data.size or base.family.default_size(base.components)
    if size > MAX_SIZE:
        raise ConfigError(f"data.size {size} is more than {MAX_SIZE} pixels. Give less.")
    multiple = base.family.size_multiple(base.components)
    if size % multiple:
        raise ConfigError(
            f"data.size {size} is not a multiple of {multiple}, as {base.source} needs it; "
            f"{size // multiple * multiple or multiple} is."
        )
    return size


def build_data(base: BasePipeline, method: Method, config: RunConfig) -> TrainingData:
    """Photos and class examples of a run, as latents. The base must be as it was loaded."""
    size = picture_size(base, config)
    cache = TensorCache(default_cache_folder())
    prior = config.prior
    sampling = SamplingConfig(
        num_steps=prior.num_steps,
        guidance_scale=prior.guidance_scale,
        batch_size=prior.batch_size,
        size=size,
    )

    def make_class_pictures(prompt: str) -> ClassPictures:
        return made_pictures(
            prior,
            prompt=prompt,
            base_fingerprint=base.fingerprint,
            sampler="euler" if base.family.flow_matching else sampling.scheduler,
            size=size,
            generate=lambda prompts, seeds: generate_latents(base, prompts, seeds, sampling),
            cache=cache,
        )

    encoder_key = f"{base.fingerprint} {base.device.type}"
    place = _Place(size, base.encode_images, encoder_key, cache, make_class_pictures, base.device)
    return _assemble(method, config, place)


def build_preview(method: Method, config: RunConfig, *, size: int) -> TrainingData:
    """The same data with pixels where the latents would be, for which no base is needed.

    Made class pictures are not made: they are grey.
    """

    def not_made(prompt: str) -> ClassPictures:
        count = config.prior.num_images
        grey = as_small_pixels(torch.zeros(1, 3, size, size)).mean.expand(count, -1, -1, -1)
        return ClassPictures(Moments(grey, grey), [(size, size)] * count, [(0, 0)] * count, {})

    cpu = torch.device("cpu")
    place = _Place(size, as_small_pixels, "pixels", None, not_made, cpu)
    return _assemble(method, config, place)


def write_provenance(data: TrainingData, folder: Path) -> None:
    """Write where class pictures come from, and what a model wrote as captions, into a run folder."""
    for name, values in data.provenance.items():
        if name == "captions":
            lines = [
                json.dumps({"file_name": file, "caption": text}, ensure_ascii=False)
                for file, text in values.items()
            ]
            text = "\n".join(lines) + "\n"
            write_text(folder / "captions.jsonl", text)
        else:
            text = json.dumps(values, indent=1, ensure_ascii=False)
            write_text(folder / f"{name}.json", text)
