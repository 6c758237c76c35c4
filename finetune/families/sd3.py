"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): two CLIP encoders and a T5, a rectified flow."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, final

import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5EncoderModel,
    T5TokenizerFast,
)

from data_prep.batch import Batch
from finetune.diffusion import RectifiedFlow
from finetune.errors import ArtifactError
from finetune.families.base import Components, Conditioning, ModelFamily, Reading, vae_factor
from finetune.families.parts import (
    JOINT_ATTENTION,
    dtype_of,
    frozen,
    penultimate_states,
    read_model_index,
    read_networks,
    read_vae,
    t5_states,
)

T5_LENGTH = 256
"""Tokens that the T5 is given, the pipeline's default."""


@final
class StableDiffusion3(ModelFamily):
    """Two CLIP encoders, a T5 that may be left out, a joint-attention transformer, 16 latent channels."""

    name = "sd3"
    title = "Stable Diffusion 3 and 3.5"
    denoiser_name = "transformer"
    attention = JOINT_ATTENTION
    repeated_blocks = ("JointTransformerBlock",)
    t5_name = "text_encoder_3"
    trainable_text_encoders = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    why_no_new_words = (
        "its T5 (text_encoder_3) has no place for a new word, and diffusers' pipeline of this family reads "
        "no embeddings; use lora or dreambooth"
    )
    optional_components = ("text_encoder_3",)
    flow_matching = True

    def matches(self, model_index: dict[str, object]) -> bool:
        """True for `StableDiffusion3Pipeline` checkpoints."""
        return model_index.get("_class_name") == "StableDiffusion3Pipeline"

    def matches_single_file(self, keys: Collection[str]) -> bool:
        """False: single files of this family leave their text encoders and configurations out."""
        return False

    def load(self, source: Path, reading: Reading, *, without: Collection[str] = ()) -> Components:
        """Read the folders of a pipeline; safetensors only."""
        classes: dict[str, Any] = {
            "text_encoder": CLIPTextModelWithProjection,
            "text_encoder_2": CLIPTextModelWithProjection,
            "transformer": SD3Transformer2DModel,
        }
        tokenizers: dict[str, Any] = {"tokenizer": CLIPTokenizer, "tokenizer_2": CLIPTokenizer}
        index = read_model_index(source)
        if "text_encoder_3" not in without and (index.get("text_encoder_3") or [None])[0]:
            classes["text_encoder_3"] = T5EncoderModel
            tokenizers["tokenizer_3"] = T5TokenizerFast
        networks = read_networks(source, classes, reading, large=self.large_components)
        components = Components(
            tokenizers={n: kind.from_pretrained(source / n) for n, kind in tokenizers.items()},
            text_encoders={name: networks[name] for name in classes if name != "transformer"},
            vae=read_vae(source, reading),
            denoiser=networks["transformer"],
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(source / "scheduler"),
        )
        return frozen(components, self.denoiser_name)

    def load_single_file(
        self, path: Path, *, config: Path | None, dtype: torch.dtype
    ) -> Components:
        """Raises `ArtifactError`: see `matches_single_file`."""
        raise ArtifactError(f"{path}: single files of SD3 cannot be read. Give a diffusers folder.")

    def encode_prompts(self, components: Components, prompts: list[str]) -> Conditioning:
        """CLIP's penultimate states side by side and padded to the T5's width, then the T5's states.

        Both CLIP encoders give a pooled output. Without a T5 its states are zeros, as in diffusers.
        """
        # [B, 77, C]
        clip, outputs = penultimate_states(components, self.trainable_text_encoders, prompts)
        pooled = [output.text_embeds for output in outputs]
        width = components.denoiser.config.joint_attention_dim
        if "text_encoder_3" in components.text_encoders:
            t5 = t5_states(
                components.tokenizers["tokenizer_3"],
                components.text_encoders["text_encoder_3"],
                prompts,
                length=T5_LENGTH,
            )
        else:
            t5 = clip.new_zeros(len(prompts), T5_LENGTH, width)
        clip = F.pad(clip, (0, width - clip.shape[-1]))
        return Conditioning(
            {
                "prompt_embeds": torch.cat([clip, t5], 1),  # [B, 77 + 256, D]
                "pooled_prompt_embeds": torch.cat(pooled, -1),
            }
        )

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
        """One call of the transformer."""
        dtype = dtype_of(components.denoiser)
        output: Tensor = components.denoiser(
            hidden_states=noisy_latents.to(dtype),
            timestep=timesteps,
            encoder_hidden_states=conditioning.tensors["prompt_embeds"].to(dtype),
            pooled_projections=conditioning.tensors["pooled_prompt_embeds"].to(dtype),
            return_dict=False,
        )[0]
        return output

    def noise_process(self, components: Components) -> RectifiedFlow:
        """The scheduler's shifted sigmas, drawn with the paper's logit-normal density (§3.1)."""
        return RectifiedFlow(components.scheduler.sigmas, "logit_normal")

    def default_size(self, components: Components) -> int:
        """Latent side of the transformer's configuration times the autoencoder's factor."""
        return int(components.denoiser.config.sample_size * vae_factor(components.vae))

    def size_multiple(self, components: Components) -> int:
        """Pixels of a patch of latents."""
        return int(vae_factor(components.vae) * components.denoiser.config.patch_size)

    def pipeline(self, components: Components) -> DiffusionPipeline:
        """A pipeline over the given networks, with a scheduler of its own: sampling writes into it."""
        absent = {"text_encoder_3": None, "tokenizer_3": None}
        pipe = StableDiffusion3Pipeline(
            vae=components.vae,
            transformer=components.denoiser,
            scheduler=FlowMatchEulerDiscreteScheduler.from_config(components.scheduler.config),
            **{**absent, **components.text_encoders, **components.tokenizers},
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe
