"""SDXL's artifacts in the files of other tools and back: two text encoders, their names and roots."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.base import BaseConfig, load_base
from finetune.errors import ArtifactError
from finetune.export import export_artifact
from finetune.export.imported import bases_of, fit, open_source
from finetune.export.original_names import unet_name, unet_parts
from finetune.export.reading import read_safetensors

TEXT = {"train_text_encoder": True}


@pytest.fixture
def base(family_folders: Any) -> Any:
    return load_base(BaseConfig(source=str(family_folders("sdxl"))))


@pytest.fixture
def plain(family_folders: Any) -> Any:
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline.from_pretrained(family_folders("sdxl"))


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 4, "alpha": 10.0, **TEXT},
        {"rank": 9, "alpha": 6.0, "use_rslora": True, "rank_pattern": {"attn2.to_k": 4}, **TEXT},
    ],
    ids=["alpha is not rank", "rsLoRA with rank pattern"],
)
def test_kohya_round_trip_gives_the_same_pictures_in_diffusers_and_here(
    base: Any, plain: Any, make_artifact: Any, outside: Any, through_import: Any,
    tmp_path: Path, settings: dict[str, Any],
) -> None:  # fmt: skip
    made = make_artifact(base, "lora", **settings)
    path = export_artifact(made.folder, "kohya", tmp_path / "dog.safetensors").path
    state, header = read_safetensors(path)
    assert {"_".join(key.split("_")[:2]) for key in state} == {"lora_unet", "lora_te1", "lora_te2"}
    assert "lora_te2_text_model_encoder_layers_1_self_attn_q_proj.alpha" in state
    assert header["ss_base_model_version"] == "sdxl_base_v1-0"
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    frozen = outside(plain, made.prompt)
    plain.load_lora_weights(path)
    assert (frozen - made.latents).abs().max() > 0.02
    torch.testing.assert_close(outside(plain, made.prompt), made.latents, atol=1e-5, rtol=0)
    here = through_import(base, path, made.prompt)
    torch.testing.assert_close(here, made.latents, atol=1e-5, rtol=0)


def test_files_with_the_original_names_of_blocks_are_read_too(
    base: Any, make_artifact: Any, through_import: Any, tmp_path: Path
) -> None:
    """sd-scripts trains SDXL's U-Net in its original layout: `lora_unet_input_blocks_4_1_…`."""
    made = make_artifact(base, "lora", rank=4)
    state = load_file(export_artifact(made.folder, "kohya", tmp_path / "dog.safetensors").path)
    parts = unet_parts(base.denoiser.config)
    names = {
        f"lora_unet_{name.replace('.', '_')}": unet_name(name, parts)
        for name, _ in base.denoiser.named_modules()
    }
    original = {}
    for key, tensor in state.items():
        module, _, side = key.partition(".")
        original[f"lora_unet_{str(names[module]).replace('.', '_')}.{side}"] = tensor
    assert any(key.startswith("lora_unet_input_blocks_") for key in original)
    save_file(original, tmp_path / "theirs.safetensors")
    here = through_import(base, tmp_path / "theirs.safetensors", made.prompt)
    torch.testing.assert_close(here, made.latents, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_embedding_round_trip_gives_the_same_pictures_in_diffusers_and_here(
    base: Any, plain: Any, make_artifact: Any, outside: Any, through_import: Any,
    tmp_path: Path, num_vectors: int,
) -> None:  # fmt: skip
    made = make_artifact(
        base, "textual_inversion", num_vectors=num_vectors, initializer_token="dog"
    )
    path = export_artifact(made.folder, "a1111", tmp_path / "my-dog.safetensors").path
    state, header = read_safetensors(path)
    assert {key: tensor.shape for key, tensor in state.items()} == {
        "clip_l": (num_vectors, 16),
        "clip_g": (num_vectors, 24),
    }
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/textual-inversion"
    prompt = made.prompt.replace("<subject>", "my-dog")
    frozen = outside(plain, prompt)
    for key, encoder, tokenizer in (
        ("clip_l", plain.text_encoder, plain.tokenizer),
        ("clip_g", plain.text_encoder_2, plain.tokenizer_2),
    ):
        plain.load_textual_inversion(
            state[key], token="my-dog", text_encoder=encoder, tokenizer=tokenizer
        )
    assert (frozen - made.latents).abs().max() > 0.01
    torch.testing.assert_close(outside(plain, prompt), made.latents, atol=1e-5, rtol=0)
    here = through_import(base, path, prompt)
    torch.testing.assert_close(here, made.latents, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"emb_params": (1, 16)}, "emb_params given, clip_g, clip_l expected"),
        ({"clip_g": (1, 24)}, "clip_g given, clip_g, clip_l expected"),
        ({"clip_l": (1, 16), "clip_g": (2, 24)}, "different numbers of rows"),
        ({"clip_l": (1, 768), "clip_g": (1, 1280)}, "768 numbers; the text encoder"),
        ({"clip_l": (1, 1, 16), "clip_g": (1, 24)}, "one row or several"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(
    base: Any, tmp_path: Path, content: dict[str, tuple[int, ...]], message: str
) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({key: torch.ones(shape) for key, shape in content.items()}, path)
    with pytest.raises(ArtifactError, match=message):
        fit(open_source(path), base)


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value
        for name in ("unet", "vae", "text_encoder", "text_encoder_2")
        for key, value in getattr(pipe, name).state_dict().items()
    }


def test_single_file_comes_back_bit_for_bit_in_diffusers_and_here(
    base: Any, make_artifact: Any, outside: Any, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionXLPipeline

    made = make_artifact(base, "dreambooth", **TEXT)
    done = export_artifact(made.folder, "single-file", tmp_path / "dog.safetensors")
    assert done.remarks == []  # SDXL's own scaling factor and epsilon need no telling
    state, header = read_safetensors(done.path)
    roots = {re.match(r"model\.diffusion_model|first_stage_model|conditioner\.embedders\.\d", key)[0]
             for key in state}  # fmt: skip
    assert roots == {
        "model.diffusion_model",
        "first_stage_model",
        "conditioner.embedders.0",
        "conditioner.embedders.1",
    }
    assert "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias" in state
    assert "conditioner.embedders.1.model.text_projection" in state
    assert "model.diffusion_model.label_emb.0.0.weight" in state
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    pipe = StableDiffusionXLPipeline.from_single_file(
        str(done.path), config=str(made.folder), local_files_only=True, add_watermarker=False
    )
    there, before = weights(pipe), weights(StableDiffusionXLPipeline.from_pretrained(made.folder))
    assert there.keys() == before.keys()
    for key, value in before.items():
        assert torch.equal(there[key], value), key
    torch.testing.assert_close(outside(pipe, made.prompt), made.latents, atol=1e-5, rtol=0)
    (config,) = bases_of([open_source(done.path)], base.source)
    ours = load_base(config)
    assert ours.family.name == "sdxl"
    for component, module in ours.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, before[f"{component}.{key}"])
    half = load_base(config.model_copy(update={"dtype": "bfloat16"}))
    assert torch.equal(
        next(half.components.vae.parameters()), next(ours.components.vae.parameters())
    )


def published(family: str) -> dict[str, Any]:
    """Networks of the published sizes, without weights."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from finetune.families.parts import PUBLISHED

    folder = PUBLISHED / family
    with torch.device("meta"):
        config = UNet2DConditionModel.load_config(folder / "unet")
        return {
            "unet": UNet2DConditionModel.from_config(config),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder")),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig.from_pretrained(folder / "text_encoder_2")
            ),
        }


def test_names_are_those_that_readers_of_the_published_model_look_for() -> None:
    """ComfyUI (`comfy/lora.py`, `model_lora_keys_clip` and `_unet`): `lora_te1_` and `lora_te2_` with
    `text_model_encoder_layers_`, and diffusers' names of the U-Net under `lora_unet_`. A1111
    (`extensions-builtin/Lora/networks.py`) turns the same names into those of the original layout by rules
    that are written down here.
    """
    from finetune.export.kohya import kohya_name
    from finetune.families import family_named

    networks = published("sdxl")
    family = family_named("sdxl")
    assert family.foreign_names is not None
    ours = {
        kohya_name(family.foreign_names, component, name.removeprefix("text_model."))
        for component, network in networks.items()
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear)
        and any(name.endswith(f".{target}") for target in family.adapter_targets(component))
    }
    expected = {
        f"lora_te{number}_text_model_encoder_layers_{layer}_self_attn_{part}"
        for number, layers in ((1, 12), (2, 32))
        for layer in range(layers)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj")
    }
    blocks = [
        (f"down_blocks_{level}_attentions_{i}", depth)
        for level, depth in ((1, 2), (2, 10))
        for i in (0, 1)
    ]
    blocks += [("mid_block_attentions_0", 10)]
    blocks += [
        (f"up_blocks_{level}_attentions_{i}", depth)
        for level, depth in ((0, 10), (1, 2))
        for i in (0, 1, 2)
    ]
    expected |= {
        f"lora_unet_{block}_transformer_blocks_{layer}_{attention}_{part}"
        for block, depth in blocks
        for layer in range(depth)
        for attention in ("attn1", "attn2")
        for part in ("to_q", "to_k", "to_v", "to_out_0")
    }
    assert len(expected) == 4 * 12 + 4 * 32 + 8 * 70
    assert ours == expected

    # A1111: input block 3 · level + 1 + i, output block 3 · level + i, middle block 1.
    parts = unet_parts(networks["unet"].config)
    original = {
        str(unet_name(name, parts)).replace(".", "_")
        for name, _ in networks["unet"].named_modules()
    }
    for name in (name for name in ours if name.startswith("lora_unet_")):
        down = re.match(r"lora_unet_down_blocks_(\d)_attentions_(\d)_(.*)", name)
        up = re.match(r"lora_unet_up_blocks_(\d)_attentions_(\d)_(.*)", name)
        middle = re.match(r"lora_unet_mid_block_attentions_0_(.*)", name)
        if down:
            theirs = f"input_blocks_{3 * int(down[1]) + 1 + int(down[2])}_1_{down[3]}"
        elif up:
            theirs = f"output_blocks_{3 * int(up[1]) + int(up[2])}_1_{up[3]}"
        else:
            assert middle
            theirs = f"middle_block_1_{middle[1]}"
        assert theirs in original, name
