"""Where a base comes from: folder, Hub cache, single name; and what is refused before weights load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.base import BaseConfig, load_base, skeleton_of
from finetune.errors import ArtifactError
from finetune.generate import SamplingConfig, generate_latents


def test_local_folder_loads_frozen_in_eval_mode(tiny_base: Any) -> None:
    for module in tiny_base.modules.values():
        assert not any(p.requires_grad for p in module.parameters())
        assert not any(m.training for m in module.modules())
    assert tiny_base.noise_process.prediction_type == "v_prediction"


def test_hub_id_is_found_in_the_local_cache_without_network(
    tiny_folder: Path, tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout that huggingface_hub keeps on disk, read by its own code, offline."""
    import huggingface_hub.constants as constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    root = tmp_path / "hub" / "models--someone--tiny-sd"
    shutil.copytree(tiny_folder, root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    base = load_base(BaseConfig(source="someone/tiny-sd"))
    assert base.fingerprint == tiny_base.fingerprint
    pinned = load_base(BaseConfig(source="someone/tiny-sd", revision=commit))
    assert pinned.fingerprint == tiny_base.fingerprint
    with pytest.raises(ArtifactError, match=r"someone/absent.*could not be had from the Hub"):
        load_base(BaseConfig(source="someone/absent"))


def test_unknown_base_names_the_nearest() -> None:
    with pytest.raises(ArtifactError, match="no base 'cley'"):
        load_base(BaseConfig(source="cley"))


def test_a_pipeline_of_another_family_is_refused_before_weights_load(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "SanaPipeline"}))
    with pytest.raises(ArtifactError, match="SanaPipeline"):
        load_base(BaseConfig(source=str(tmp_path)))


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    for content in (None, "no json", "[]"):
        if content is not None:
            (tmp_path / "model_index.json").write_text(content)
        with pytest.raises(ArtifactError, match=r"no readable model_index\.json"):
            load_base(BaseConfig(source=str(tmp_path)))


def test_a_base_without_weights_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "base")
    for path in (tmp_path / "base" / "unet").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_base(BaseConfig(source=str(tmp_path / "base")))


def test_networks_of_different_latents_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    settings = AutoencoderKL.load_config(folder / "vae")
    AutoencoderKL.from_config({**settings, "latent_channels": 6}).save_pretrained(folder / "vae")
    for read in (load_base, skeleton_of):
        with pytest.raises(
            ArtifactError, match="vae gives latents of 6 channels, its unet takes 4"
        ):
            read(BaseConfig(source=str(folder)))


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        ("bfloat16", "float32"),
        ("bfloat16", "bfloat16"),
        ("float16", "float32"),
        ("float16", "float16"),
    ],
)
@pytest.mark.parametrize("kind", ["dreambooth", "lora", "textual_inversion"])
def test_trained_parameters_are_float32_over_a_half_precision_base(
    tiny_folder: Path, run_values: Any, kind: str, dtype: str, precision: str
) -> None:
    from finetune.config import build_run_config
    from finetune.run import prepare_folder, run_training
    from methods import load_method

    base = load_base(BaseConfig(source=str(tiny_folder), dtype=dtype))
    values = run_values(kind, base={"dtype": dtype}, training={"precision": precision})
    config = build_run_config(values, load_method, "test")
    method = load_method(kind)(config.method)
    prepare_folder(config, resume=False, overwrite=False)
    result = run_training(base, method, config)
    assert result.loss == result.loss
    assert {p.dtype for p in base.trainable_parameters().values()} == {torch.float32}
    prompt = f"a photo of a {method.subject_phrase('dog')}"
    latents = generate_latents(base, [prompt], [0], SamplingConfig(num_steps=2, size=16))
    assert bool(latents.isfinite().all())
    method.detach(base)
    assert base.current_fingerprint() == base.fingerprint
    assert {p.dtype for p in base.denoiser.parameters()} == {getattr(torch, dtype)}


def test_prompts_are_remembered_only_while_the_text_side_is_frozen(tiny_base: Any) -> None:
    encoder = tiny_base.components.text_encoders["text_encoder"]
    calls = []
    hook = encoder.register_forward_hook(lambda *_: calls.append(1))
    first = tiny_base.encode_prompts(["a dog", "a cat"]).tensors["prompt_embeds"]
    again = tiny_base.encode_prompts(["a cat", "a dog"]).tensors["prompt_embeds"]
    assert len(calls) == 1
    assert torch.equal(first, again.flip(0))
    next(encoder.parameters()).requires_grad_(True)
    tiny_base.encode_prompts(["a dog"])
    tiny_base.encode_prompts(["a dog"])
    assert len(calls) == 3
    hook.remove()


@pytest.mark.parametrize(
    ("upcast", "expected"), [(True, torch.float32), (None, torch.float32), (False, torch.bfloat16)]
)
def test_an_autoencoder_stands_in_float32_unless_its_configuration_says_no(
    tiny_folder: Path, tmp_path: Path, upcast: bool | None, expected: torch.dtype
) -> None:
    """None: the field is missing, as in Stable Diffusion 1.5; diffusers' default is true."""
    shutil.copytree(tiny_folder, tmp_path / "base")
    path = tmp_path / "base" / "vae" / "config.json"
    settings = {k: v for k, v in json.loads(path.read_text()).items() if k != "force_upcast"}
    path.write_text(
        json.dumps(settings if upcast is None else {**settings, "force_upcast": upcast})
    )
    base = load_base(BaseConfig(source=str(tmp_path / "base"), dtype="bfloat16"))
    assert {p.dtype for p in base.components.vae.parameters()} == {expected}
    assert {p.dtype for p in base.denoiser.parameters()} == {torch.bfloat16}
    pixel_values = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    assert base.encode_images(pixel_values).mean.isfinite().all()
