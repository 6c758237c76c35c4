"""The kinds of encoders: which folders they recognise, and how each makes a picture an embedding.

A further kind is one more function from a folder to a `Network`, and one line in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPModel,
    CLIPTokenizer,
    Dinov2Model,
    Dinov2WithRegistersModel,
    ViTModel,
)
from transformers.utils import logging as transformers_logging

from data_prep.transforms import crop_square, to_pixel_values
from finetune.dual_encoder import CONFIG as DUAL_ENCODER_CONFIG
from finetune.dual_encoder import DualEncoder
from finetune.encoders.encoder import Network
from finetune.encoders.pixels import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    RGB,
    Preprocessing,
)
from finetune.errors import ArtifactError
from finetune.files import read_json
from finetune.judge import CONFIG as JUDGE_CONFIG
from finetune.judge import Judge

LARGEST_CROP = 224
"""Side that DINO and DINOv2 are evaluated at, in pixels; a network made for fewer gets fewer."""


@dataclass(frozen=True)
class Kind:
    """A kind of encoder."""

    name: str
    model_types: frozenset[str]
    """What `model_type` in config.json may be; empty for a kind with a file of its own."""
    load: Callable[[Path], Network]
    marker: str = "config.json"
    """The file that a folder of this kind holds."""


def _colors(folder: Path, mean: RGB, std: RGB) -> tuple[RGB, RGB]:
    """Mean and spread that a folder's own preprocessor_config.json states, else the kind's."""
    path = folder / "preprocessor_config.json"
    values = read_json(path) if path.is_file() else {}
    found = [
        tuple(map(float, values.get(key, standard)))
        for key, standard in (("image_mean", mean), ("image_std", std))
    ]
    if any(len(numbers) != 3 for numbers in found) or not all(found[1]):
        raise ValueError(f"{path} needs three numbers each as image_mean and image_std, none 0")
    return (found[0][0], found[0][1], found[0][2]), (found[1][0], found[1][1], found[1][2])


def _read(network: Any, folder: Path, *, may_lack: Sequence[str] = (), **settings: bool) -> Any:
    """A network of transformers in float32, frozen, read quietly.

    Raises `ArtifactError` if the file holds not all its weights. It may hold more: a head, a pooling layer.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, report = network.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32, **settings
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    lacking = sorted(key for key in report["missing_keys"] if not key.startswith(tuple(may_lack)))
    if lacking:
        raise ArtifactError(f"{len(lacking)} of its weights are missing, {lacking[0]} among them")
    return model.eval().requires_grad_(False)


def _tokenizer(folder: Path, context: int) -> Callable[[Sequence[str]], Tensor]:
    tokenizer = CLIPTokenizer.from_pretrained(folder)

    def tokenize(texts: Sequence[str]) -> Tensor:
        ids: Tensor = tokenizer(
            list(texts),
            padding="max_length",
            max_length=context,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return ids

    return tokenize


def load_clay_clip(folder: Path) -> Network:
    """The embedded CLIP (`dual_encoder`): pictures resized as training pictures are, in [-1, 1]."""
    model = DualEncoder.from_pretrained(folder)
    size, context = model.image_size, model.text_model.config.max_position_embeddings

    def to_pixels(image: Image.Image) -> Tensor:
        return to_pixel_values(crop_square(image.convert("RGB"), size)[0])

    return Network(
        model,
        model.projection_dim,
        f"shorter side to {size} px (Lanczos), middle {size} x {size} px, channels in -1 … 1; texts: the "
        f"first {context} tokens",
        to_pixels,
        model.get_image_features,
        _tokenizer(folder, context),
        model.get_text_features,
    )


def load_clay_judge(folder: Path) -> Network:
    """The identity embedding of a clay judge (`judge`): who a picture shows, wherever it is."""
    judge = Judge.from_pretrained(folder)
    size = judge.image_size

    def to_pixels(image: Image.Image) -> Tensor:
        return judge.pixel_values([image])[0]

    return Network(
        judge,
        judge.identity_dim,
        f"shorter side to {size} px (Lanczos), middle {size} x {size} px, channels in -1 … 1; "
        "the mean over a picture and its mirror image",
        to_pixels,
        lambda pixel_values: judge.mirrored_mean(pixel_values)[1],
    )


def load_clip(folder: Path) -> Network:
    """CLIP (Radford et al. 2021): projected embeddings of pictures and texts."""
    model = _read(CLIPModel, folder)
    size, context = (
        model.config.vision_config.image_size,
        model.config.text_config.max_position_embeddings,
    )
    prepare = Preprocessing(size, size, *_colors(folder, CLIP_MEAN, CLIP_STD))

    def image_features(pixel_values: Tensor) -> Tensor:
        pooled = model.vision_model(pixel_values=pixel_values).pooler_output
        features: Tensor = model.visual_projection(pooled)
        return features

    def text_features(input_ids: Tensor) -> Tensor:
        features: Tensor = model.text_projection(
            model.text_model(input_ids=input_ids).pooler_output
        )
        return features

    return Network(
        model,
        model.config.projection_dim,
        f"{prepare.in_words()}; texts: the first {context} tokens",
        prepare,
        image_features,
        _tokenizer(folder, context),
        text_features,
    )


def _class_token(model: Any, folder: Path) -> Network:
    """The class token after the last layer norm, of the middle of a picture 8/7 as large as the crop."""
    patch = model.config.patch_size
    crop = min(LARGEST_CROP, model.config.image_size) // patch * patch
    prepare = Preprocessing(
        round(crop * 8 / 7), crop, *_colors(folder, IMAGENET_MEAN, IMAGENET_STD)
    )
    resizes = {"interpolate_pos_encoding": True} if isinstance(model, ViTModel) else {}

    def image_features(pixel_values: Tensor) -> Tensor:
        states: Tensor = model(pixel_values=pixel_values, **resizes).last_hidden_state
        return states[:, 0]

    return Network(model, model.config.hidden_size, prepare.in_words(), prepare, image_features)


def load_dino(folder: Path) -> Network:
    """DINO (Caron et al. 2021), or another ViT: the class token, not the untrained pooling on top."""
    return _class_token(_read(ViTModel, folder, add_pooling_layer=False), folder)


def load_dinov2(folder: Path) -> Network:
    """DINOv2 (Oquab et al. 2023), with or without registers: the class token."""
    with_registers = read_json(folder / "config.json")["model_type"] != "dinov2"
    network = Dinov2WithRegistersModel if with_registers else Dinov2Model
    return _class_token(_read(network, folder, may_lack=("embeddings.mask_token",)), folder)


KINDS = (
    Kind("clay-clip", frozenset(), load_clay_clip, marker=DUAL_ENCODER_CONFIG),
    Kind("clay-judge", frozenset(), load_clay_judge, marker=JUDGE_CONFIG),
    Kind("clip", frozenset({"clip"}), load_clip),
    Kind("dino", frozenset({"vit"}), load_dino),
    Kind("dinov2", frozenset({"dinov2", "dinov2_with_registers"}), load_dinov2),
)


def kind_of(folder: Path, name: str) -> Kind:
    """The kind of encoder that lies in `folder`. Raises `ArtifactError` with the list of kinds."""
    for kind in KINDS:
        if not kind.model_types and (folder / kind.marker).is_file():
            return kind
    try:
        values = read_json(folder / "config.json")
        model_type = values.get("model_type") if isinstance(values, dict) else None
    except FileNotFoundError:
        raise ArtifactError(
            f"The scorer '{name}' has no config.json in {folder}. Give a folder that transformers' "
            "save_pretrained wrote, or a clone of a Hub repository."
        ) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"The scorer '{name}' cannot be read: {folder / 'config.json'}: {error}"
        ) from error
    for kind in KINDS:
        if model_type in kind.model_types:
            return kind
    known = sorted(name for kind in KINDS for name in kind.model_types)
    raise ArtifactError(
        f"The scorer '{name}' is of the kind '{model_type}' (model_type in config.json), which cannot score "
        f"pictures here. Known kinds: {', '.join(known)}."
    )
