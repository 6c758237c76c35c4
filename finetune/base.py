"""The frozen base: where its weights come from, in which precision they stand, who has touched them.

Policy, stated once: the base is frozen, in eval mode and in the compute dtype; what a method trains is
float32. Any method must leave the base bit-identical; `fingerprint` tells.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Real
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from data_prep.batch import Batch, Moments
from data_prep.config import Section
from finetune.bases import resolve_base
from finetune.diffusion import NoiseProcess
from finetune.errors import ArtifactError, ConfigError
from finetune.families import find_family, find_single_file_family, require_known_libraries
from finetune.families.base import Components, Conditioning, ModelFamily
from finetune.families.parts import check_configurations
from finetune.files import read_json

DTypeName = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


MAX_SIZE = 8192
"""Side in pixels of the largest pictures; more, in a base's or artifact's file, is a mistake or a trap."""
_UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)
"""What diffusers and transformers raise for files that make no sense."""


class BaseConfig(Section):
    """Which base is personalised."""

    source: str = Field("clay", min_length=1)
    """`clay` (the embedded base), a Hub id such as `stable-diffusion-v1-5/stable-diffusion-v1-5`, a
    local diffusers folder, or a single `.safetensors` file."""
    revision: str | None = None
    """Commit, tag or branch of a Hub id; pin a commit for runs that can be repeated."""
    single_file_config: Path | None = None
    """Diffusers folder with the configurations of a single-file checkpoint, for offline use."""
    dtype: DTypeName = "float32"
    """Precision of the frozen weights; what is trained stays in float32."""
    drop_components: tuple[str, ...] = ()
    """Networks to leave out where a family can do without: `text_encoder_3` (the T5) of SD3, 9 GB in
    bfloat16. diffusers loads a DreamBooth folder of such a base when told `text_encoder_3=None,
    tokenizer_3=None`."""


def state_fingerprint(modules: dict[str, nn.Module]) -> str:
    """BLAKE2b over names, dtypes, shapes and bytes of every parameter and buffer; 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    for component, module in sorted(modules.items()):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{component}.{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass
class BasePipeline:
    """A frozen base in memory; one of them serves one method after another."""

    family: ModelFamily
    components: Components
    source: str
    fingerprint: str
    _prompt_memo: dict[str, Conditioning] = field(default_factory=dict)

    @property
    def denoiser(self) -> nn.Module:
        """The U-Net or transformer."""
        return self.components.denoiser

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All networks by pipeline name."""
        return self.components.modules(self.family.denoiser_name)

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.denoiser.parameters()).device

    @property
    def noise_process(self) -> NoiseProcess:
        """The forward process the base was trained with."""
        return self.family.noise_process(self.components)

    def to(self, device: torch.device | str) -> BasePipeline:
        """Move every network; returns the same object."""
        for module in self.modules.values():
            module.to(device)
        self._prompt_memo.clear()
        return self

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter that requires a gradient, by "component.name"."""
        return {
            f"{component}.{name}": parameter
            for component, module in self.modules.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def encode_images(self, pixel_values: Float[Tensor, "batch 3 height width"]) -> Moments:
        """Scaled latent moments, on the CPU, in float32."""
        vae = self.components.vae
        reference = next(vae.parameters())
        moments = self.family.encode_images(self.components, pixel_values.to(reference))
        return Moments(moments.mean.float().cpu(), moments.std.float().cpu())

    @torch.no_grad()
    def decode_latents(
        self, latents: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Pictures in [-1, 1] of scaled latents."""
        return self.family.decode_latents(
            self.components, latents.to(next(self.components.vae.parameters()))
        )

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """Conditioning of `prompts`; remembered per prompt while no text encoder is being trained."""
        encoders = self.components.text_encoders.values()
        if any(p.requires_grad for encoder in encoders for p in encoder.parameters()):
            return self.family.encode_prompts(self.components, prompts)
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._prompt_memo]
        if missing:
            with torch.no_grad():
                encoded = self.family.encode_prompts(self.components, missing)
            for row, prompt in enumerate(missing):
                tensors = {name: tensor[row : row + 1] for name, tensor in encoded.tensors.items()}
                self._prompt_memo[prompt] = Conditioning(tensors)
        return Conditioning.stack([self._prompt_memo[prompt] for prompt in prompts])

    def forget_prompts(self) -> None:
        """Drop remembered conditionings; to be called whenever the text side has changed."""
        self._prompt_memo.clear()

    def denoise(
        self,
        noisy_latents: Float[Tensor, "batch channels height width"],
        timesteps: Real[Tensor, " batch"],
        conditioning: Conditioning,
        batch: Batch,
        *,
        guidance_scale: float = 1.0,
    ) -> Float[Tensor, "batch channels height width"]:
        """The denoiser's native output."""
        return self.family.denoise(
            self.components,
            noisy_latents,
            timesteps,
            conditioning,
            batch,
            guidance_scale=guidance_scale,
        )

    def mixed_precision(self) -> torch.autocast:
        """Bridges float32 parts and a half-precision base; off where all weights share a dtype."""
        modules = dict(self.modules)
        if next(self.components.vae.parameters()).dtype == torch.float32:
            del modules["vae"]  # stands in float32 by itself, and is called by itself
        dtypes = {p.dtype for module in modules.values() for p in module.parameters()}
        low = min(dtypes, key=lambda dtype: dtype.itemsize)
        return torch.autocast(self.device.type, low, enabled=len(dtypes) > 1, cache_enabled=False)

    def pipeline(self) -> DiffusionPipeline:
        """A diffusers pipeline over the same networks."""
        return self.family.pipeline(self.components)

    def current_fingerprint(self) -> str:
        """The fingerprint of the weights as they are now."""
        return state_fingerprint(self.modules)


def recognise_base(config: BaseConfig) -> ModelFamily:
    """The family of a base, before any weight is read or downloaded.

    Raises `ArtifactError` if the base cannot be found or recognised, `ConfigError` if it cannot do
    without what `drop_components` names.
    """
    path = resolve_base(config.source, revision=config.revision, only_index=True)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ArtifactError(
                f"{path} is no .safetensors file; files of other kinds can run code when they are read. "
                "Convert it, or give a diffusers folder."
            )
        try:
            with safe_open(path, "pt") as content:
                family = find_single_file_family(list(content.keys()), config.source)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"The base {config.source} cannot be read: {error}") from error
    else:
        try:
            model_index = read_json(path / "model_index.json")
            if not isinstance(model_index, dict):
                raise ValueError("it holds no table")
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{path} has no readable model_index.json, so it is no diffusers pipeline: {error}. "
                "Give a diffusers folder, a Hub id or a single .safetensors file as base.source."
            ) from error
        family = find_family(model_index, config.source)
    for name in config.drop_components:
        if name not in family.optional_components:
            can = ", ".join(family.optional_components) or "none of its networks"
            raise ConfigError(
                f"base.drop_components: {name} cannot be left out; {config.source} is of the family "
                f"{family.name}, which can do without {can}."
            )
    return family


def load_base(config: BaseConfig) -> BasePipeline:
    """Read a base. Raises `ArtifactError` if it cannot be found, read or recognised."""
    family = recognise_base(config)
    path = resolve_base(config.source, revision=config.revision, without=config.drop_components)
    dtype = DTYPES[config.dtype]
    try:
        if path.is_file():
            if config.single_file_config is not None:
                # diffusers imports what stands in it.
                index = read_json(config.single_file_config / "model_index.json")
                require_known_libraries(index, str(config.single_file_config))
                check_configurations(config.single_file_config)
            components = family.load_single_file(
                path, config=config.single_file_config, dtype=dtype
            )
        else:
            check_configurations(path)
            components = family.load(path, dtype=dtype, without=config.drop_components)
        size = family.default_size(components)
        if not 8 <= size <= MAX_SIZE:
            raise ValueError(f"it says that it was trained at {size} pixels")
    except _UNREADABLE as error:
        raise ArtifactError(f"The base {config.source} cannot be read: {error}") from error
    base = BasePipeline(family, components, config.source, "")
    base.fingerprint = base.current_fingerprint()
    return base
