"""A real Stable Diffusion pipeline, tiny and randomly initialised, and photos to train it on."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


def tiny_text_config(tokenizer: Any, **settings: Any) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **settings,
    )


def tiny_vae(**settings: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        **{"latent_channels": 4, "scaling_factor": 0.5, **settings},
    )


def tiny_scheduler(prediction_type: str) -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction_type,
        clip_sample=False,
        steps_offset=1,
    )


def build_tiny_pipeline(folder: Path, *, prediction_type: str = "v_prediction") -> None:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    from data_prep.clay.world import all_words
    from finetune.pretrain.tokenizer import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer(all_words())
    pipe = StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(tiny_text_config(tokenizer)),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        scheduler=tiny_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)


def build_tiny_sdxl(folder: Path, *, prediction_type: str = "epsilon") -> None:
    """Two text encoders of 16 and 24 numbers, pooled to 12; the second has OpenCLIP's activation."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    from data_prep.clay.world import all_words
    from finetune.pretrain.tokenizer import build_tokenizer

    torch.manual_seed(1)
    tokenizer = build_tokenizer(all_words())
    second = tiny_text_config(tokenizer, projection_dim=12, hidden_act="gelu")
    second.hidden_size, second.intermediate_size = 24, 48
    pipe = StableDiffusionXLPipeline(
        vae=tiny_vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=CLIPTextModel(tiny_text_config(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=tokenizer,
        tokenizer_2=build_tokenizer(all_words()),
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=40,
            attention_head_dim=2,
            norm_num_groups=4,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=12 + 6 * 8,
        ),
        scheduler=tiny_scheduler(prediction_type),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)


def tiny_t5(width: int) -> tuple[Any, Any]:
    """A T5 encoder of one layer and its tokenizer, which spells words it does not know."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    from data_prep.clay.world import all_words

    words = sorted({f"▁{word}" for word in all_words() if word.isalpha()})
    letters = [c for c in "▁abcdefghijklmnopqrstuvwxyz<>,." if c not in words]
    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    vocabulary = [*special, *((w, -2.0) for w in words), *((c, -9.0) for c in letters)]
    tokenizer = T5TokenizerFast(vocab=vocabulary, extra_ids=0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    return T5EncoderModel(config), tokenizer


def build_tiny_sd3(folder: Path) -> None:
    """CLIP encoders of 16 and 24 numbers, both pooled to 12, a T5 of 48; the first block attends twice."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextModelWithProjection

    from data_prep.clay.world import all_words
    from finetune.pretrain.tokenizer import build_tokenizer

    torch.manual_seed(2)
    tokenizer = build_tokenizer(all_words())
    second = tiny_text_config(tokenizer, projection_dim=12, hidden_act="gelu")
    second.hidden_size, second.intermediate_size = 24, 48
    t5, t5_tokenizer = tiny_t5(48)
    pipe = StableDiffusion3Pipeline(
        vae=tiny_vae(
            latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609,
            use_quant_conv=False, use_post_quant_conv=False,
        ),
        text_encoder=CLIPTextModelWithProjection(tiny_text_config(tokenizer, projection_dim=12)),
        text_encoder_2=CLIPTextModelWithProjection(second),
        text_encoder_3=t5,
        tokenizer=tokenizer,
        tokenizer_2=build_tokenizer(all_words()),
        tokenizer_3=t5_tokenizer,
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=48,
            caption_projection_dim=16,
            pooled_projection_dim=24,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip
    pipe.save_pretrained(folder, safe_serialization=True)


def build_tiny_flux(folder: Path, *, guidance_embeds: bool = True) -> None:
    """A CLIP encoder of 16 numbers, a T5 of 32, one joint and one single block."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    from data_prep.clay.world import all_words
    from finetune.pretrain.tokenizer import build_tokenizer

    torch.manual_seed(3)
    tokenizer = build_tokenizer(all_words())
    t5, t5_tokenizer = tiny_t5(32)
    pipe = FluxPipeline(
        vae=tiny_vae(
            latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159,
            use_quant_conv=False, use_post_quant_conv=False,
        ),
        text_encoder=CLIPTextModel(tiny_text_config(tokenizer)),
        text_encoder_2=t5,
        tokenizer=tokenizer,
        tokenizer_2=t5_tokenizer,
        transformer=FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=guidance_embeds
        ),
    )  # fmt: skip
    pipe.save_pretrained(folder, safe_serialization=True)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "base"
    build_tiny_pipeline(folder)
    return folder


FAMILY_BUILDERS: dict[str, Callable[..., None]] = {
    "sdxl": build_tiny_sdxl,
    "sd3": build_tiny_sd3,
    "flux": build_tiny_flux,
}
"""Family beside `sd` -> builds a tiny pipeline of its real classes."""


@pytest.fixture
def build_family() -> Callable[..., None]:
    """Builds a tiny pipeline of a family with settings of its own."""

    def build(name: str, folder: Path, **settings: Any) -> None:
        FAMILY_BUILDERS[name](folder, **settings)

    return build


@pytest.fixture(scope="session")
def family_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny pipeline, built when first asked for."""
    root = tmp_path_factory.mktemp("families")

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            FAMILY_BUILDERS[name](root / name)
        return root / name

    return folder


@pytest.fixture
def tiny_base(tiny_folder: Path) -> Any:
    from finetune.base import BaseConfig, load_base

    return load_base(BaseConfig(source=str(tiny_folder)))


@pytest.fixture(scope="session")
def photos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures that differ: smooth colours, 20 × 20, one of them wider."""
    folder = tmp_path_factory.mktemp("photos")
    for index, size in enumerate(((20, 20), (20, 20), (30, 20))):
        ramp = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3)
        pixels = np.roll(ramp, 37 * index).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def files_up_to() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """A context in which no file of this process can grow beyond some bytes, as on a full disk."""
    import resource

    @contextlib.contextmanager
    def limited(num_bytes: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    return limited


RunValues = Callable[..., dict[str, Any]]


@pytest.fixture
def run_values(tiny_folder: Path, photos_folder: Path, tmp_path: Path) -> RunValues:
    """Values of a small run of a method: `run_values("lora", training={"num_steps": 3})`."""

    def values(kind: str, **sections: Any) -> dict[str, Any]:
        from finetune.config import merge

        method: dict[str, Any] = {"kind": kind, "learning_rate": 1e-3}
        if kind == "textual_inversion":
            method["num_vectors"] = 2
        base = {
            "base": {"source": str(tiny_folder)},
            "data": {
                "photos": str(photos_folder),
                "class_noun": "dog",
                "size": 16,
                "flip_probability": 0.5,
                "crop": "random",
            },
            "method": method,
            "prior": {
                "kind": "none" if kind == "textual_inversion" else "class_images",
                "num_images": 3,
                "num_steps": 2,
            },
            "training": {"num_steps": 3, "batch_size": 2},
            "sampling": {"num_steps": 2},
            "output": str(tmp_path / f"run-{kind}"),
        }
        return merge(base, sections)

    return values


@pytest.fixture(scope="session")
def load_script() -> Callable[[Path], ModuleType]:
    """Imports a script that is in no package, for instance a benchmark."""

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # for dataclasses
        spec.loader.exec_module(module)
        return module

    return load
