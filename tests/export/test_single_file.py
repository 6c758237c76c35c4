"""Whole models in the original layout: every weight has a name there and comes back bit for bit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune.base import BaseConfig, load_base
from finetune.errors import ArtifactError
from finetune.export import export_artifact
from finetune.export.imported import bases_of, open_source
from finetune.export.original_names import (
    open_clip_to_original,
    unet_parts,
    unet_to_original,
    vae_to_original,
)
from finetune.export.reading import read_safetensors

TUNED = {"train_text_encoder": True}


def from_single_file(path: Path, config: Path, **options: Any) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_single_file(
        str(path), config=str(config), local_files_only=True, safety_checker=None, **options
    )


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value
        for name in ("unet", "vae", "text_encoder")
        for key, value in getattr(pipe, name).state_dict().items()
    }


def assert_same_weights(path: Path, folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    pipe = from_single_file(path, folder)
    there, before = weights(pipe), weights(StableDiffusionPipeline.from_pretrained(folder))
    assert there.keys() == before.keys()
    for key, value in before.items():
        assert torch.equal(there[key], value), key
    return pipe


def check_round_trip(base: Any, made: Any, outside: Any, tmp_path: Path) -> Path:
    path = export_artifact(made.folder, "single-file", tmp_path / "dog.safetensors").path
    pipe = assert_same_weights(path, made.folder)
    torch.testing.assert_close(outside(pipe, made.prompt), made.latents, atol=1e-5, rtol=0)
    source = open_source(path)
    assert (source.kind, source.subject) == ("pipeline", "sks dog")
    (config,) = bases_of([source], base.source)
    ours = load_base(config)
    theirs = weights(pipe)
    for component, module in ours.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, theirs[f"{component}.{key}"])
    half = load_base(config.model_copy(update={"dtype": "bfloat16"}))
    assert next(half.denoiser.parameters()).dtype == torch.bfloat16
    for key, value in half.components.vae.state_dict().items():  # which says force_upcast
        assert torch.equal(value, theirs[f"vae.{key}"])
    return path


def test_round_trip_of_stable_diffusion_s_structure(
    sd_base: Any, make_artifact: Any, outside: Any, tmp_path: Path
) -> None:
    made = make_artifact(sd_base, "dreambooth", **TUNED)
    path = check_round_trip(sd_base, made, outside, tmp_path)
    state, header = read_safetensors(path)
    roots = {"model.diffusion_model", "first_stage_model", "cond_stage_model"}
    assert {re.match(r"model\.diffusion_model|\w+", key)[0] for key in state} == roots
    # What tells the versions apart in A1111, ComfyUI and diffusers.
    assert "model.diffusion_model.output_blocks.11.0.skip_connection.weight" in state
    assert "model.diffusion_model.input_blocks.11.0.in_layers.2.weight" in state
    assert state["first_stage_model.decoder.mid.attn_1.q.weight"].shape == (8, 8, 1, 1)
    assert "first_stage_model.encoder.down.2.downsample.conv.weight" in state
    assert "first_stage_model.decoder.up.1.upsample.conv.weight" in state
    assert "first_stage_model.decoder.up.0.upsample.conv.weight" not in state
    is_second = bool(sd_base.denoiser.config.use_linear_projection)
    first = "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    second = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    assert (second in state, first in state) == (is_second, not is_second)
    assert header["modelspec.trigger_phrase"] == "sks dog"


def test_number_of_blocks_is_that_of_the_published_checkpoints(sd_base: Any) -> None:
    """12 input and 12 output blocks; attention in 1 to 8 without the resampling 3 and 6, and 3 to 11."""
    parts = unet_parts(sd_base.denoiser.config)
    names = set(parts.values())
    for side, with_attention in (("input", {1, 2, 4, 5, 7, 8}), ("output", set(range(3, 12)))):
        found = {int(n.split(".")[1]) for n in names if n.startswith(f"{side}_blocks.")}
        assert found == set(range(12))
        attended = {
            int(n.split(".")[1]) for n in names if re.fullmatch(rf"{side}_blocks\.\d+\.1", n)
        }
        assert attended == with_attention
    assert {n for n in names if n.endswith(".op")} == {f"input_blocks.{i}.0.op" for i in (3, 6, 9)}
    assert {n for n in names if n.endswith(".conv")} == {
        "output_blocks.2.1.conv",
        "output_blocks.5.2.conv",
        "output_blocks.8.2.conv",
    }


def test_names_cover_stable_diffusion_1_at_its_real_size() -> None:
    """The published file has 686 weights of the U-Net and 248 of the autoencoder; no memory is taken."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import (
        convert_ldm_unet_checkpoint,
        convert_ldm_vae_checkpoint,
    )

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
    for network, convert, back, root, count in (
        (unet, unet_to_original, convert_ldm_unet_checkpoint, "model.diffusion_model.", 686),
        (vae, vae_to_original, convert_ldm_vae_checkpoint, "first_stage_model.", 248),
    ):
        state = network.state_dict()
        there = convert(state, network.config)
        assert len(there) == len(state) == count
        returned = back({f"{root}{key}": value for key, value in there.items()}, network.config)
        assert {k: v.shape for k, v in returned.items()} == {k: v.shape for k, v in state.items()}


def test_names_cover_sdxl_s_networks_too() -> None:
    """At their real size: its U-Net's 1,680 weights; and OpenCLIP's projection."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import (
        convert_ldm_unet_checkpoint,
        convert_open_clip_checkpoint,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    state = unet.state_dict()
    there = unet_to_original(state, unet.config)
    assert len(there) == len(state) == 1680
    assert "output_blocks.5.2.conv.weight" in there
    rooted = {f"model.diffusion_model.{key}": value for key, value in there.items()}
    back = convert_ldm_unet_checkpoint(rooted, unet.config)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}

    text = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, projection_dim=12, hidden_act="gelu",
            bos_token_id=0, eos_token_id=19,
        )
    )  # fmt: skip
    root = "conditioner.embedders.1.model."
    there = open_clip_to_original(text.state_dict(), {})
    assert there["text_projection"].shape == (16, 12)
    rooted = {f"{root}{key}": value for key, value in there.items()}
    back = convert_open_clip_checkpoint(text, rooted, prefix=root)
    before = text.state_dict()
    assert back.keys() == before.keys()
    assert all(torch.equal(back[key], before[key]) for key in before)


def test_round_trip_of_another_structure(
    tiny_base: Any, make_artifact: Any, outside: Any, tmp_path: Path
) -> None:
    """Two levels of one layer: the names follow from the configuration, not from a list."""
    check_round_trip(tiny_base, make_artifact(tiny_base, "dreambooth", **TUNED), outside, tmp_path)


def test_the_embedded_base_goes_there_and_back(tmp_path: Path, make_artifact: Any) -> None:
    base = load_base(BaseConfig(source="clay"))
    made = make_artifact(base, "dreambooth")
    done = export_artifact(made.folder, "single-file", tmp_path / "clay.safetensors")
    vae = base.modules["vae"].config
    latents = f"{vae.latent_channels} channels scaled by {vae.scaling_factor} and v-prediction"
    assert latents in done.remarks[0]
    assert_same_weights(done.path, made.folder)


def test_half_precision_is_written_when_asked(
    tiny_base: Any, make_artifact: Any, tmp_path: Path
) -> None:
    made = make_artifact(tiny_base, "dreambooth")
    path = export_artifact(
        made.folder, "single-file", tmp_path / "dog.safetensors", dtype="float16"
    ).path
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    pipe = from_single_file(path, made.folder, torch_dtype=torch.float16)
    before = load_file(made.folder / "unet" / "diffusion_pytorch_model.safetensors")
    for key, value in pipe.unet.state_dict().items():
        assert torch.equal(value, before[key].half()), key


def test_text_encoder_files_with_and_without_prefix_are_the_same(
    tiny_base: Any, make_artifact: Any, tmp_path: Path
) -> None:
    """transformers writes `text_model.` only where the model was read from a file that had it."""
    from safetensors.torch import save_file

    made = make_artifact(tiny_base, "dreambooth", **TUNED)
    first = export_artifact(made.folder, "single-file", tmp_path / "a.safetensors").path
    weight_file = made.folder / "text_encoder" / "model.safetensors"
    plain = {k.removeprefix("text_model."): v for k, v in load_file(weight_file).items()}
    for prefix in ("", "text_model."):
        save_file({f"{prefix}{k}": v for k, v in plain.items()}, weight_file, {"format": "pt"})
        path = export_artifact(
            made.folder, "single-file", tmp_path / "b.safetensors", overwrite=True
        ).path
        a, b = load_file(first), load_file(path)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_networks_without_original_names_are_refused() -> None:
    config = {
        "down_block_types": ["AttnDownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "layers_per_block": 1,
    }
    with pytest.raises(ArtifactError, match="no name for AttnDownBlock2D"):
        unet_parts(config)
    config["down_block_types"] = ["DownBlock2D"]
    with pytest.raises(
        ArtifactError, match=r"1 weights of the U-Net, the first is encoder_hid_proj"
    ):
        unet_to_original({"encoder_hid_proj.weight": torch.ones(1)}, config)
    with pytest.raises(ArtifactError, match=r"1 weights of the text encoder, the first is extra"):
        open_clip_to_original({"extra": torch.ones(1)}, {})
