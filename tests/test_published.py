"""Shipped configurations: the published models' sizes, and what a single file gets from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import save_file

from data_prep.clay.world import all_words
from finetune.base import BaseConfig, load_base, skeleton_of
from finetune.errors import ArtifactError
from finetune.export.single_file import to_single_file
from finetune.families import family_named, find_family, parts, single_files
from finetune.pretrain.tokenizer import build_tokenizer

COUNTS = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd21": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "text_encoder_2": 694_659_840, "text_encoder": 123_060_480},
    "sd35": {"transformer": 2_243_171_520, "vae": 83_819_683, "text_encoder_3": 4_762_310_656},
    "flux": {"transformer": 11_901_408_320, "vae": 83_819_683, "text_encoder": 123_060_480},
}
"""Numbers of parameters of the published models."""
PROBE = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_networks_have_the_published_numbers_of_parameters(name: str) -> None:
    folder = parts.PUBLISHED / name
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    assert find_family(index, name).name == {"sd15": "sd", "sd21": "sd", "sd35": "sd3"}.get(
        name, name
    )
    libraries = {"diffusers": diffusers, "transformers": transformers}
    for part, expected in COUNTS[name].items():
        library, class_name = index[part]
        network_class = getattr(libraries[library], class_name)
        network = parts._shapes_of(folder / part, network_class, torch.float32)
        assert sum(p.numel() for p in network.parameters()) == expected, part


@pytest.mark.parametrize(
    ("keys", "metadata", "expected"),
    [
        ({PROBE: (320, 768)}, {}, "sd15"),
        ({PROBE: (320, 1024)}, {"modelspec.prediction_type": "v"}, "sd21"),
        ({"conditioner.embedders.0.transformer.x": (1,)}, {}, "sdxl"),
        ({PROBE: (320, 1024)}, {}, None),
        ({"cond_stage_model.x": (1,)}, {}, None),
    ],
)
def test_a_single_file_s_version_is_told_from_its_header(
    tmp_path: Path, keys: dict[str, Any], metadata: dict[str, str], expected: str | None
) -> None:
    """What Stable Diffusion 2.x predicts cannot be seen from its weights, and is never assumed."""
    path = tmp_path / "model.safetensors"
    save_file({key: torch.zeros(shape) for key, shape in keys.items()}, path, metadata)
    if expected is not None:
        assert single_files.published_name(path) == expected
        return
    with pytest.raises(ArtifactError, match=r"which version.*base\.single_file_config"):
        single_files.published_name(path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache, offline, empty."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_missing_tokenizer_is_one_sentence(hub: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({PROBE: torch.zeros(320, 768), "cond_stage_model.x": torch.zeros(1)}, path)
    with pytest.raises(ArtifactError, match=r"tokenizer openai/clip.*base\.single_file_config"):
        skeleton_of(BaseConfig(source=str(path)))


def test_single_file_loads_offline_with_shipped_configurations(
    hub: Path, family_folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a tiny SDXL, whose configurations stand in for the shipped ones; no tokenizer among them."""
    folder = family_folders("sdxl")
    path, names = tmp_path / "model.safetensors", family_named("sdxl").foreign_names
    assert names is not None
    state = to_single_file(folder, names)
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    for item in folder.rglob("*.json"):
        if "tokenizer" not in item.parent.name:
            copy = tmp_path / "published" / "sdxl" / item.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(item, copy)
    monkeypatch.setattr(single_files, "PUBLISHED", tmp_path / "published")
    root = hub / "models--openai--clip-vit-large-patch14"
    build_tokenizer(all_words()).save_pretrained(root / "snapshots" / "0123")
    monkeypatch.setattr(single_files, "_FILES", ["tokenizer.json", "tokenizer_config.json"])
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0123")
    config = BaseConfig(source=str(path))
    base, whole = load_base(config), load_base(BaseConfig(source=str(folder)))
    assert base.fingerprint == whole.fingerprint
    pads = {name: t.pad_token for name, t in base.components.tokenizers.items()}
    assert pads == {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}
    skeleton = skeleton_of(config)
    shapes = {n: p.shape for n, p in skeleton.denoiser.named_parameters()}
    assert shapes == {n: p.shape for n, p in base.denoiser.named_parameters()}
