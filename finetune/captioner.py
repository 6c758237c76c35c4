"""Captions by an image-to-text model of transformers, where a configuration asks for one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from data_prep.captions import CaptionImages
from finetune.base import UNREADABLE
from finetune.errors import ArtifactError

MAX_NEW_TOKENS = 40
"""Of a caption; what the denoiser's text encoders read is not much longer."""


def _in_short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def load_captioner(source: str, *, device: torch.device) -> CaptionImages:
    """The model in a folder or of a Hub id. Greedy decoding: the same pictures get the same captions.

    Code that comes with a model is not run, and weights are read from safetensors only. Raises
    `ArtifactError` if it cannot be read or is no image-to-text model.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if source.startswith((".", "/", "~")) and not Path(source).expanduser().is_dir():
        raise ArtifactError(f"data.caption_model: there is no folder '{source}'.")
    place = str(Path(source).expanduser())
    try:
        processor = AutoProcessor.from_pretrained(place, trust_remote_code=False)
        model = AutoModelForImageTextToText.from_pretrained(
            place, trust_remote_code=False, use_safetensors=True
        )
    except UNREADABLE as error:
        raise ArtifactError(
            f"data.caption_model: '{source}' could not be read as an image-to-text model: "
            f"{_in_short(error)}"
        ) from error
    model.to(device).requires_grad_(False).eval()

    @torch.no_grad()
    def caption(images: Sequence[Image.Image]) -> list[str]:
        try:
            inputs = processor(images=list(images), return_tensors="pt").to(device)
            ids = model.generate(
                **inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, num_beams=1
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtifactError(
                f"data.caption_model: '{source}' cannot caption a picture by itself: {_in_short(error)}. "
                "Name a captioning model, for instance of the BLIP kind."
            ) from error
        texts: list[str] = processor.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    return caption
