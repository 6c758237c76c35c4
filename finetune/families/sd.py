"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022), and the embedded base, which is built alike."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, final

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders import TextualInversionLoaderMixin
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from data_prep.batch import Batch, Moments
from finetune.diffusion import DiscreteDiffusion
from finetune.errors import ArtifactError
from finetune.families.base import (
    Components,
    Conditioning,
    ForeignNames,
    ModelFamily,
    ModelVersion,
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
    denoiser_name = "unet"
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

    def load(self, source: Path, *, dtype: torch.dtype) -> Components:
        """Read the five folders of a pipeline; safetensors only."""

        def network(loader: Any, folder: str) -> Any:
            return loader.from_pretrained(source / folder, torch_dtype=dtype, use_safetensors=True)

        transformers_logging.disable_progress_bar()  # for a second's work
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch_dtype.*deprecated.*")
            components = Components(
                tokenizers={"tokenizer": CLIPTokenizer.from_pretrained(source / "tokenizer")},
                text_encoders={
                    "text_encoder": CLIPTextModel.from_pretrained(
                        source / "text_encoder", dtype=dtype, use_safetensors=True
                    )
                },
                vae=network(AutoencoderKL, "vae"),
                denoiser=network(UNet2DConditionModel, "unet"),
                scheduler=DDPMScheduler.from_pretrained(source / "scheduler"),
            )
        return self._frozen(components)

    def load_single_file(
        self, path: Path, *, config: Path | None, dtype: torch.dtype
    ) -> Components:
        """Read an original-layout `.safetensors` checkpoint through diffusers."""
        pipe = StableDiffusionPipeline.from_single_file(
            str(path),
            config=None if config is None else str(config),
            torch_dtype=dtype,
            local_files_only=config is not None,
            safety_checker=None,
        )
        return self._frozen(
            Components(
                tokenizers={"tokenizer": pipe.tokenizer},
                text_encoders={"text_encoder": pipe.text_encoder},
                vae=pipe.vae,
                denoiser=pipe.unet,
                scheduler=DDPMScheduler.from_config(pipe.scheduler.config),
            )
        )

    def _frozen(self, components: Components) -> Components:
        for module in components.modules(self.denoiser_name).values():
            module.requires_grad_(False).eval()
        return components

    def encode_images(
        self, components: Components, pixel_values: Float[Tensor, "batch 3 height width"]
    ) -> Moments:
        """Posterior of the autoencoder times its scaling factor."""
        posterior = components.vae.encode(pixel_values).latent_dist
        factor = components.vae.config.scaling_factor
        return Moments(posterior.mean * factor, posterior.std * factor)

    def decode_latents(
        self, components: Components, latents: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Decoder output of unscaled latents."""
        decoded: Tensor = components.vae.decode(
            latents / components.vae.config.scaling_factor
        ).sample
        return decoded

    def encode_prompts(self, components: Components, prompts: list[str]) -> Conditioning:
        """Last hidden states of the text encoder, padded to its full length, as diffusers does."""
        tokenizer = components.tokenizers["tokenizer"]
        encoder = components.text_encoders["text_encoder"]
        # A placeholder of several vectors becomes several tokens, as in the pipeline.
        expanded = TextualInversionLoaderMixin().maybe_convert_prompt(prompts, tokenizer)
        input_ids = tokenizer(
            expanded, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        states = encoder(input_ids.to(next(encoder.parameters()).device)).last_hidden_state
        return Conditioning({"prompt_embeds": states})

    def denoise(
        self,
        components: Components,
        noisy_latents: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, " batch"],
        conditioning: Conditioning,
        batch: Batch,
    ) -> Float[Tensor, "batch channels height width"]:
        """One call of the U-Net, in the precision of its weights."""
        # Its first weight tells; `denoiser.dtype` walks through all of them, a millisecond a call.
        dtype = next(components.denoiser.parameters()).dtype
        prompt_embeds = conditioning.tensors["prompt_embeds"].to(dtype)
        output: Tensor = components.denoiser(
            noisy_latents.to(dtype), timesteps, prompt_embeds, return_dict=False
        )[0]
        return output

    def noise_process(self, components: Components) -> DiscreteDiffusion:
        """The scheduler's table and prediction type."""
        scheduler = components.scheduler
        kind = scheduler.config.prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise ArtifactError(
                f"The base predicts '{kind}'; epsilon and v_prediction can be trained."
            )
        return DiscreteDiffusion(scheduler.alphas_cumprod, kind)

    def latent_shape(self, components: Components, size: int) -> tuple[int, int, int]:
        """Channels and size / 2^(levels - 1), in both directions."""
        config = components.vae.config
        side = size // 2 ** (len(config.block_out_channels) - 1)
        return config.latent_channels, side, side

    def default_size(self, components: Components) -> int:
        """Latent side of the U-Net's configuration times the autoencoder's factor."""
        levels = len(components.vae.config.block_out_channels) - 1
        return int(components.denoiser.config.sample_size * 2**levels)

    def adapter_targets(self, component: str) -> list[str]:
        """Attention projections."""
        if component == "unet":
            return ["to_q", "to_k", "to_v", "to_out.0"]
        return ["q_proj", "k_proj", "v_proj", "out_proj"]

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
