"""Captions by a tiny, random BLIP: deterministic, said, kept in the run folder, never beside photos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from finetune.captioner import load_captioner
from finetune.cli import app
from finetune.errors import ArtifactError

WORDS = ["a", "dog", "cat", "on", "the", "grass", "red", "blue", "sofa", "and"]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessorPil,
        BlipProcessor,
    )

    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS])
    )
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text = {
        "vocab_size": 16,
        "num_attention_heads": 2,
        "encoder_hidden_size": 16,
        "max_position_embeddings": 64,
    }
    tokens = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(
        text_config={**sizes, **text, **tokens, "num_attention_heads": 2, "projection_dim": 8},
        vision_config={**sizes, "num_attention_heads": 2, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config)
    # Random answers are all alike unless pictures weigh more.
    for name, parameter in model.named_parameters():
        if "crossattention" in name or "vision_model.embeddings" in name:
            parameter.data.mul_(30)
    model.save_pretrained(folder, safe_serialization=True)
    image_processor = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder


def test_captions_are_the_models_own_and_always_the_same(blip: Path) -> None:
    from transformers import AutoProcessor, BlipForConditionalGeneration

    pictures = [Image.new("RGB", (40, 30), color) for color in ("red", "blue")]
    caption = load_captioner(str(blip), device=torch.device("cpu"))
    texts = caption(pictures)
    processor = AutoProcessor.from_pretrained(blip)
    model = BlipForConditionalGeneration.from_pretrained(blip)
    for picture, text in zip(pictures, texts, strict=True):
        ids = model.generate(
            processor(images=picture, return_tensors="pt").pixel_values,
            max_new_tokens=40,
            do_sample=False,
        )
        assert text == processor.decode(ids[0], skip_special_tokens=True).strip()
        assert set(text.split()) <= {*WORDS, "[UNK]", "[DEC]"}
    assert load_captioner(str(blip), device=torch.device("cpu"))(pictures) == texts


@pytest.mark.parametrize("kind", ["missing", "empty", "no captioner"])
def test_what_is_no_captioner_is_refused(kind: str, tmp_path: Path, tiny_folder: Path) -> None:
    place = {"missing": tmp_path / "gone", "empty": tmp_path, "no captioner": tiny_folder}[kind]
    with pytest.raises(ArtifactError, match=r"^data\.caption_model: ") as caught:
        load_captioner(str(place), device=torch.device("cpu"))
    assert str(place) in str(caught.value)


@pytest.mark.parametrize("damage", ["weights cut", "no table", "no network"])
def test_a_damaged_captioner_is_refused(damage: str, blip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "blip"
    shutil.copytree(blip, folder)
    if damage == "weights cut":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        values: Any = [1] if damage == "no table" else {"vision_config": {"hidden_size": "x"}}
        config = json.loads((folder / "config.json").read_text())
        new = values if damage == "no table" else {**config, **values}
        (folder / "config.json").write_text(json.dumps(new))
    with pytest.raises(ArtifactError, match=r"^data\.caption_model: "):
        load_captioner(str(folder), device=torch.device("cpu"))


def test_a_run_says_and_keeps_what_was_written_and_leaves_the_photos_alone(
    blip: Path, run_values: Any, tmp_path: Path
) -> None:
    import yaml

    photos = tmp_path / "photos"
    photos.mkdir()
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (20, 20), color).save(photos / name)
    (photos / "b.txt").write_text("my own {subject}")
    values = run_values(
        "lora",
        data={"photos": str(photos), "caption_model": str(blip), "flip_probability": 0.0},
        prior={"kind": "none"},
        training={"num_steps": 2, "batch_size": 1},
    )
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(values))
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    result = CliRunner().invoke(app, ["train", str(config)])
    assert result.exit_code == 0, (result.output, result.exception)
    assert {path.name: path.read_bytes() for path in photos.iterdir()} == before
    kept = (Path(values["output"]) / "captions.jsonl").read_text().splitlines()
    (row,) = [json.loads(line) for line in kept]
    assert row["file_name"] == "a.png"
    assert "{subject}" in row["caption"]
    assert f"a.png was captioned: {row['caption']}" in result.output
    shown = CliRunner().invoke(app, ["inspect", str(config), "--output", str(tmp_path / "i.png")])
    assert shown.exit_code == 0, (shown.output, shown.exception)
    found = json.loads((tmp_path / "i.json").read_text())["training"]["photos"]
    assert list(found[0]["prompts"]) == [row["caption"].replace("{subject}", "sks dog")]
    assert list(found[1]["prompts"]) == ["my own sks dog"]
