"""What is recognised as an artifact, and whose base it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.errors import ArtifactError
from finetune.export import export_artifact
from finetune.export.imported import attached, bases_of, open_source
from methods import load_method


def test_a_diffusers_lora_is_read_with_its_strength(
    tiny_base: Any, make_artifact: Any, through_import: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    """Saved by a plain diffusers pipeline, with adapter metadata in its header."""
    from diffusers import StableDiffusionPipeline
    from peft.utils import get_peft_model_state_dict

    made = make_artifact(
        tiny_base,
        "lora",
        rank=4,
        alpha=10.0,
        rank_pattern={"attn2.to_k": 2},
        train_text_encoder=True,
    )
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    pipe.load_lora_weights(made.folder)
    pipe.save_lora_weights(
        tmp_path / "theirs",
        unet_lora_layers=get_peft_model_state_dict(pipe.unet, adapter_name="default_0"),
        text_encoder_lora_layers=get_peft_model_state_dict(
            pipe.text_encoder, adapter_name="default_0"
        ),
        unet_lora_adapter_metadata=pipe.unet.peft_config["default_0"].to_dict(),
        text_encoder_lora_adapter_metadata=pipe.text_encoder.peft_config["default_0"].to_dict(),
    )
    for path in (tmp_path / "theirs", tmp_path / "theirs" / "pytorch_lora_weights.safetensors"):
        assert open_source(path).kind == "diffusers"
        here = through_import(tiny_base, path, made.prompt)
        torch.testing.assert_close(here, made.latents, atol=1e-5, rtol=0)


def test_our_own_artifacts_take_the_same_way(
    tiny_base: Any, make_artifact: Any, through_import: Any
) -> None:
    made = make_artifact(tiny_base, "lora", rank=4)
    for path in (made.folder, made.folder.parent):
        here = through_import(tiny_base, path, made.prompt)
        torch.testing.assert_close(here, made.latents, atol=0, rtol=0)


def test_a_copied_artifact_is_one(
    tiny_base: Any, make_artifact: Any, through_import: Any, tmp_path: Path
) -> None:
    made = make_artifact(tiny_base, "dreambooth")
    copy = export_artifact(made.folder, "diffusers", tmp_path / "copy").path
    # Without torchvision a feature extractor would be written under a name that older versions lack.
    assert json.loads((copy / "model_index.json").read_text())["feature_extractor"] == [None, None]
    here = through_import(tiny_base, copy, made.prompt)
    torch.testing.assert_close(here, made.latents, atol=0, rtol=0)


def test_other_users_may_read_what_is_exported_as_any_new_file(
    tiny_base: Any, make_artifact: Any, tmp_path: Path
) -> None:
    """ComfyUI often runs as another user, and safetensors 0.8 writes for the owner alone."""
    made = make_artifact(tiny_base, "lora", rank=4)
    (tmp_path / "plain").touch()
    usual = (tmp_path / "plain").stat().st_mode
    file = export_artifact(made.folder, "kohya", tmp_path / "dog.safetensors").path
    copy = export_artifact(made.folder, "diffusers", tmp_path / "copy").path
    assert {path.stat().st_mode for path in (file, *copy.iterdir())} == {usual}
    assert [path for path in tmp_path.iterdir() if path.name.endswith(".partial")] == []


def test_a_diffusers_folder_is_its_own_base(
    tiny_base: Any, make_artifact: Any, tmp_path: Path
) -> None:
    from finetune.base import load_base

    made = make_artifact(tiny_base, "dreambooth", train_text_encoder=True)
    (made.folder / "artifact.json").unlink()
    source = open_source(made.folder)
    assert source.kind == "pipeline"
    (config,) = bases_of([source], None)
    with attached(source, load_base(config), load_method) as note:
        assert (note.format, note.size) == ("pipeline", 16)


def test_the_base_is_taken_from_our_artifacts_or_asked_for(
    tiny_base: Any, make_artifact: Any, tmp_path: Path
) -> None:
    made = make_artifact(tiny_base, "lora", rank=4)
    path = export_artifact(made.folder, "kohya", tmp_path / "dog.safetensors").path
    foreign, ours = open_source(path), open_source(made.folder)
    with pytest.raises(ArtifactError, match=r"dog\.safetensors was made elsewhere.*--base"):
        bases_of([foreign], None)
    assert {config.source for config in bases_of([foreign, ours], None)} == {tiny_base.source}
    assert {config.source for config in bases_of([foreign, ours], "clay")} == {"clay"}


def test_our_artifact_on_another_base_is_refused(tiny_base: Any, make_artifact: Any) -> None:
    made = make_artifact(tiny_base, "lora", rank=4)
    note = made.folder / "artifact.json"
    values = json.loads(note.read_text())
    note.write_text(json.dumps({**values, "base_fingerprint": "00"}))
    with (
        pytest.raises(ArtifactError, match="was trained on the base"),
        attached(open_source(made.folder), tiny_base, load_method),
    ):
        pass
    assert tiny_base.current_fingerprint() == tiny_base.fingerprint


def test_notes_of_earlier_versions_are_still_read(tiny_base: Any, make_artifact: Any) -> None:
    made = make_artifact(tiny_base, "lora", rank=4)
    note = made.folder / "artifact.json"
    values = json.loads(note.read_text())
    assert (values.pop("family"), values.pop("prediction_type")) == ("sd", "v_prediction")
    note.write_text(json.dumps(values))
    path = export_artifact(made.folder, "kohya", made.folder.parent / "dog.safetensors").path
    assert len(load_file(path)) > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights.zip", "is no .safetensors file"),
        ("broken.safetensors", "cannot be read as a safetensors file"),
        ("refiner.safetensors", "is a checkpoint of another family"),
        ("strange.safetensors", "no embedding and no checkpoint"),
        ("peft", "is a folder of PEFT's own"),
        ("empty", "it holds no artifact.json"),
        ("gone", "there is no such folder"),
    ],
)
def test_what_is_no_artifact_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "weights.zip").write_bytes(b"PK")
    (tmp_path / "broken.safetensors").write_bytes(b"no header")
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "strange.safetensors")
    text = "conditioner.embedders.0.model.ln_final.bias"  # as in SDXL's refiner
    unet = "model.diffusion_model.out.0.bias"
    save_file({text: torch.ones(1), unet: torch.ones(1)}, tmp_path / "refiner.safetensors")
    for folder in ("peft", "empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=message):
        open_source(tmp_path / name)
