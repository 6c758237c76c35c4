"""A1111 embeddings: names, trigger word, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.errors import ArtifactError
from finetune.export import a1111, export_artifact
from finetune.export.imported import fit, open_source, with_token
from finetune.export.reading import read_safetensors
from finetune.families import family_named
from finetune.families.base import ForeignNames, ModelVersion

NAMES = family_named("sd").foreign_names


@pytest.fixture
def plain(tiny_folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(tiny_folder)


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_round_trip_gives_the_same_pictures_in_diffusers_and_here(
    tiny_base: Any, plain: Any, make_artifact: Any, outside: Any, through_import: Any,
    tmp_path: Path, num_vectors: int,
) -> None:  # fmt: skip
    made = make_artifact(
        tiny_base, "textual_inversion", num_vectors=num_vectors, initializer_token="dog"
    )
    done = export_artifact(made.folder, "a1111", tmp_path / "my-dog.safetensors")
    assert "write 'my-dog' where you wrote <subject>" in done.remarks[0]
    state, header = read_safetensors(done.path)
    assert {key: tensor.shape for key, tensor in state.items()} == {"emb_params": (num_vectors, 16)}
    assert header["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert header["modelspec.trigger_phrase"] == "my-dog"
    prompt = made.prompt.replace("<subject>", "my-dog")
    frozen = outside(plain, prompt)
    plain.load_textual_inversion(done.path, token="my-dog")
    assert (frozen - made.latents).abs().max() > 0.01
    torch.testing.assert_close(outside(plain, prompt), made.latents, atol=1e-5, rtol=0)
    here = through_import(tiny_base, done.path, prompt)
    torch.testing.assert_close(here, made.latents, atol=1e-5, rtol=0)


def test_diffusers_takes_the_key_for_the_token_unless_it_is_told(
    tiny_base: Any, plain: Any, make_artifact: Any, tmp_path: Path
) -> None:
    made = make_artifact(tiny_base, "textual_inversion", initializer_token="dog")
    path = export_artifact(made.folder, "a1111", tmp_path / "my-dog.safetensors").path
    plain.load_textual_inversion(path)
    assert "emb_params" in plain.tokenizer.get_vocab()
    assert "my-dog" not in plain.tokenizer.get_vocab()


def test_two_text_encoders_make_a_file_of_two_keys(plain: Any) -> None:
    """SDXL's file, which diffusers reads one encoder at a time only."""
    version = ModelVersion("SDXL", "sdxl_base_v1-0", {})
    keys = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    names = ForeignNames({}, keys, {}, {}, {}, version)
    rows = {"text_encoder": torch.ones(8), "text_encoder_2": torch.ones(2, 12)}
    state = a1111.to_a1111(rows, names)
    assert {key: tensor.shape for key, tensor in state.items()} == {
        "clip_l": (1, 8),
        "clip_g": (2, 12),
    }
    with pytest.raises(ValueError, match="state dictionary"):
        plain.load_textual_inversion(state, token="<dog>")


def test_an_embedding_of_another_family_or_width_is_refused(tiny_base: Any, tmp_path: Path) -> None:
    path = tmp_path / "xl.safetensors"
    save_file({"clip_l": torch.ones(1, 16), "clip_g": torch.ones(1, 16)}, path)
    with pytest.raises(ArtifactError, match="is an embedding for SDXL"):
        fit(open_source(path), tiny_base)
    save_file({"emb_params": torch.ones(1, 768)}, path)
    with pytest.raises(
        ArtifactError, match=r"768 numbers \(as for Stable Diffusion 1\.x\).*takes 16"
    ):
        fit(open_source(path), tiny_base)
    save_file({"emb_params": torch.ones(1, 1, 16)}, path)
    with pytest.raises(ArtifactError, match="one row or several"):
        fit(open_source(path), tiny_base)


@pytest.mark.parametrize("stem", ["MyDog", "my_dog", "dog", "a b"])
def test_any_file_name_serves_as_trigger_word(
    tiny_base: Any, make_artifact: Any, through_import: Any, tmp_path: Path, stem: str
) -> None:
    """Also one with capitals, although CLIP's tokenizer knows none, and one that is a word already."""
    made = make_artifact(tiny_base, "textual_inversion", num_vectors=2, initializer_token="dog")
    path = export_artifact(made.folder, "a1111", tmp_path / f"{stem}.safetensors").path
    note, _ = fit(open_source(path), tiny_base)
    assert note.subject in (stem.lower(), f"<{stem}>")
    typed = note.subject if stem == "dog" else stem
    prompt = with_token(made.prompt.replace("<subject>", typed), note)
    here = through_import(tiny_base, path, prompt)
    torch.testing.assert_close(here, made.latents, atol=1e-5, rtol=0)


def test_diffusers_embeddings_keep_their_token(
    tiny_base: Any, make_artifact: Any, through_import: Any, tmp_path: Path
) -> None:
    made = make_artifact(tiny_base, "textual_inversion", num_vectors=2, initializer_token="dog")
    folder = tmp_path / "theirs"
    folder.mkdir()
    save_file(
        load_file(made.folder / "learned_embeds.safetensors"), folder / "learned_embeds.safetensors"
    )
    assert open_source(folder).subject == "<subject>"
    here = through_import(tiny_base, folder, made.prompt)
    torch.testing.assert_close(here, made.latents, atol=1e-5, rtol=0)


def test_a_pickle_is_read_only_when_allowed_and_then_only_tensors(
    tiny_base: Any, make_artifact: Any, through_import: Any, tmp_path: Path
) -> None:
    """The first form of A1111 files; with a `ParameterDict` in it the safe reader declines."""
    made = make_artifact(tiny_base, "textual_inversion", num_vectors=2, initializer_token="dog")
    (rows,) = load_file(made.folder / "learned_embeds.safetensors").values()
    path = tmp_path / "old.pt"
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, "name": "x"}, path)
    with pytest.raises(ArtifactError, match="is a pickle, which can run code"):
        open_source(path)
    prompt = made.prompt.replace("<subject>", "old")
    here = through_import(tiny_base, path, prompt, allow_pickle=True)
    torch.testing.assert_close(here, made.latents, atol=1e-5, rtol=0)
    torch.save({"string_to_param": torch.nn.ParameterDict({"*": rows})}, path)
    with pytest.raises(ArtifactError, match="holds more than tensors"):
        open_source(path, allow_pickle=True)
    path.write_bytes(b"")
    with pytest.raises(ArtifactError, match="is damaged"):
        open_source(path, allow_pickle=True)
    torch.save({"string_to_param": rows}, path)
    with pytest.raises(ArtifactError, match="is no table"):
        fit(open_source(path, allow_pickle=True), tiny_base)
    torch.save({"lora_unet_conv_in.alpha": 1.0}, path)
    with pytest.raises(ArtifactError, match=r"lora_unet_conv_in\.alpha is no tensor"):
        open_source(path, allow_pickle=True)
