"""kohya files: the strength, names and headers that other tools read, and the way back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.artifact import WEIGHT_FILES, read_artifact
from finetune.errors import ArtifactError
from finetune.export import export_artifact, kohya
from finetune.export.imported import fit, open_source
from finetune.export.low_rank import LowRankUpdate, parse_diffusers_key, read_diffusers
from finetune.export.reading import read_safetensors
from finetune.families import family_named

NAMES = family_named("sd").foreign_names
TEXT = {"train_text_encoder": True}
ATTENTION_MODULES = ("to_q", "to_k", "to_v", "to_out.0")
TRANSFORMER_MODULES = (*ATTENTION_MODULES, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
ALL_MODULES = (
    *TRANSFORMER_MODULES,
    *("conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv"),
    *("conv_in", "conv_out", "linear_1", "linear_2"),
)
ALL_TEXT_MODULES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
VARIANTS: dict[str, dict[str, Any]] = {
    "alpha is rank": {"rank": 4},
    "alpha is not rank, text encoder": {"rank": 4, "alpha": 10.0, **TEXT},
    "rsLoRA": {"rank": 9, "alpha": 6.0, "use_rslora": True},
    "rank patterns, text encoder": {
        "rank": 4,
        "alpha": 3.0,
        "rank_pattern": {"attn2.to_k": 2, "unet.mid_block.*to_q": 6, "layers.1.*.q_proj": 5},
        **TEXT,
    },
    "alpha patterns, text encoder": {
        "rank": 4,
        "alpha_pattern": {"attn2.to_k": 9.0, "text_encoder.encoder.layers.0.*.v_proj": 1.5},
        **TEXT,
    },
    "rsLoRA with rank patterns, text encoder": {
        "rank": 4,
        "alpha": 8.0,
        "use_rslora": True,
        "rank_pattern": {"attn1.to_v": 9, "k_proj": 2},
        **TEXT,
    },
    "every linear and convolution": {
        "rank": 3,
        "alpha": 5.0,
        "target_modules": ALL_MODULES,
        "text_encoder_target_modules": ALL_TEXT_MODULES,
        **TEXT,
    },
}


@pytest.fixture
def plain(tiny_folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(tiny_folder)


def exported(made: Any, tmp_path: Path, **options: Any) -> Path:
    return export_artifact(made.folder, "kohya", tmp_path / "dog.safetensors", **options).path


def update_by_hand(state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """alpha / rank · up · down, of a convolution with the same sum over the rank."""
    down, up = state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"]
    scale = float(state[f"{name}.alpha"]) / down.shape[0]
    return scale * (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_round_trip_gives_the_same_pictures_in_diffusers_and_here(
    tiny_base: Any, plain: Any, make_artifact: Any, outside: Any, through_import: Any,
    tmp_path: Path, variant: str,
) -> None:  # fmt: skip
    made = make_artifact(tiny_base, "lora", **VARIANTS[variant])
    path = exported(made, tmp_path)
    frozen = outside(plain, made.prompt)
    plain.load_lora_weights(path)
    there = outside(plain, made.prompt)
    here = through_import(tiny_base, path, made.prompt)
    assert (frozen - made.latents).abs().max() > 0.02
    torch.testing.assert_close(there, made.latents, atol=1e-5, rtol=0)
    torch.testing.assert_close(here, made.latents, atol=1e-5, rtol=0)


def test_round_trip_on_the_embedded_base(
    make_artifact: Any, outside: Any, through_import: Any, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    from finetune.base import BaseConfig, load_base
    from finetune.bases import embedded_bases

    clay = load_base(BaseConfig(source="clay"))
    made = make_artifact(clay, "lora", rank=8, alpha=4.0, **TEXT)
    path = exported(made, tmp_path)
    pipe = StableDiffusionPipeline.from_pretrained(embedded_bases()["clay"])
    pipe.load_lora_weights(path)
    torch.testing.assert_close(outside(pipe, made.prompt), made.latents, atol=1e-4, rtol=0)
    here = through_import(clay, path, made.prompt)
    torch.testing.assert_close(here, made.latents, atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_updates_computed_by_hand_from_the_file_are_peft_s(
    tiny_base: Any, make_artifact: Any, tmp_path: Path, variant: str
) -> None:
    made = make_artifact(tiny_base, "lora", **VARIANTS[variant])
    state = load_file(exported(made, tmp_path))
    names = {}
    for place in made.updates:
        component, _, module = place.partition(".")
        prefix = "lora_unet_" if component == "unet" else "lora_te_text_model_"
        names[place] = prefix + module.removeprefix("text_model.").replace(".", "_")
    assert {key.partition(".")[0] for key in state} == set(names.values())
    for place, update in made.updates.items():
        torch.testing.assert_close(
            update_by_hand(state, names[place]), update, atol=1e-6, rtol=1e-5
        )


def test_names_are_those_of_the_sd_1_files_in_the_wild(sd_base: Any, make_artifact: Any) -> None:
    """sd-scripts makes 192 modules of SD 1.x's U-Net; ComfyUI (`comfy/lora.py`) looks for these names."""
    expected = set()
    blocks = [f"down_blocks_{level}_attentions_{i}" for level in (0, 1, 2) for i in (0, 1)]
    blocks += ["mid_block_attentions_0"]
    blocks += [f"up_blocks_{level}_attentions_{i}" for level in (1, 2, 3) for i in (0, 1, 2)]
    for block in blocks:
        expected |= {f"lora_unet_{block}_proj_in", f"lora_unet_{block}_proj_out"}
        inner = f"lora_unet_{block}_transformer_blocks_0"
        expected |= {f"{inner}_ff_net_0_proj", f"{inner}_ff_net_2"}
        for attention in ("attn1", "attn2"):
            for part in ("to_q", "to_k", "to_v", "to_out_0"):
                expected.add(f"{inner}_{attention}_{part}")
    assert len(expected) == 192
    for layer in (0, 1):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            expected.add(f"lora_te_text_model_encoder_layers_{layer}_self_attn_{part}")
        for part in ("fc1", "fc2"):
            expected.add(f"lora_te_text_model_encoder_layers_{layer}_mlp_{part}")
    made = make_artifact(
        sd_base,
        "lora",
        rank=4,
        target_modules=TRANSFORMER_MODULES,
        text_encoder_target_modules=ALL_TEXT_MODULES,
        **TEXT,
    )
    updates = read_diffusers(*read_safetensors(made.folder / WEIGHT_FILES["lora"]))
    state = kohya.to_kohya(updates, NAMES)
    sides = ("lora_down.weight", "lora_up.weight", "alpha")
    assert set(state) == {f"{name}.{side}" for name in expected for side in sides}


def test_header_tells_other_tools_what_it_is(
    tiny_base: Any, make_artifact: Any, tmp_path: Path
) -> None:
    made = make_artifact(tiny_base, "lora", rank=4, alpha=2.0)
    path = exported(made, tmp_path)
    state, header = read_safetensors(path)
    assert header["ss_v2"] == "False"
    assert header["ss_base_model_version"] == "sd_v1"
    assert header["ss_network_module"] == "networks.lora"
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("4", "2.0")
    assert header["ss_output_name"] == "dog"
    assert json.loads(header["ss_tag_frequency"]) == {"1_sks dog": {"sks dog": 1}}
    assert header["modelspec.sai_model_spec"] == "1.0.1"
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert header["modelspec.trigger_phrase"] == "sks dog"
    assert header["modelspec.prediction_type"] == "v"
    assert header["modelspec.resolution"] == "16x16"
    assert header["modelspec.hash_sha256"].startswith("0x")
    assert "lora_adapter_metadata" not in header  # diffusers refuses it beside .alpha
    source = open_source(path)
    assert (source.kind, source.subject) == ("kohya", "sks dog")


@pytest.mark.parametrize(
    ("width", "prediction_type", "version", "architecture"),
    [
        (768, "epsilon", "sd_v1", "stable-diffusion-v1/lora"),
        (1024, "epsilon", "sd_v2", "stable-diffusion-v2-512/lora"),
        (1024, "v_prediction", "sd_v2", "stable-diffusion-v2-768-v/lora"),
    ],
)
def test_header_names_the_version_by_the_width_of_the_prompts(
    tiny_base: Any, make_artifact: Any, width: int, prediction_type: str, version: str,
    architecture: str,
) -> None:  # fmt: skip
    """A1111 hides LoRAs of another version by `ss_v2`."""
    note = read_artifact(make_artifact(tiny_base, "lora", rank=4).folder)
    note = replace(note, prediction_type=prediction_type)
    update = LowRankUpdate(torch.ones(4, width), torch.ones(320, 4), alpha=4.0)
    updates = {("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"): update}
    header = kohya.header_of(note, updates, NAMES, "dog", kohya.to_kohya(updates, NAMES))
    assert header["ss_base_model_version"] == version
    assert header["ss_v2"] == str(width == 1024)
    assert header["modelspec.architecture"] == architecture


def test_half_precision_is_written_when_asked(
    tiny_base: Any, make_artifact: Any, through_import: Any, tmp_path: Path
) -> None:
    made = make_artifact(tiny_base, "lora", rank=4)
    path = exported(made, tmp_path, dtype="float16")
    state = load_file(path)
    weights = {tensor.dtype for key, tensor in state.items() if not key.endswith(".alpha")}
    assert weights == {torch.float16}
    here = through_import(tiny_base, path, made.prompt)
    torch.testing.assert_close(here, made.latents, atol=5e-3, rtol=0)


# --- traps of the installed versions ------------------------------------------------------------------


def test_diffusers_own_exporter_writes_alpha_is_rank(tiny_base: Any, make_artifact: Any) -> None:
    """Why there is an exporter of our own: with alpha 8 and rank 4 that file has half the strength."""
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

    made = make_artifact(tiny_base, "lora", rank=4, alpha=8.0)
    native, header = read_safetensors(made.folder / WEIGHT_FILES["lora"])
    theirs = convert_state_dict_to_kohya(dict(native))
    ours = kohya.to_kohya(read_diffusers(native, header), NAMES)
    assert set(theirs) == set(ours)
    assert {float(v) for k, v in theirs.items() if k.endswith(".alpha")} == {4.0}
    assert {float(v) for k, v in ours.items() if k.endswith(".alpha")} == {8.0}


def test_diffusers_own_exporter_names_sd_text_encoders_like_sdxl_s(
    tiny_base: Any, make_artifact: Any, through_import: Any, tmp_path: Path
) -> None:
    """It writes `lora_te1_`, which A1111 does not look for on SD 1.x; such files are read all the same."""
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

    made = make_artifact(tiny_base, "lora", rank=4, **TEXT)
    native, _ = read_safetensors(made.folder / WEIGHT_FILES["lora"])
    theirs = {k: v.contiguous() for k, v in convert_state_dict_to_kohya(dict(native)).items()}
    assert any(key.startswith("lora_te1_text_model_") for key in theirs)
    assert any(key.startswith("lora_te_text_model_") for key in load_file(exported(made, tmp_path)))
    save_file(theirs, tmp_path / "theirs.safetensors")
    here = through_import(tiny_base, tmp_path / "theirs.safetensors", made.prompt)
    torch.testing.assert_close(here, made.latents, atol=1e-5, rtol=0)


def test_diffusers_without_adapter_metadata_takes_alpha_for_the_rank(
    tiny_base: Any, plain: Any, make_artifact: Any, outside: Any, tmp_path: Path
) -> None:
    """Why the artifact carries the metadata, and why the diffusers export copies the file as it is."""
    made = make_artifact(tiny_base, "lora", rank=4, alpha=12.0)
    name = WEIGHT_FILES["lora"]
    copy = export_artifact(made.folder, "diffusers", tmp_path / "copy").path
    assert (copy / name).read_bytes() == (made.folder / name).read_bytes()
    plain.load_lora_weights(copy)
    torch.testing.assert_close(outside(plain, made.prompt), made.latents, atol=1e-5, rtol=0)
    plain.unload_lora_weights()
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(copy / name), bare)
    plain.load_lora_weights(bare)
    assert (outside(plain, made.prompt) - made.latents).abs().max() > 0.01
    updates = read_diffusers(*read_safetensors(bare))
    assert {update.alpha for update in updates.values()} == {4.0}


def test_diffusers_loses_alphas_that_differ_within_a_network(
    tiny_base: Any, plain: Any, make_artifact: Any, outside: Any, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Why a file has one alpha per network."""
    settings = VARIANTS["alpha patterns, text encoder"]
    made = make_artifact(tiny_base, "lora", **settings)
    alphas = {
        (key.split("_")[1], float(value))
        for key, value in load_file(exported(made, tmp_path)).items()
        if key.endswith(".alpha")
    }
    assert alphas == {("unet", 4.0), ("te", 4.0)}
    with monkeypatch.context() as patch:
        patch.setattr(kohya, "one_alpha", lambda updates: updates)
        mixed = exported(made, tmp_path, overwrite=True)
    with pytest.warns(RuntimeWarning, match="alpha_pattern keys did not match"):
        plain.load_lora_weights(mixed)
    assert (outside(plain, made.prompt) - made.latents).abs().max() > 1e-3


def test_text_encoder_keys_carry_the_prefix_that_other_readers_expect(
    tiny_base: Any, make_artifact: Any
) -> None:
    """transformers 5.6 flattened `CLIPTextModel`; ComfyUI and older diffusers look for `text_model.`."""
    network = tiny_base.components.text_encoders["text_encoder"]
    assert not any(name.startswith("text_model.") for name, _ in network.named_modules())
    made = make_artifact(tiny_base, "lora", **TEXT)
    native, _ = read_safetensors(made.folder / WEIGHT_FILES["lora"])
    text = [key for key in native if key.startswith("text_encoder.")]
    assert text
    assert all(key.startswith("text_encoder.text_model.encoder.layers.") for key in text)


def test_dora_keeps_its_magnitude_and_says_who_reads_it(
    tiny_base: Any,
    plain: Any,
    make_artifact: Any,
    outside: Any,
    through_import: Any,
    tmp_path: Path,
) -> None:
    made = make_artifact(
        tiny_base,
        "lora",
        rank=4,
        alpha=6.0,
        use_dora=True,
        target_modules=["to_q", "conv1"],
        **TEXT,
    )
    done = export_artifact(made.folder, "kohya", tmp_path / "dora.safetensors")
    assert "dora_scale" in done.remarks[0]
    state = load_file(done.path)
    scales = {key: value for key, value in state.items() if key.endswith(".dora_scale")}
    assert len(scales) == len(made.updates)
    for key, scale in scales.items():
        up = state[key.replace("dora_scale", "lora_up.weight")]
        assert scale.shape == (up.shape[0], *[1] * (up.ndim - 1))
    here = through_import(tiny_base, done.path, made.prompt)
    torch.testing.assert_close(here, made.latents, atol=1e-5, rtol=0)
    # The weight as LyCORIS computes it from the file: rows of W + ΔW, scaled to the norms given.
    module = "down_blocks.0.resnets.0.conv1"
    name = f"lora_unet_{module.replace('.', '_')}"
    weight = tiny_base.denoiser.get_submodule(module).weight
    updated = weight + update_by_hand(state, name)
    norms = updated.flatten(1).norm(dim=1)[:, None, None, None]
    by_lycoris = updated / norms * state[f"{name}.dora_scale"] - weight
    torch.testing.assert_close(by_lycoris, made.updates[f"unet.{module}"], atol=1e-5, rtol=1e-4)
    # diffusers leaves the magnitudes out, as the remark says.
    plain.load_lora_weights(done.path)
    assert (outside(plain, made.prompt) - made.latents).abs().max() > 1e-3


def test_magnitudes_on_the_input_axis_are_refused(
    tiny_base: Any, make_artifact: Any, tmp_path: Path
) -> None:
    made = make_artifact(tiny_base, "lora", rank=4, use_dora=True)
    state = load_file(exported(made, tmp_path))
    turned = {k: v.T.contiguous() if "dora_scale" in k else v for k, v in state.items()}
    save_file(turned, tmp_path / "turned.safetensors")
    with pytest.raises(ArtifactError, match="number per input; only one per output"):
        fit(open_source(tmp_path / "turned.safetensors"), tiny_base)


# --- what others write --------------------------------------------------------------------------------


def test_original_block_names_are_read_too(
    sd_base: Any, make_artifact: Any, through_import: Any, tmp_path: Path
) -> None:
    """sd-scripts names SDXL's blocks as the original code does; diffusers' own converter is the witness."""
    from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers

    from finetune.export.original_names import unet_name, unet_parts

    made = make_artifact(sd_base, "lora", rank=2, target_modules=TRANSFORMER_MODULES)
    state = load_file(exported(made, tmp_path))
    parts = unet_parts(sd_base.denoiser.config)
    renamed = {}
    for place in made.updates:
        module = place.removeprefix("unet.")
        original = str(unet_name(module, parts)).replace(".", "_")
        for side in ("lora_down.weight", "lora_up.weight", "alpha"):
            key = f"lora_unet_{module.replace('.', '_')}.{side}"
            renamed[f"lora_unet_{original}.{side}"] = state[key]
    assert any("input_blocks_1_1_transformer_blocks_0_attn1_to_q" in key for key in renamed)
    back = {}
    witness = _maybe_map_sgm_blocks_to_diffusers(dict(renamed), sd_base.denoiser.config)
    for key, value in witness.items():  # it leaves the first word to its caller
        for theirs, ours in (("input_", "down_"), ("output_", "up_"), ("middle_", "mid_")):
            key = key.replace(f"lora_unet_{theirs}", f"lora_unet_{ours}")
        back[key] = value
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    save_file(renamed, tmp_path / "sgm.safetensors")
    here = through_import(sd_base, tmp_path / "sgm.safetensors", made.prompt)
    torch.testing.assert_close(here, made.latents, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("key", "place"),
    {
        "unet.a.attn1.to_q.lora_A.weight": ("unet", "a.attn1.to_q", "down"),
        "unet.a.attn1.to_out.0.lora_B.weight": ("unet", "a.attn1.to_out.0", "up"),
        "unet.a.attn1.to_q.lora.down.weight": ("unet", "a.attn1.to_q", "down"),
        "unet.a.attn1.processor.to_k_lora.up.weight": ("unet", "a.attn1.to_k", "up"),
        "unet.a.attn1.processor.to_out_lora.down.weight": ("unet", "a.attn1.to_out.0", "down"),
        "text_encoder.text_model.x.self_attn.q_proj.lora_linear_layer.up.weight": (
            "text_encoder",
            "x.self_attn.q_proj",
            "up",
        ),
        "text_encoder.text_model.x.self_attn.to_v_lora.down.weight": (
            "text_encoder",
            "x.self_attn.v_proj",
            "down",
        ),
        "text_encoder.x.self_attn.to_out_lora.up.weight": (
            "text_encoder",
            "x.self_attn.out_proj",
            "up",
        ),
        "unet.a.conv1.lora_magnitude_vector": ("unet", "a.conv1", "magnitude"),
        "unet.a.conv1.alpha": ("unet", "a.conv1", "alpha"),
        "unet.a.conv1.lokr_w1": None,
    }.items(),
)
def test_every_spelling_of_diffusers_is_understood(
    key: str, place: tuple[str, str, str] | None
) -> None:
    assert parse_diffusers_key(key) == place


def test_old_diffusers_files_give_the_same_pictures(
    tiny_base: Any,
    plain: Any,
    make_artifact: Any,
    outside: Any,
    through_import: Any,
    tmp_path: Path,
) -> None:
    """Written as diffusers 0.20 did, read by diffusers and by us."""
    made = make_artifact(tiny_base, "lora", rank=4, **TEXT)
    old = {}
    for key, value in load_file(made.folder / WEIGHT_FILES["lora"]).items():
        for new, side in ((".lora_A.weight", "down"), (".lora_B.weight", "up")):
            if key.endswith(new):
                module = key.removesuffix(new)
                if module.startswith("unet."):
                    attention, _, part = module.removesuffix(".0").rpartition(".")
                    name = f"{attention}.processor.{part}_lora.{side}.weight"
                else:
                    name = f"{module}.lora_linear_layer.{side}.weight"
                old[name] = value
    path = tmp_path / "old.safetensors"
    save_file(old, path)
    plain.load_lora_weights(path)
    torch.testing.assert_close(outside(plain, made.prompt), made.latents, atol=1e-5, rtol=0)
    here = through_import(tiny_base, path, made.prompt)
    torch.testing.assert_close(here, made.latents, atol=1e-5, rtol=0)


def test_a_lora_of_the_text_encoder_alone_is_read(
    tiny_base: Any, make_artifact: Any, through_import: Any, tmp_path: Path
) -> None:
    made = make_artifact(tiny_base, "lora", rank=4, target_modules=[], **TEXT)
    path = exported(made, tmp_path)
    assert all(key.startswith("lora_te_") for key in load_file(path))
    here = through_import(tiny_base, path, made.prompt)
    torch.testing.assert_close(here, made.latents, atol=1e-5, rtol=0)


# --- what does not fit --------------------------------------------------------------------------------


def kohya_module(name: str, shape: tuple[int, int], rank: int = 2) -> dict[str, torch.Tensor]:
    """A module of a kohya file with an update of [out, in] `shape`."""
    return {
        f"{name}.lora_down.weight": torch.ones(rank, shape[1]),
        f"{name}.lora_up.weight": torch.ones(shape[0], rank),
        f"{name}.alpha": torch.tensor(1.0),
    }


def refusal(state: dict[str, torch.Tensor], base: Any, path: Path) -> str:
    save_file(state, path)
    with pytest.raises(ArtifactError) as caught:
        fit(open_source(path), base)
    return str(caught.value)


def test_a_lora_for_another_base_is_refused_by_its_shapes(tiny_base: Any, tmp_path: Path) -> None:
    block = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0"
    state = {
        **kohya_module(f"{block}_attn1_to_q", (320, 320)),
        **kohya_module(f"{block}_attn2_to_k", (320, 768)),
    }
    message = refusal(state, tiny_base, tmp_path / "sd15.safetensors")
    assert "sd15.safetensors was made for another base than" in message
    assert "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k is 768 → 320" in message
    assert "that module is 16 → 16, so it is for Stable Diffusion 1.x." in message


def test_a_lora_for_another_base_is_refused_by_its_modules(tiny_base: Any, tmp_path: Path) -> None:
    state = kohya_module("lora_unet_down_blocks_7_attentions_0_proj_in", (16, 16))
    message = refusal(state, tiny_base, tmp_path / "deep.safetensors")
    assert "1 of its 1 modules do not exist there, the first is lora_unet_down_blocks_7" in message
    path = tmp_path / "deep_diffusers.safetensors"
    save_file({f"unet.down_blocks.7.conv1.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}, path)
    with pytest.raises(ArtifactError, match=r"updates unet\.down_blocks\.7\.conv1, which does not"):
        fit(open_source(path), tiny_base)


@pytest.mark.parametrize(
    ("key", "what"),
    [
        (
            "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha",
            "made for another base than",
        ),
        (
            "lora_te3_encoder_block_0_layer_0_SelfAttention_q.alpha",
            "another family: it updates lora_te3_",
        ),
        ("transformer.blocks.0.to_q.lora_A.weight", "another family: it updates transformer"),
        ("lora_unet_mid_block_attentions_0_proj_in.lokr_w1", "is a LoKr, which cannot be read"),
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "is a LoHa, which cannot be read"),
        ("first.a", "no embedding and no checkpoint"),
    ],
)
def test_other_families_and_algorithms_are_named(
    tiny_base: Any, tmp_path: Path, key: str, what: str
) -> None:
    state = {key: torch.ones(2, 2), key.replace(".a", ".b") + "_": torch.ones(2, 2)}
    if "first" not in key:
        state = {key: torch.ones(2, 2)}
    assert what in refusal(state, tiny_base, tmp_path / "other.safetensors")


def test_half_an_update_is_refused(tiny_base: Any, tmp_path: Path) -> None:
    state = {"unet.conv_in.lora_A.weight": torch.ones(2, 2)}
    assert "not both halves" in refusal(state, tiny_base, tmp_path / "half.safetensors")


def test_halves_that_cannot_be_multiplied_are_refused(tiny_base: Any, tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_proj_in"
    for down, up in (((2, 16), (16, 3)), ((2,), (16, 2)), ((), ())):
        state = {
            f"{name}.lora_down.weight": torch.ones(down),
            f"{name}.lora_up.weight": torch.ones(up),
        }
        assert "cannot be multiplied" in refusal(state, tiny_base, tmp_path / "bad.safetensors")
