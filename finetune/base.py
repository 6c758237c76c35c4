"""The frozen base: where its weights come from, in which precision they stand, who has touched them.

Policy, stated once: the base is frozen, in eval mode and in the compute dtype; what a method trains is
float32. Any method must leave the base bit-identical; `fingerprint` tells.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import StrictDataclassError
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
from finetune.families.base import (
    Components,
    Conditioning,
    ModelFamily,
    QuantizationName,
    Reading,
)
from finetune.families.parts import check_configurations, dtype_of
from finetune.families.single_files import shipped_configuration
from finetune.files import read_json

DTypeName = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


MAX_SIZE = 8192
"""Side in pixels of the largest pictures; more, in a base's or artifact's file, is a mistake or a trap."""
UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
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
    """Diffusers folder with the configurations of a single-file checkpoint. Those of Stable Diffusion 1.5,
    2.1 and XL are shipped; with null they are taken, and CLIP's tokenizer from the Hub or its cache."""
    dtype: DTypeName = "float32"
    """Precision of the frozen weights; what is trained stays in float32."""
    quantization: QuantizationName | None = None
    """Keep the frozen denoiser and T5 in 8 bits (Dettmers et al. 2022) or in 4 (`nf4`, Dettmers et al. 2023)
    per weight; `dtype` is then that of arithmetic and of what is not quantised. For LoRA and Textual
    Inversion, a diffusers folder and an NVIDIA GPU; needs the extra `quant`."""
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


_MAIN_MEMORY = torch.device("cpu")


@dataclass
class BasePipeline:
    """A frozen base in memory; one of them serves one method after another."""

    family: ModelFamily
    components: Components
    source: str
    fingerprint: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where it works; networks at rest are in main memory."""
    resting: set[str] = field(default_factory=set)
    """Names of the networks at rest."""
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
    def noise_process(self) -> NoiseProcess:
        """The forward process the base was trained with."""
        return self.family.noise_process(self.components)

    def to(self, device: torch.device | str, *, resting: Collection[str] = ()) -> BasePipeline:
        """Work on `device`, with the networks named in `resting` in main memory; returns itself."""
        self.device, self.resting = torch.device(device), set(resting)
        for name, module in self.modules.items():
            module.to(_MAIN_MEMORY if name in self.resting else self.device)
        return self

    def rest(self, names: Collection[str]) -> None:
        """Move networks to main memory until `awake` calls them back."""
        self.to(self.device, resting=self.resting.union(names))

    @contextlib.contextmanager
    def awake(self, names: Collection[str]) -> Iterator[None]:
        """Within the context those of the named networks that rest are where the base works."""
        called = [self.modules[name] for name in names if name in self.resting]
        try:
            for module in called:
                module.to(self.device)
            yield
        finally:
            for module in called:
                module.to(_MAIN_MEMORY)

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
        own = pixel_values.to(self.device, dtype_of(self.components.vae))
        with self.awake(("vae",)):
            moments = self.family.encode_images(self.components, own)
        return Moments(moments.mean.float().cpu(), moments.std.float().cpu())

    @torch.no_grad()
    def decode_latents(
        self, latents: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Pictures in [-1, 1] of scaled latents."""
        own = latents.to(self.device, dtype_of(self.components.vae))
        with self.awake(("vae",)):
            return self.family.decode_latents(self.components, own)

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """Conditioning of `prompts`; remembered per prompt while no text encoder is being trained."""
        encoders = self.components.text_encoders
        if not self.text_is_frozen:
            return self.family.encode_prompts(self.components, prompts)
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._prompt_memo]
        if missing:
            with torch.no_grad(), self.awake(encoders):
                encoded = self.family.encode_prompts(self.components, missing)
            if self.resting:  # then memory is short
                encoded = encoded.to(_MAIN_MEMORY)
            for row, prompt in enumerate(missing):
                tensors = {name: tensor[row : row + 1] for name, tensor in encoded.tensors.items()}
                self._prompt_memo[prompt] = Conditioning(tensors)
        return Conditioning.stack([self._prompt_memo[prompt] for prompt in prompts]).to(self.device)

    @property
    def text_is_frozen(self) -> bool:
        """Whether no parameter of a text encoder is being trained."""
        encoders = self.components.text_encoders.values()
        return not any(p.requires_grad for encoder in encoders for p in encoder.parameters())

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
        if dtype_of(self.components.vae) == torch.float32:
            del modules["vae"]  # stands in float32 by itself, and is called by itself
        parameters = (p for module in modules.values() for p in module.parameters())
        dtypes = {p.dtype for p in parameters if p.is_floating_point()}
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


def check_quantization(config: BaseConfig) -> None:
    """Raise `ConfigError` where `base.quantization` cannot be done."""
    if config.quantization is None:
        return
    problem = None
    if not torch.cuda.is_available():
        problem = "needs an NVIDIA GPU, which this machine does not have. Set it to null"
    elif importlib.util.find_spec("bitsandbytes") is None:
        problem = "needs bitsandbytes. Install it with pip install 'finetune-subject[quant]'"
    elif Path(config.source).is_file():
        problem = "needs a diffusers folder or a Hub id, not a single file. Set it to null"
    if problem is not None:
        raise ConfigError(f"base.quantization: {config.quantization} {problem}.")


def skeleton_of(config: BaseConfig) -> BasePipeline:
    """A base without weights, on the meta device, from its configurations alone.

    Of a Hub id those and the tokenizers are downloaded. Raises `ArtifactError` like `load_base`.
    """
    family = recognise_base(config)
    path = resolve_base(config.source, revision=config.revision, weights=False)
    given = config.single_file_config
    shipped = shipped_configuration(path) if path.is_file() and given is None else None
    with shipped or nullcontext(given if path.is_file() and given is not None else path) as folder:
        return _skeleton_from(folder, family, config)


def _check_parts(family: ModelFamily, components: Components) -> None:
    size = family.default_size(components)
    if not 8 <= size <= MAX_SIZE:
        raise ValueError(f"it says that it was trained at {size} pixels")
    given, taken = components.vae.config.latent_channels, components.denoiser.config.in_channels
    if family.packing is not None:
        given = family.packing.pack(torch.empty(1, given, 2, 2)).shape[-1]
    if given != taken:
        raise ValueError(
            f"its vae gives latents of {given} channels, its {family.denoiser_name} takes {taken}, so they "
            "do not belong together"
        )


def _skeleton_from(path: Path, family: ModelFamily, config: BaseConfig) -> BasePipeline:
    reading = Reading(DTYPES[config.dtype], config.quantization, weights=False)
    try:
        check_configurations(path)
        components = family.load(path, reading, without=config.drop_components)
        _check_parts(family, components)
    except UNREADABLE as error:
        raise ArtifactError(
            f"The configurations of {config.source} cannot be read: {error}"
        ) from error
    return BasePipeline(family, components, config.source, "", torch.device("meta"))


def load_base(config: BaseConfig) -> BasePipeline:
    """Read a base. Raises `ArtifactError` if it cannot be found, read or recognised."""
    check_quantization(config)
    family = recognise_base(config)
    path = resolve_base(config.source, revision=config.revision, without=config.drop_components)
    dtype = DTYPES[config.dtype]
    reading = Reading(dtype, config.quantization)
    try:
        if path.is_file():
            given = config.single_file_config
            if given is not None:
                # diffusers imports what stands in it.
                require_known_libraries(read_json(given / "model_index.json"), str(given))
                check_configurations(given)
            configuration = shipped_configuration(path) if given is None else nullcontext(given)
            with configuration as folder:
                components = family.load_single_file(path, config=folder, dtype=dtype)
        else:
            check_configurations(path)
            components = family.load(path, reading, without=config.drop_components)
        _check_parts(family, components)
    except UNREADABLE as error:
        raise ArtifactError(f"The base {config.source} cannot be read: {error}") from error
    base = BasePipeline(family, components, config.source, "")
    base.fingerprint = base.current_fingerprint()
    return base
