"""The configurations that a single-file checkpoint lacks: shipped ones, and CLIP's tokenizer."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from transformers import CLIPTokenizer

from finetune.errors import ArtifactError
from finetune.families.parts import PUBLISHED, read_model_index

CLIP_TOKENIZER = "openai/clip-vit-large-patch14"
"""Its vocabulary (1.5 MB) is that of every Stable Diffusion; it is not shipped."""
_FILES = ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"]
_PROBE = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
_ADVICE = "Give a diffusers folder with its configurations as base.single_file_config."


def published_name(path: Path) -> str:
    """Which of the shipped configurations a checkpoint has, told from its header.

    Raises `ArtifactError` where the header does not say: of Stable Diffusion 2.x whether it predicts v.
    """
    with safe_open(path, "pt") as content:
        keys, metadata = set(content.keys()), content.metadata() or {}
        width = content.get_slice(_PROBE).get_shape()[1] if _PROBE in keys else None
    if any(key.startswith("conditioner.embedders.0.transformer.") for key in keys):
        return "sdxl"
    if width == 768:
        return "sd15"
    if width == 1024 and metadata.get("modelspec.prediction_type") == "v":
        return "sd21"
    raise ArtifactError(
        f"{path} does not say which version of Stable Diffusion it is, and what it predicts. {_ADVICE}"
    )


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer, downloaded once. Raises `ArtifactError` where it cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(CLIP_TOKENIZER, allow_patterns=_FILES)
        return CLIPTokenizer.from_pretrained(folder)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtifactError(
            f"The tokenizer {CLIP_TOKENIZER}, which a single file needs beside it, could not be had from "
            f"the Hub: {reason} {_ADVICE}"
        ) from error


@contextmanager
def shipped_configuration(path: Path) -> Iterator[Path]:
    """A diffusers folder with the configurations of a single-file checkpoint, for as long as it is read."""
    name = published_name(path)
    tokenizer = clip_tokenizer()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(PUBLISHED / name, Path(temporary) / name))
        for part in read_model_index(folder):
            if part.startswith("tokenizer"):
                # OpenCLIP's encoders were trained on prompts padded with the token of id 0.
                open_clip = name == "sd21" or part == "tokenizer_2"
                tokenizer.pad_token = "!" if open_clip else "<|endoftext|>"
                tokenizer.save_pretrained(folder / part)
        yield folder
