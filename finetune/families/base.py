"""What the loop needs to know about a model family, and nothing about training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from jaxtyping import Float, Real
from torch import Tensor, nn

from data_prep.batch import Batch, Moments
from finetune.diffusion import NoiseProcess


@dataclass
class Components:
    """The parts of a base. Names are those of the diffusers pipeline ("text_encoder", "unet", …)."""

    tokenizers: dict[str, Any]
    text_encoders: dict[str, nn.Module]
    vae: Any
    denoiser: Any
    scheduler: Any
    pipeline_settings: dict[str, Any] = field(default_factory=dict)
    """What the pipeline is told beside its parts."""

    def modules(self, denoiser_name: str) -> dict[str, nn.Module]:
        """All networks by pipeline name."""
        return {**self.text_encoders, "vae": self.vae, denoiser_name: self.denoiser}


CLIP_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


def vae_factor(vae: AutoencoderKL) -> int:
    """Pixels per latent in both directions, 2^(levels - 1)."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


@dataclass(frozen=True)
class Packing:
    """Another form of latents [B, C, h, w], and the way back, which is told h and w."""

    pack: Callable[[Tensor], Tensor]
    unpack: Callable[[Tensor, int, int], Tensor]


QuantizationName = Literal["int8", "nf4"]


@dataclass(frozen=True)
class Reading:
    """How the networks of a base are read."""

    dtype: torch.dtype
    quantization: QuantizationName | None = None
    """What the denoiser's and the T5's weights are rounded to, by bitsandbytes."""
    weights: bool = True
    """False makes networks of the right shapes on the meta device, from their configurations alone."""


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told about the prompts; only the family opens it."""

    tensors: dict[str, Tensor]
    """Name -> tensor, first dimension the prompts."""

    @staticmethod
    def stack(parts: list[Conditioning]) -> Conditioning:
        """Conditionings of single prompts (first dimension 1) as one batch."""
        return Conditioning(
            {name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors}
        )

    def to(self, device: torch.device) -> Conditioning:
        """The same, on `device`."""
        return Conditioning({name: tensor.to(device) for name, tensor in self.tensors.items()})


@dataclass(frozen=True)
class ModelVersion:
    """What the headers of other tools call a version of a family."""

    title: str
    kohya: str
    """Value of `ss_base_model_version`."""
    architecture: dict[str, str]
    """Prediction type -> `modelspec.architecture`."""


@dataclass(frozen=True)
class ForeignNames:
    """What other tools call the parts of a family's pipelines; all that export and import need to know."""

    kohya_prefixes: dict[str, tuple[str, ...]]
    """Component -> first part of its names in a kohya LoRA; the first is written, all are read."""
    embedding_keys: dict[str, str]
    """Text encoder -> its key in an A1111 embedding file."""
    single_file_roots: dict[str, str]
    """Component -> root of its keys in a single-file checkpoint; of a text encoder in CLIP's layout."""
    open_clip_roots: dict[str, str]
    """Text encoder -> root of its keys in a single-file checkpoint in OpenCLIP's layout."""
    versions: dict[int, ModelVersion]
    """Width of the prompt embeddings -> version, for headers and messages."""
    default_version: ModelVersion
    """The version that other tools take a base of another width for."""
    vae_scaling_factor: float = 0.18215
    """The scaling factor that other tools assume for its autoencoder."""

    def row_keys(self, token: str) -> dict[str, str]:
        """Text encoder -> key of a new word's rows in `learned_embeds.safetensors`.

        The word itself, as diffusers has it; where several encoders learn it, the keys of A1111 files.
        """
        if len(self.embedding_keys) > 1:
            return self.embedding_keys
        return dict.fromkeys(self.embedding_keys, token)


class ModelFamily(ABC):
    """One family of text-to-image models; subclasses are final and hold no state."""

    name: str
    title: str
    """What its bases are called."""
    denoiser_name: str
    """Pipeline name of the denoiser: "unet" or "transformer"."""
    trainable_text_encoders: dict[str, str]
    """Text encoder that methods may train -> its tokenizer."""
    why_no_new_words: str | None = None
    """Why no new word can be taught to its text encoders; None where it can."""
    t5_name: str | None = None
    """Pipeline name of its T5, where it has one."""
    optional_components: tuple[str, ...] = ()
    """Networks that a base may lack, or that may be left out."""
    attention: tuple[str, ...]
    """Projections of the denoiser's attention."""
    packing: Packing | None = None
    """How its pipeline holds latents; None where as they are."""
    repeated_blocks: tuple[str, ...]
    """Classes of the denoiser's blocks that regional compilation compiles, once for all of a kind."""
    takes_negative_prompts: bool = True
    """Whether its pipeline is guided away from a prompt."""
    flow_matching: bool = False
    """Whether its noise process is rectified flow, sampled by steps of its own scheduler."""
    foreign_names: ForeignNames | None = None
    """None where artifacts can be neither exported nor imported."""

    def component_names(self, roles: Collection[str]) -> tuple[str, ...]:
        """Pipeline names of networks given by role ("denoiser", "text_encoders") or by name."""
        names: list[str] = []
        for role in roles:
            if role == "text_encoders":
                names += self.trainable_text_encoders
            else:
                names.append(self.denoiser_name if role == "denoiser" else role)
        return tuple(names)

    @property
    def large_components(self) -> tuple[str, ...]:
        """Those that `base.quantization` rounds: the denoiser and the T5; the others are small."""
        return tuple(filter(None, (self.denoiser_name, self.t5_name)))

    @abstractmethod
    def matches(self, model_index: dict[str, object]) -> bool:
        """Whether a checkpoint with this model_index.json belongs to the family."""

    @abstractmethod
    def matches_single_file(self, keys: Collection[str]) -> bool:
        """Whether a single-file checkpoint with these tensor names belongs to the family."""

    @abstractmethod
    def load(self, source: Path, reading: Reading, *, without: Collection[str] = ()) -> Components:
        """Read a diffusers folder; networks are frozen and in eval mode.

        Of `optional_components`, those in `without` and those that the folder lacks are left out.
        """

    @abstractmethod
    def load_single_file(
        self, path: Path, *, config: Path | None, dtype: torch.dtype
    ) -> Components:
        """Read a single-file checkpoint; `config` is a diffusers folder with its configurations."""

    def encode_images(
        self, components: Components, pixel_values: Float[Tensor, "batch 3 height width"]
    ) -> Moments:
        """Scaled latent moments of pictures in [-1, 1].

        The autoencoder's posterior, minus its shift factor if it has one, times its scaling factor.
        """
        posterior = components.vae.encode(pixel_values).latent_dist
        factor, shift = components.vae.config.scaling_factor, components.vae.config.shift_factor
        mean = posterior.mean if shift is None else posterior.mean - shift
        return Moments(mean * factor, posterior.std * factor)

    def decode_latents(
        self, components: Components, latents: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Pictures in [-1, 1] of scaled latents: the inverse of `encode_images`."""
        factor, shift = components.vae.config.scaling_factor, components.vae.config.shift_factor
        unscaled = latents / factor
        pixel_values: Tensor = components.vae.decode(
            unscaled if shift is None else unscaled + shift
        ).sample
        return pixel_values

    @abstractmethod
    def encode_prompts(self, components: Components, prompts: list[str]) -> Conditioning:
        """What the denoiser is told about `prompts`, in order."""

    @abstractmethod
    def denoise(
        self,
        components: Components,
        noisy_latents: Float[Tensor, "batch channels height width"],
        timesteps: Real[Tensor, " batch"],
        conditioning: Conditioning,
        batch: Batch,
        *,
        guidance_scale: float = 1.0,
    ) -> Float[Tensor, "batch channels height width"]:
        """The denoiser's native output (epsilon, v or flow).

        `guidance_scale` is what a guidance-distilled denoiser is told; others are not.
        """

    def sample(
        self,
        pipe: DiffusionPipeline,
        noise: Float[Tensor, "batch channels height width"],
        *,
        prompts: Sequence[str],
        negative_prompt: str,
        size: int,
        num_steps: int,
        guidance_scale: float,
        generators: Sequence[torch.Generator],
    ) -> Float[Tensor, "batch channels height width"]:
        """Scaled latents of `size` × `size` pictures that `pipe` makes of `noise`, one per prompt.

        Without a negative prompt the pipeline takes the base's own unconditional answer.
        """
        guidance: dict[str, Any] = {"guidance_scale": guidance_scale}
        if self.takes_negative_prompts:
            negative = [negative_prompt] * len(prompts) if negative_prompt else None
            guidance["negative_prompt"] = negative
        latents: Tensor = pipe(
            prompt=list(prompts),
            num_inference_steps=num_steps,
            height=size,
            width=size,
            latents=noise if self.packing is None else self.packing.pack(noise),
            generator=list(generators),
            output_type="latent",
            **guidance,
        ).images
        if self.packing is None:
            return latents
        return self.packing.unpack(latents, *noise.shape[2:])

    @abstractmethod
    def noise_process(self, components: Components) -> NoiseProcess:
        """The forward process, read from the scheduler's configuration."""

    def latent_shape(self, components: Components, size: int) -> tuple[int, int, int]:
        """Channels, height and width of the latents of a `size` × `size` picture."""
        side = size // vae_factor(components.vae)
        return components.vae.config.latent_channels, side, side

    @abstractmethod
    def default_size(self, components: Components) -> int:
        """The side in pixels the base was trained at."""

    @abstractmethod
    def size_multiple(self, components: Components) -> int:
        """What a picture's side in pixels has to be a multiple of."""

    def adapter_targets(self, component: str) -> list[str]:
        """Default LoRA target modules of a component: the attention's projections."""
        return list(self.attention if component == self.denoiser_name else CLIP_ATTENTION)

    @abstractmethod
    def pipeline(self, components: Components) -> DiffusionPipeline:
        """A diffusers pipeline over the same networks, for generation."""
