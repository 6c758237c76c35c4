"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022), and the embedded base, which is built alike."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, final

import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from data_prep.batch import Batch
from finetune.diffusion import DiscreteDiffusion
from finetune.families.base import (
    Components,
    Conditioning,
    ForeignNames,
    ModelFamily,
    ModelVersion,
    Reading,
    vae_factor,
)
from finetune.families.parts import (
    UNET_ATTENTION,
    clip_input_ids,
    discrete_process,
    dtype_of,
    frozen,
    read_networks,
    read_vae,
)

_VERSION_1 = ModelVersion(
    "Stable Diffusion 1.x",
    "sd_v1",
    {"epsilon": "stable-diffusion-v1", "v_prediction": "stable-diffusion-v1"},
)
_VERSION_2 = ModelVersion(
    "Stable Diffusion 2.x",
    "sd_v2",
    {"epsilon": "stable-diffusion-v2-512", "v_prediction": "stable-diffusion-v2-768-v"},
)


@final
class StableDiffusion(ModelFamily):
    """One CLIP text encoder, a U-Net with cross-attention, an `AutoencoderKL`."""

    name = "sd"
    title = "Stable Diffusion 1.x and 2.x, clay"
    denoiser_name = "unet"
    attention = UNET_ATTENTION
    repeated_blocks = ("BasicTransformerBlock",)
    trainable_text_encoders = {"text_encoder": "tokenizer"}
    foreign_names = ForeignNames(
        kohya_prefixes={"unet": ("lora_unet",), "text_encoder": ("lora_te", "lora_te1")},
        embedding_keys={"text_encoder": "emb_params"},
        single_file_roots={
            "unet": "model.diffusion_model.",
            "vae": "first_stage_model.",
            "text_encoder": "cond_stage_model.transformer.text_model.",
        },
        open_clip_roots={"text_encoder": "cond_stage_model.model."},
        versions={768: _VERSION_1, 1024: _VERSION_2},
        default_version=_VERSION_1,
    )

    def matches(self, model_index: dict[str, object]) -> bool:
        """True for `StableDiffusionPipeline` checkpoints."""
        return model_index.get("_class_name") == "StableDiffusionPipeline"

    def matches_single_file(self, keys: Collection[str]) -> bool:
        """True for the original layouts of 1.x and 2.x."""
        return any(key.startswith("cond_stage_model.") for key in keys)

    def load(self, source: Path, reading: Reading, *, without: Collection[str] = ()) -> Components:
        """Read the five folders of a pipeline; safetensors only."""
        classes = {
            "text_encoder": CLIPTextModel,
            "unet": UNet2DConditionModel,
        }
        networks = read_networks(source, classes, reading, large=self.large_components)
        components = Components(
            tokenizers={"tokenizer": CLIPTokenizer.from_pretrained(source / "tokenizer")},
            text_encoders={"text_encoder": networks["text_encoder"]},
            vae=read_vae(source, reading),
            denoiser=networks["unet"],
            scheduler=DDPMScheduler.from_pretrained(source / "scheduler"),
        )
        return frozen(components, self.denoiser_name)

    def load_single_file(
        self, path: Path, *, config: Path | None, dtype: torch.dtype
    ) -> Components:
        """Read an original-layout `.safetensors` checkpoint through diffusers."""

        def read(dtype: torch.dtype, **parts: Any) -> Any:
            return StableDiffusionPipeline.from_single_file(
                str(path),
                config=None if config is None else str(config),
                torch_dtype=dtype,
                local_files_only=config is not None,
                safety_checker=None,
                **parts,
            )

        pipe = read(dtype)
        if pipe.vae.config.force_upcast and dtype != torch.float32:
            others = {n: part for n, part in pipe.components.items() if part and n != "vae"}
            pipe.vae = read(torch.float32, **others).vae
        components = Components(
            tokenizers={"tokenizer": pipe.tokenizer},
            text_encoders={"text_encoder": pipe.text_encoder},
            vae=pipe.vae,
            denoiser=pipe.unet,
            scheduler=DDPMScheduler.from_config(pipe.scheduler.config),
        )
        return frozen(components, self.denoiser_name)

    def encode_prompts(self, components: Components, prompts: list[str]) -> Conditioning:
        """Last hidden states of the text encoder, padded to its full length, as diffusers does."""
        encoder = components.text_encoders["text_encoder"]
        input_ids = clip_input_ids(components.tokenizers["tokenizer"], prompts)
        states = encoder(input_ids.to(next(encoder.parameters()).device)).last_hidden_state
        return Conditioning({"prompt_embeds": states})

    def denoise(
        self,
        components: Components,
        noisy_latents: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, " batch"],
        conditioning: Conditioning,
        batch: Batch,
        *,
        guidance_scale: float = 1.0,
    ) -> Float[Tensor, "batch channels height width"]:
        """One call of the U-Net, in the precision of its weights."""
        dtype = dtype_of(components.denoiser)
        prompt_embeds = conditioning.tensors["prompt_embeds"].to(dtype)
        output: Tensor = components.denoiser(
            noisy_latents.to(dtype), timesteps, prompt_embeds, return_dict=False
        )[0]
        return output

    def noise_process(self, components: Components) -> DiscreteDiffusion:
        """The scheduler's table and prediction type."""
        return discrete_process(components.scheduler)

    def default_size(self, components: Components) -> int:
        """Latent side of the U-Net's configuration times the autoencoder's factor."""
        return int(components.denoiser.config.sample_size * vae_factor(components.vae))

    def size_multiple(self, components: Components) -> int:
        """Pixels of a latent."""
        return vae_factor(components.vae)

    def pipeline(self, components: Components) -> DiffusionPipeline:
        """A pipeline without safety checker over the given networks."""
        pipe = StableDiffusionPipeline(
            vae=components.vae,
            text_encoder=components.text_encoders["text_encoder"],
            tokenizer=components.tokenizers["tokenizer"],
            unet=components.denoiser,
            scheduler=components.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe
