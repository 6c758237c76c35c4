"""What several families do alike with their parts: read and tokenize."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL
from diffusers.loaders import TextualInversionLoaderMixin
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from finetune.diffusion import DiscreteDiffusion
from finetune.errors import ArtifactError
from finetune.families.base import Components, Reading
from finetune.files import read_json

PUBLISHED = Path(__file__).resolve().parent / "published"
"""Configurations of the published models of every family, without weights and tokenizers."""
UNET_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
JOINT_ATTENTION = (*UNET_ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


def read_networks(
    source: Path, classes: Mapping[str, Any], reading: Reading, *, large: Collection[str] = ()
) -> dict[str, nn.Module]:
    """Networks of a diffusers folder by name, from safetensors only; those in `large` may be quantised."""
    networks = {}
    transformers_logging.disable_progress_bar()  # for a second's work
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch_dtype.*deprecated.*")
        for name, network_class in classes.items():
            folder = source / name
            if reading.weights:
                networks[name] = _read_network(
                    folder, network_class, reading, is_large=name in large
                )
            else:
                networks[name] = _shapes_of(folder, network_class, reading.dtype)
    return networks


MAX_NUMBER = 1_000_000
"""In a network's or scheduler's configuration; vocabularies, the largest there are, have a quarter of it."""


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, (int, float)):
        yield value


def check_configurations(folder: Path) -> None:
    """Raise `ArtifactError` if a configuration in a diffusers folder asks for the impossible, or for code.

    transformers takes the name of an attention implementation from the file, and downloads and runs what
    it does not know where the package `kernels` is installed.
    """
    for path in (*folder.glob("*/config.json"), *folder.glob("*/scheduler_config.json")):
        settings = read_json(path)
        if not isinstance(settings, dict):
            raise ArtifactError(f"{path} holds no table of settings.")
        for key in ("attn_implementation", "_attn_implementation"):
            if settings.get(key) not in (None, "eager", "sdpa"):
                raise ArtifactError(
                    f"{path} asks for the attention implementation {settings[key]!r}, which would be "
                    f"downloaded and run. Remove {key} from it."
                )
        largest = max(map(abs, _numbers(settings)), default=0)
        if largest > MAX_NUMBER:
            raise ArtifactError(f"{path} holds the number {largest:g}, which no network has.")


def _read_network(
    folder: Path, network_class: Any, reading: Reading, *, is_large: bool
) -> nn.Module:
    is_transformers = issubclass(network_class, PreTrainedModel)
    options: dict[str, Any] = {"dtype" if is_transformers else "torch_dtype": reading.dtype}
    if reading.quantization is not None and is_large:
        chosen: Any = transformers if is_transformers else diffusers
        options["quantization_config"] = chosen.BitsAndBytesConfig(
            load_in_8bit=reading.quantization == "int8",
            load_in_4bit=reading.quantization == "nf4",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=reading.dtype,
        )
    network: nn.Module = network_class.from_pretrained(folder, use_safetensors=True, **options)
    return network


def _shapes_of(folder: Path, network_class: Any, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        if issubclass(network_class, PreTrainedModel):
            config = network_class.config_class.from_pretrained(folder)
            network: nn.Module = network_class(config)
        else:
            network = network_class.from_config(network_class.load_config(folder))
    return nn.Module.to(network, dtype)  # diffusers' own warns


def read_vae(source: Path, reading: Reading) -> nn.Module:
    """The autoencoder of a diffusers folder, in float32 where its configuration says `force_upcast`.

    The activations of such a one overflow float16.
    """
    upcast = AutoencoderKL.load_config(source / "vae").get("force_upcast", True)
    chosen = replace(reading, dtype=torch.float32) if upcast else reading
    return read_networks(source, {"vae": AutoencoderKL}, chosen)["vae"]


def frozen(components: Components, denoiser_name: str) -> Components:
    """The same components, without gradients and in eval mode."""
    for module in components.modules(denoiser_name).values():
        module.requires_grad_(False).eval()
    return components


def read_model_index(source: Path) -> dict[str, Any]:
    """Content of a folder's model_index.json."""
    index: dict[str, Any] = read_json(source / "model_index.json")
    return index


def dtype_of(network: nn.Module) -> torch.dtype:
    """Precision of a network's first weight; `network.dtype` walks through all, a millisecond a call.

    Of a quantised one the first that is no integer, for instance a bias or norm.
    """
    return next(p.dtype for p in network.parameters() if p.is_floating_point())


def clip_input_ids(tokenizer: Any, prompts: list[str]) -> Int[Tensor, "batch tokens"]:
    """Token ids padded to the encoder's full length, as diffusers pads them.

    A placeholder of several vectors becomes several tokens, as in the pipelines.
    """
    expanded = TextualInversionLoaderMixin().maybe_convert_prompt(prompts, tokenizer)
    input_ids: Tensor = tokenizer(
        expanded, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    return input_ids


def penultimate_states(
    components: Components, encoders: Mapping[str, str], prompts: list[str]
) -> tuple[Float[Tensor, "batch tokens width"], list[Any]]:
    """Last states but one of CLIP encoders side by side, and each one's output.

    `encoders`: text encoder -> its tokenizer.
    """
    states, outputs = [], []
    for name, tokenizer_name in encoders.items():
        encoder = components.text_encoders[name]
        input_ids = clip_input_ids(components.tokenizers[tokenizer_name], prompts)
        device = next(encoder.parameters()).device
        output = encoder(input_ids.to(device), output_hidden_states=True)
        states.append(output.hidden_states[-2])
        outputs.append(output)
    return torch.cat(states, -1), outputs


def t5_states(
    tokenizer: Any, encoder: nn.Module, prompts: list[str], *, length: int
) -> Float[Tensor, "batch tokens width"]:
    """Last hidden states of a T5, padded to `length` tokens; the padding is not masked, as in diffusers."""
    input_ids = tokenizer(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    states: Tensor = encoder(input_ids.to(next(encoder.parameters()).device))[0]
    return states


def discrete_process(scheduler: Any) -> DiscreteDiffusion:
    """The scheduler's table and prediction type. Raises `ArtifactError` for a type it does not know."""
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise ArtifactError(f"The base predicts '{kind}'; epsilon and v_prediction can be trained.")
    return DiscreteDiffusion(scheduler.alphas_cumprod, kind)
