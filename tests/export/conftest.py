"""Artifacts with something learnt in them, made without training, and a plain diffusers pipeline beside."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch


@dataclass
class Made:
    """An artifact and what it makes."""

    folder: Path
    prompt: str
    latents: torch.Tensor
    updates: dict[str, torch.Tensor]
    """"component.module" -> change of the weight, for a LoRA; by PEFT itself."""


def spread(method: Any, base: Any, *, scale: float = 0.05) -> None:
    """Move everything that is trained by fixed noise."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in sorted(base.trainable_parameters().items()):
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    base.forget_prompts()


def latents_of(base: Any, prompt: str, size: int) -> torch.Tensor:
    from finetune.generate import SamplingConfig, generate_latents

    sampling = SamplingConfig(num_steps=3, size=size, guidance_scale=2.0, scheduler="ddim")
    return generate_latents(base, [prompt], [5], sampling)


def merged_change(layer: Any) -> torch.Tensor:
    """What PEFT adds to a layer's weight when it merges the adapter."""
    layer = copy.deepcopy(layer)
    before = layer.get_base_layer().weight.detach().clone()
    layer.merge()
    return layer.get_base_layer().weight.detach() - before


@pytest.fixture
def make_artifact(run_values: Any, tmp_path: Path) -> Callable[..., Made]:
    def make(base: Any, kind: str, **settings: Any) -> Made:
        from peft.tuners.lora import LoraLayer

        from finetune.artifact import save_artifact
        from finetune.config import build_run_config
        from methods import load_method

        size = base.family.default_size(base.components)
        method_settings = {"learning_rate": 1e-3, **settings}
        values = run_values(kind, base={"source": base.source}, data={"size": size})
        values["method"] = {"kind": kind, **method_settings}
        config = build_run_config(values, load_method, "test")
        method = load_method(kind)(config.method)
        prompt = f"a photo of a {method.subject_phrase('dog')} on the beach"
        torch.manual_seed(0)
        method.prepare(base)
        spread(method, base)
        folder = tmp_path / "run" / "artifact"
        save_artifact(base, method, config, folder)
        updates = {
            f"{component}.{name}": merged_change(layer)
            for component, network in base.modules.items()
            for name, layer in network.named_modules()
            if isinstance(layer, LoraLayer)
        }
        latents = latents_of(base, prompt, size)
        method.detach(base)
        assert base.current_fingerprint() == base.fingerprint
        return Made(folder, prompt, latents, updates)

    return make


@pytest.fixture
def outside() -> Callable[..., torch.Tensor]:
    """What a plain diffusers pipeline makes of the prompt, from the same noise."""

    def latents(pipe: Any, prompt: str) -> torch.Tensor:
        from diffusers import DDIMScheduler

        from finetune.seeding import generator_for

        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        side = pipe.unet.config.sample_size
        shape = (pipe.unet.config.in_channels, side, side)
        noise = torch.randn(shape, generator=generator_for(5, "picture"))[None]
        return pipe(
            prompt, num_inference_steps=3, guidance_scale=2.0, latents=noise, output_type="latent"
        ).images  # fmt: skip

    return latents


@pytest.fixture
def through_import() -> Callable[..., torch.Tensor]:
    """What our own reader makes of a foreign file on a base that it leaves as it was."""

    def latents(base: Any, path: Path, prompt: str, **options: Any) -> torch.Tensor:
        from finetune.export.imported import attached, open_source
        from methods import load_method

        with attached(open_source(path, **options), base, load_method) as note:
            made = latents_of(base, prompt, note.size)
        assert base.current_fingerprint() == base.fingerprint
        return made

    return latents


def build_sd_pipeline(folder: Path, tiny_folder: Path, *, version: int) -> None:
    """Stable Diffusion's blocks, 4 levels of 2 layers, at a hundredth of the width."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(version)
    tiny = StableDiffusionPipeline.from_pretrained(tiny_folder)
    text = tiny.text_encoder.config.to_dict()
    text["hidden_act"] = "gelu" if version == 2 else "quick_gelu"
    attention = "CrossAttnDownBlock2D"
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(4, 4, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=2,
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
        tokenizer=tiny.tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(4, 8, 8, 8),
            layers_per_block=2,
            down_block_types=(attention, attention, attention, "DownBlock2D"),
            up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=2,
            use_linear_projection=version == 2,
        ),
        scheduler=tiny.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)


@pytest.fixture(scope="session", params=[1, 2])
def sd_folder(
    request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A pipeline of the structure of Stable Diffusion 1.x or 2.x."""
    folder = tmp_path_factory.mktemp("sd") / f"sd{request.param}"
    build_sd_pipeline(folder, tiny_folder, version=request.param)
    return folder


@pytest.fixture
def sd_base(sd_folder: Path) -> Any:
    from finetune.base import BaseConfig, load_base

    return load_base(BaseConfig(source=str(sd_folder)))
