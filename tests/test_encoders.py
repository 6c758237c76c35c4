"""Encoders of the published classes, tiny and random: preprocessing, embeddings, records, refusals."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPTokenizer

from finetune.encoders import (
    EMBEDDED_CLIP,
    EMBEDDED_JUDGE,
    PRESETS,
    Preprocessing,
    ScorersConfig,
    check_encoder_name,
    hide_background,
    load,
    load_encoder,
    load_text_encoder,
)
from finetune.encoders.pixels import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from finetune.errors import ArtifactError, ConfigError
from finetune.judge import Judge

TEXTS = ["a photo of a dog on the beach", "a red hat"]


def picture(width: int, height: int, *, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


PICTURES = [picture(60, 60), picture(80, 60, seed=1), picture(31, 47, seed=2)]


def tiny_clip(tokenizer: CLIPTokenizer) -> Any:
    from transformers import CLIPConfig, CLIPModel

    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    text = {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in names}}
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vision = {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(
        text_config=text | sizes | {"max_position_embeddings": 24},
        vision_config=vision | sizes,
        projection_dim=12,
    )
    return CLIPModel(config)


def tiny_vit(kind: str) -> Any:
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        ViTConfig,
        ViTModel,
    )

    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14 if kind != "dino" else 8,
    }
    if kind == "dino":
        return ViTModel(ViTConfig(intermediate_size=32, **sizes), add_pooling_layer=False)
    if kind == "dinov2":
        return Dinov2Model(Dinov2Config(**sizes))
    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind, as save_pretrained writes it."""
    from data_prep.clay.world import all_words
    from finetune.pretrain.tokenizer import build_tokenizer

    root = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    tokenizer = build_tokenizer(all_words())
    tiny_clip(tokenizer).save_pretrained(root / "clip")
    tokenizer.save_pretrained(root / "clip")
    for kind in ("dino", "dinov2", "registers"):
        tiny_vit(kind).save_pretrained(root / kind)
    return {path.name: path for path in root.iterdir()}


def changed(folder: Path, target: Path, **values: Any) -> Path:
    """A copy of an encoder's folder with other values in config.json."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | values))
    return target


@pytest.mark.parametrize("size_wh", [(60, 60), (80, 60), (50, 82), (32, 32), (20, 33)])
def test_clip_pixels_are_those_of_transformers_own_processor(size_wh: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = picture(*size_wh)
    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )(image, return_tensors="pt").pixel_values[0]
    ours = Preprocessing(32, 32, CLIP_MEAN, CLIP_STD)(image)
    resized_long = int(32 * max(size_wh) / min(size_wh))
    assert (resized_long - 32) % 4 != 3, (
        "the processor rounds these corners down, torchvision does not"
    )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_dino_pixels_are_the_middle_of_a_larger_picture() -> None:
    # A plain gradient: the values of a bicubic resize by a whole factor can be computed by hand.
    image = picture(256, 300, seed=3)
    pixels = Preprocessing(256, 224, IMAGENET_MEAN, IMAGENET_STD)(image)
    middle = np.asarray(image, np.float64)[38 : 38 + 224, 16 : 16 + 224] / 255
    expected = (middle - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    assert pixels.permute(1, 2, 0).numpy() == pytest.approx(expected, abs=1e-5)


def test_corners_between_two_pixels_go_to_the_even_one_as_in_torchvision() -> None:
    columns = np.broadcast_to(np.arange(11, dtype=np.uint8)[None, :, None], (8, 11, 3))
    image = Image.fromarray(np.ascontiguousarray(columns))
    raw = Preprocessing(8, 8, (0, 0, 0), (1, 1, 1))(image) * 255
    assert raw[0, 0].tolist() == pytest.approx(range(2, 10))  # 1.5 -> 2
    narrow = image.crop((0, 0, 9, 8))
    raw = Preprocessing(8, 8, (0, 0, 0), (1, 1, 1))(narrow) * 255
    assert raw[0, 0].tolist() == pytest.approx(range(8))  # 0.5 -> 0


def test_the_longer_side_is_cut_down_to_whole_pixels() -> None:
    image = picture(100, 67)
    expected = image.resize((int(32 * 100 / 67), 32), Image.Resampling.BICUBIC).crop((8, 0, 40, 32))
    found = Preprocessing(32, 32, (0, 0, 0), (1, 1, 1))(image)
    assert found.permute(1, 2, 0).numpy() * 255 == pytest.approx(
        np.asarray(expected, float), abs=1e-3
    )


def test_clip_embeddings_are_transformers_own(folders: dict[str, Path]) -> None:
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    encoder = load_text_encoder(str(folders["clip"]))
    model = CLIPModel.from_pretrained(folders["clip"]).eval()
    process = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    tokenizer = CLIPTokenizer.from_pretrained(folders["clip"])
    with torch.no_grad():
        pixels = process(PICTURES, return_tensors="pt")
        images = F.normalize(model.get_image_features(**pixels).pooler_output, dim=-1)
        tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
        texts = F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
    torch.testing.assert_close(encoder.embed_images(PICTURES), images, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.embed_texts(TEXTS), texts, atol=1e-5, rtol=1e-4)
    assert encoder.card.kind == "clip"
    assert encoder.card.dimensions == 12


@pytest.mark.parametrize(
    ("name", "kind"), [("dino", "dino"), ("dinov2", "dinov2"), ("registers", "dinov2")]
)
def test_dino_embeddings_are_the_class_token_of_the_last_layer(
    name: str, kind: str, folders: dict[str, Path]
) -> None:
    from transformers import AutoModel

    encoder = load_encoder(str(folders[name]))
    model = AutoModel.from_pretrained(folders[name]).eval()
    prepare = Preprocessing(64, 56, IMAGENET_MEAN, IMAGENET_STD)
    with torch.no_grad():
        states = model(torch.stack([prepare(image) for image in PICTURES])).last_hidden_state
    expected = F.normalize(states[:, 0], dim=-1)
    torch.testing.assert_close(encoder.embed_images(PICTURES), expected, atol=1e-5, rtol=1e-4)
    assert encoder.card.kind == kind
    assert "shorter side to 64 px (bicubic), middle 56 x 56 px" in encoder.card.preprocessing


def test_embeddings_are_unit_and_do_not_depend_on_batches(folders: dict[str, Path]) -> None:
    encoder = load_encoder(str(folders["dinov2"]))
    at_once, one_by_one = (encoder.embed_images(PICTURES, batch_size=size) for size in (8, 1))
    torch.testing.assert_close(at_once, one_by_one, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(at_once.norm(dim=1), torch.ones(3))
    assert encoder.embed_images([]).shape == (0, 16)


def test_the_embedded_encoder_scales_pictures_as_it_was_trained() -> None:
    encoder = load_text_encoder(EMBEDDED_CLIP)
    square = picture(128, 128)
    values = torch.from_numpy(np.asarray(square, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    from finetune.bases import EMBEDDED
    from finetune.dual_encoder import DualEncoder

    model = DualEncoder.from_pretrained(EMBEDDED / EMBEDDED_CLIP)
    with torch.no_grad():
        expected = F.normalize(model.get_image_features(values), dim=-1)
    torch.testing.assert_close(encoder.embed_images([square]), expected, atol=1e-5, rtol=1e-4)
    assert encoder.card.source == EMBEDDED_CLIP
    weights = (EMBEDDED / EMBEDDED_CLIP / "model.safetensors").read_bytes()
    assert encoder.card.sha256 == hashlib.sha256(weights).hexdigest()


def test_texts_beyond_the_context_are_cut_off(folders: dict[str, Path]) -> None:
    encoder = load_text_encoder(str(folders["clip"]))
    long = "a " * 40
    torch.testing.assert_close(encoder.embed_texts([long]), encoder.embed_texts([long + "dog"]))
    assert "the first 24 tokens" in encoder.card.preprocessing


def test_the_record_holds_all_that_shapes_a_number(folders: dict[str, Path]) -> None:
    card = load_encoder(str(folders["clip"])).card
    weights = (folders["clip"] / "model.safetensors").read_bytes()
    assert card.sha256 == hashlib.sha256(weights).hexdigest()
    assert card.name == "clip"
    assert card.scale.startswith("cosine of unit embeddings")
    assert json.loads(card.model_dump_json())["dimensions"] == 12


def test_a_preset_takes_weights_from_a_folder_and_keeps_its_name(folders: dict[str, Path]) -> None:
    card = load_encoder(f"clip-b32={folders['clip']}").card
    assert (card.name, card.source) == ("clip-b32", "clip")


def test_a_preset_refuses_weights_of_another_kind(folders: dict[str, Path]) -> None:
    with pytest.raises(ArtifactError, match="kind 'clip', but dino-s16 is of the kind 'dino'"):
        load_encoder(f"dino-s16={folders['clip']}")


def test_weights_in_parts_are_hashed_together(folders: dict[str, Path], tmp_path: Path) -> None:
    tiny_vit("dino").save_pretrained(tmp_path / "parts", max_shard_size="8KB")
    shards = sorted((tmp_path / "parts").glob("model-*.safetensors"))
    assert len(shards) > 1
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in shards]
    expected = hashlib.sha256("".join(hashes).encode()).hexdigest()
    assert load_encoder(str(tmp_path / "parts")).card.sha256 == expected


def test_a_folder_s_own_colours_are_used(folders: dict[str, Path], tmp_path: Path) -> None:
    target = changed(folders["clip"], tmp_path / "other")
    values = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (target / "preprocessor_config.json").write_text(json.dumps(values))
    encoder = load_encoder(str(target))
    assert "minus (0.5, 0.5, 0.5), divided by (0.25, 0.25, 0.25)" in encoder.card.preprocessing
    assert not torch.allclose(
        encoder.embed_images(PICTURES), load_encoder(str(folders["clip"])).embed_images(PICTURES)
    )


def test_an_unknown_kind_is_refused_with_the_list(folders: dict[str, Path], tmp_path: Path) -> None:
    target = changed(folders["clip"], tmp_path / "other", model_type="siglip")
    with pytest.raises(ArtifactError, match=r"'siglip'.*Known kinds: clip, dinov2, .*vit"):
        load_encoder(str(target))


def test_a_folder_that_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no config\.json"):
        load_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_encoder(str(tmp_path))


def test_weights_that_are_missing_or_damaged_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    target = changed(folders["dino"], tmp_path / "none")
    (target / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"there is no model\.safetensors"):
        load_encoder(str(target))
    (target / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_encoder(str(target))


def test_an_encoder_with_too_few_weights_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    target = changed(folders["dino"], tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(ArtifactError, match="weights are missing"):
        load_encoder(str(target))


def test_pickled_weights_are_read_for_presets_alone(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    target = changed(folders["dino"], tmp_path / "pickled")
    torch.save(load_file(target / "model.safetensors"), target / "pytorch_model.bin")
    (target / "model.safetensors").unlink()
    preset = load_encoder(f"dino-s16={target}")
    torch.testing.assert_close(
        preset.embed_images(PICTURES), load_encoder(str(folders["dino"])).embed_images(PICTURES)
    )
    with pytest.raises(ArtifactError, match=r"there is no model\.safetensors"):
        load_encoder(str(target))


def test_pickles_that_hold_more_than_tensors_run_nothing(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harmed",))

    target = changed(folders["dino"], tmp_path / "pickled")
    (target / "model.safetensors").unlink()
    torch.save({"harm": Harm()}, target / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="holds more than tensors"):
        load_encoder(f"dino-s16={target}")
    assert not (tmp_path / "harmed").exists()


def test_what_cannot_be_downloaded_says_so_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection and nothing stored.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ArtifactError) as caught:
        load_encoder("dino-s16")
    assert str(caught.value) == (
        "The scorer 'dino-s16' (facebook/dino-vits16) is not downloaded and could not be had from the Hub: "
        "no connection and nothing stored. Check the connection, or give a folder with its weights: "
        "dino-s16=FOLDER."
    )


def test_only_what_is_needed_is_downloaded(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[tuple[str, list[str]]] = []

    def stored(hub_id: str, *, allow_patterns: list[str]) -> str:
        asked.append((hub_id, allow_patterns))
        return str(folders["dino"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", stored)
    assert load_encoder("dino-s16").card.source == "facebook/dino-vits16"
    assert load_encoder("owner/name").card.name == "owner/name"
    patterns = ["*.json", "*.txt", "model*.safetensors"]
    assert asked == [("facebook/dino-vits16", patterns), ("owner/name", patterns)]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("clip-b33", "Did you mean 'clip-b32'"),
        ("clip-b33=/tmp", r"names no preset before its '='.*Did you mean 'clip-b32'"),
        ("clip-b32=/no/such/folder", "there is no folder /no/such/folder"),
        ("./nowhere", "no folder, and no Hub id"),
        ("", "There is no scorer ''"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_is_loaded(name: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        check_encoder_name(name)


def test_names_of_any_kind_pass(folders: dict[str, Path]) -> None:
    for name in (*PRESETS, EMBEDDED_CLIP, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"):
        check_encoder_name(name)
    check_encoder_name(str(folders["clip"]))


def test_the_embedded_judge_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "EMBEDDED", tmp_path)
    with pytest.raises(ConfigError, match=r"'clay-judge' is not in this copy.*finetune pretrain"):
        check_encoder_name(EMBEDDED_JUDGE)
    judge = Judge(
        labels={"class": ("dog", "cat")}, image_size=32, channels=(16,), depths=(1,), identity_dim=8
    ).eval()
    judge.save_pretrained(tmp_path / EMBEDDED_JUDGE)
    encoder = load_encoder(EMBEDDED_JUDGE)
    assert (encoder.card.name, encoder.card.source, encoder.card.kind) == (EMBEDDED_JUDGE,) * 3
    images = [picture(40, 36)]
    torch.testing.assert_close(encoder.embed_images(images), judge.embed_images(images))
    with pytest.raises(ConfigError, match="reads no texts"):
        load_text_encoder(EMBEDDED_JUDGE)
    assert ScorersConfig().resolved("clay").prompt == EMBEDDED_CLIP


def test_an_encoder_of_pictures_alone_reads_no_texts(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="reads no texts"):
        load_text_encoder(str(folders["dino"]))
    with pytest.raises(ConfigError, match="reads no texts"):
        load_encoder(str(folders["dino"])).embed_texts(TEXTS)


def test_scorers_follow_the_base_where_they_are_not_named() -> None:
    assert ScorersConfig().resolved("clay") == ScorersConfig(
        subject=(EMBEDDED_CLIP,), prompt=EMBEDDED_CLIP
    )
    published = ScorersConfig(subject=("dino-s16",), prompt="clip-b32")
    assert ScorersConfig().resolved("stable-diffusion-v1-5/stable-diffusion-v1-5") == published
    assert ScorersConfig().resolved(None) == published
    mine = ScorersConfig(subject=("dinov2-s14", "clip-b32"), prompt="clip-l14")
    assert mine.resolved("clay") == mine


def test_hidden_backdrops_are_grey_and_the_subject_stays() -> None:
    photo, mask = picture(8, 6), Image.new("L", (8, 6), 0)
    mask.paste(255, (2, 1, 5, 4))
    found = np.asarray(hide_background(photo, mask))
    assert (found[1:4, 2:5] == np.asarray(photo)[1:4, 2:5]).all()
    outside = np.ones((6, 8), bool)
    outside[1:4, 2:5] = False
    assert (found[outside] == 128).all()
    with pytest.raises(ValueError, match="does not fit"):
        hide_background(photo, Image.new("L", (4, 4)))
