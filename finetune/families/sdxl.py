"""Stable Diffusion XL (Podell et al. 2023): two CLIP text encoders, a U-Net that is told sizes and crops."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, final

import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

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
    discrete_process,
    dtype_of,
    frozen,
    penultimate_states,
    read_model_index,
    read_networks,
    read_vae,
)

_VERSION = ModelVersion(
    "SDXL",
    "sdxl_base_v1-0",
    {
        "epsilon": "stable-diffusion-xl-v1-base",
        "v_prediction": "stable-diffusion-xl-v1-base",
    },
)
_ZEROS = "force_zeros_for_empty_prompt"


@final
class StableDiffusionXL(ModelFamily):
    """Two CLIP text encoders (the second with a pooled output), a U-Net, an `AutoencoderKL`."""

    name = "sdxl"
    title = "Stable Diffusion XL"
    denoiser_name = "unet"
    attention = UNET_ATTENTION
    repeated_blocks = ("BasicTransformerBlock",)
    trainable_text_encoders = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    foreign_names = ForeignNames(
        kohya_prefixes={
            "unet": ("lora_unet",),
            "text_encoder": ("lora_te1",),
            "text_encoder_2": ("lora_te2",),
        },
        embedding_keys={"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
        single_file_roots={
            "unet": "model.diffusion_model.",
            "vae": "first_stage_model.",
            "text_encoder": "conditioner.embedders.0.transformer.text_model.",
        },
        open_clip_roots={"text_encoder_2": "conditioner.embedders.1.model."},
        versions={2048: _VERSION},
        default_version=_VERSION,
        vae_scaling_factor=0.13025,
    )

    def matches(self, model_index: dict[str, object]) -> bool:
        """True for `StableDiffusionXLPipeline` checkpoints."""
        return model_index.get("_class_name") == "StableDiffusionXLPipeline"

    def matches_single_file(self, keys: Collection[str]) -> bool:
        """True for the original layout of the base model; the refiner has the second encoder only."""
        root = "conditioner.embedders.0.transformer."
        return any(key.startswith(root) for key in keys)

    def load(self, source: Path, reading: Reading, *, without: Collection[str] = ()) -> Components:
        """Read the seven folders of a pipeline; safetensors only."""
        classes = {
            "text_encoder": CLIPTextModel,
            "text_encoder_2": CLIPTextModelWithProjection,
            "unet": UNet2DConditionModel,
        }
        networks = read_networks(source, classes, reading, large=self.large_components)
        encoders = self.trainable_text_encoders
        components = Components(
            tokenizers={n: CLIPTokenizer.from_pretrained(source / n) for n in encoders.values()},
            text_encoders={name: networks[name] for name in encoders},
            vae=read_vae(source, reading),
            denoiser=networks["unet"],
            scheduler=DDPMScheduler.from_pretrained(source / "scheduler"),
            pipeline_settings={_ZEROS: read_model_index(source).get(_ZEROS, True)},
        )
        return frozen(components, self.denoiser_name)

    def load_single_file(
        self, path: Path, *, config: Path | None, dtype: torch.dtype
    ) -> Components:
        """Read an original-layout `.safetensors` checkpoint through diffusers."""

        def read(dtype: torch.dtype, **parts: Any) -> Any:
            return StableDiffusionXLPipeline.from_single_file(
                str(path),
                config=None if config is None else str(config),
                torch_dtype=dtype,
                local_files_only=config is not None,
                add_watermarker=False,
                **parts,
            )

        pipe = read(dtype)
        if pipe.vae.config.force_upcast and dtype != torch.float32:
            others = {name: part for name, part in pipe.components.items() if name != "vae"}
            pipe.vae = read(torch.float32, **others).vae
        components = Components(
            tokenizers={"tokenizer": pipe.tokenizer, "tokenizer_2": pipe.tokenizer_2},
            text_encoders={
                "text_encoder": pipe.text_encoder,
                "text_encoder_2": pipe.text_encoder_2,
            },
            vae=pipe.vae,
            denoiser=pipe.unet,
            scheduler=DDPMScheduler.from_config(pipe.scheduler.config),
            pipeline_settings={_ZEROS: pipe.config[_ZEROS]},
        )
        return frozen(components, self.denoiser_name)

    def encode_prompts(self, components: Components, prompts: list[str]) -> Conditioning:
        """Penultimate hidden states of both encoders side by side, and the second's pooled output.

        The empty prompt is all zeros where the base's configuration says so: that is what its pipeline
        takes for the unconditional answer.
        """
        prompt_embeds, outputs = penultimate_states(
            components, self.trainable_text_encoders, prompts
        )
        pooled = outputs[-1].text_embeds
        if components.pipeline_settings[_ZEROS] and "" in prompts:
            empty = torch.tensor([prompt == "" for prompt in prompts], device=pooled.device)
            prompt_embeds = prompt_embeds.masked_fill(empty[:, None, None], 0.0)
            pooled = pooled.masked_fill(empty[:, None], 0.0)
        return Conditioning({"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled})

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
        """One call of the U-Net, told each picture's original size, crop and target size (§2.2)."""
        dtype = dtype_of(components.denoiser)
        factor = vae_factor(components.vae)
        target = [side * factor for side in noisy_latents.shape[2:]]
        time_ids = [
            [*original, *corner, *target]
            for original, corner in zip(batch.original_size_hw, batch.crop_top_left_yx, strict=True)
        ]
        added = {
            "text_embeds": conditioning.tensors["pooled_prompt_embeds"].to(dtype),
            "time_ids": torch.tensor(time_ids, dtype=torch.float32, device=noisy_latents.device),
        }
        output: Tensor = components.denoiser(
            noisy_latents.to(dtype),
            timesteps,
            conditioning.tensors["prompt_embeds"].to(dtype),
            added_cond_kwargs=added,
            return_dict=False,
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
        """A pipeline without watermark over the given networks."""
        pipe = StableDiffusionXLPipeline(
            vae=components.vae,
            unet=components.denoiser,
            scheduler=components.scheduler,
            add_watermarker=False,
            **components.text_encoders,
            **components.tokenizers,
            **components.pipeline_settings,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe
