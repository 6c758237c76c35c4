"""FLUX.1 (Black Forest Labs 2024): CLIP's pooled output and a T5, a transformer on packed latents.

There is no paper; the reference is https://github.com/black-forest-labs/flux and diffusers' `FluxPipeline`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import final

import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from data_prep.batch import Batch
from finetune.diffusion import RectifiedFlow
from finetune.errors import ArtifactError
from finetune.families.base import (
    Components,
    Conditioning,
    ModelFamily,
    Packing,
    Reading,
    vae_factor,
)
from finetune.families.parts import (
    JOINT_ATTENTION,
    clip_input_ids,
    dtype_of,
    frozen,
    read_networks,
    read_vae,
    t5_states,
)

T5_LENGTH = 512
"""Tokens that the T5 is given, the pipeline's default."""
DEFAULT_LATENT_SIDE = 128
"""The pipeline's default; the transformer's configuration does not say."""


def pack(
    latents: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch patches 4*channels"]:
    """Patches of 2 × 2 latents, row by row."""
    batch, channels, height, width = latents.shape
    cut = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, channels * 4)


def unpack(
    packed: Float[Tensor, "batch patches 4*channels"], height: int, width: int
) -> Float[Tensor, "batch channels height width"]:
    """The inverse of `pack`; `height` and `width` are those of the latents."""
    batch, _, depth = packed.shape
    cut = packed.view(batch, height // 2, width // 2, depth // 4, 2, 2)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(batch, depth // 4, height, width)


def image_ids(height: int, width: int) -> Float[Tensor, "patches 3"]:
    """Place of each patch: 0, row, column."""
    rows, columns = torch.meshgrid(
        torch.arange(height // 2), torch.arange(width // 2), indexing="ij"
    )
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()


@final
class Flux(ModelFamily):
    """A CLIP encoder for the pooled output, a T5 for the sequence, a transformer, 16 latent channels."""

    name = "flux"
    title = "FLUX.1"
    denoiser_name = "transformer"
    attention = JOINT_ATTENTION
    packing = Packing(pack, unpack)
    repeated_blocks = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
    t5_name = "text_encoder_2"
    trainable_text_encoders = {"text_encoder": "tokenizer"}
    why_no_new_words = (
        "its prompts are read by a T5 (text_encoder_2), which has no place for a new word; use lora or "
        "dreambooth"
    )
    flow_matching = True
    takes_negative_prompts = False

    def matches(self, model_index: dict[str, object]) -> bool:
        """True for `FluxPipeline` checkpoints."""
        return model_index.get("_class_name") == "FluxPipeline"

    def matches_single_file(self, keys: Collection[str]) -> bool:
        """False: single files of this family hold the transformer only."""
        return False

    def load(self, source: Path, reading: Reading, *, without: Collection[str] = ()) -> Components:
        """Read the seven folders of a pipeline; safetensors only."""
        classes = {
            "text_encoder": CLIPTextModel,
            "text_encoder_2": T5EncoderModel,
            "transformer": FluxTransformer2DModel,
        }
        networks = read_networks(source, classes, reading, large=self.large_components)
        components = Components(
            tokenizers={
                "tokenizer": CLIPTokenizer.from_pretrained(source / "tokenizer"),
                "tokenizer_2": T5TokenizerFast.from_pretrained(source / "tokenizer_2"),
            },
            text_encoders={name: networks[name] for name in ("text_encoder", "text_encoder_2")},
            vae=read_vae(source, reading),
            denoiser=networks["transformer"],
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(source / "scheduler"),
        )
        return frozen(components, self.denoiser_name)

    def load_single_file(
        self, path: Path, *, config: Path | None, dtype: torch.dtype
    ) -> Components:
        """Raises `ArtifactError`: see `matches_single_file`."""
        raise ArtifactError(
            f"{path}: single files of FLUX cannot be read. Give a diffusers folder."
        )

    def encode_prompts(self, components: Components, prompts: list[str]) -> Conditioning:
        """The T5's states, and CLIP's pooled output."""
        clip = components.text_encoders["text_encoder"]
        input_ids = clip_input_ids(components.tokenizers["tokenizer"], prompts)
        pooled = clip(input_ids.to(next(clip.parameters()).device)).pooler_output
        states = t5_states(
            components.tokenizers["tokenizer_2"],
            components.text_encoders["text_encoder_2"],
            prompts,
            length=T5_LENGTH,
        )
        return Conditioning({"prompt_embeds": states, "pooled_prompt_embeds": pooled})

    def denoise(
        self,
        components: Components,
        noisy_latents: Float[Tensor, "batch channels height width"],
        timesteps: Float[Tensor, " batch"],
        conditioning: Conditioning,
        batch: Batch,
        *,
        guidance_scale: float = 1.0,
    ) -> Float[Tensor, "batch channels height width"]:
        """One call of the transformer on packed latents; it wants timesteps in [0, 1].

        A guidance-distilled base ("dev") is told `guidance_scale`, others are not.
        """
        dtype, device = dtype_of(components.denoiser), noisy_latents.device
        height, width = noisy_latents.shape[2:]
        prompt_embeds = conditioning.tensors["prompt_embeds"].to(dtype)
        guidance = None
        if components.denoiser.config.guidance_embeds:
            guidance = torch.full((len(noisy_latents),), guidance_scale, device=device)
        output: Tensor = components.denoiser(
            hidden_states=pack(noisy_latents.to(dtype)),
            timestep=timesteps / 1000,
            guidance=guidance,
            pooled_projections=conditioning.tensors["pooled_prompt_embeds"].to(dtype),
            encoder_hidden_states=prompt_embeds,
            txt_ids=torch.zeros(prompt_embeds.shape[1], 3, dtype=dtype, device=device),
            img_ids=image_ids(height, width).to(device, dtype),
            return_dict=False,
        )[0]
        return unpack(output, height, width)

    def noise_process(self, components: Components) -> RectifiedFlow:
        """The scheduler's sigmas, all equally likely.

        Where they are shifted by the picture's size while sampling, they are not while training, as in
        diffusers' `train_dreambooth_lora_flux.py`.
        """
        return RectifiedFlow(components.scheduler.sigmas, "uniform")

    def default_size(self, components: Components) -> int:
        """The pipeline's latent side times the autoencoder's factor."""
        return DEFAULT_LATENT_SIDE * vae_factor(components.vae)

    def size_multiple(self, components: Components) -> int:
        """Pixels of a patch of 2 × 2 latents."""
        return 2 * vae_factor(components.vae)

    def pipeline(self, components: Components) -> DiffusionPipeline:
        """A pipeline over the given networks, with a scheduler of its own: sampling writes into it."""
        pipe = FluxPipeline(
            vae=components.vae,
            transformer=components.denoiser,
            scheduler=FlowMatchEulerDiscreteScheduler.from_config(components.scheduler.config),
            **components.text_encoders,
            **components.tokenizers,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe
