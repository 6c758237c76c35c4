"""The recipe of a base from pictures to a diffusers folder, at a tiny size."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.clay import world
from data_prep.clay.dataset import describe
from finetune.config import apply_overrides, read_yaml, validate
from finetune.errors import ArtifactError, CheckpointError
from finetune.pretrain.recipe import STAGES, PretrainConfig, build_stage, run_stages

ROOT = Path(__file__).resolve().parents[1]
NUM_PICTURES = 64


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A world's folder whose pictures are plain colour waves, as nothing is rendered here."""
    folder = tmp_path / "clay"
    (folder / "images").mkdir(parents=True)
    (folder / "shards").mkdir()
    generator, rows = np.random.default_rng(0), []
    y, x = np.mgrid[0:64, 0:64] / 64
    for index in range(NUM_PICTURES):
        rng = random.Random(f"recipe {index // 2}")
        identity = world.sample_identity(rng)
        view = world.sample_view(random.Random(index), identity)
        fx, fy, phase = generator.uniform(0, 9, (3, 3))
        wave = np.sin(x[..., None] * fx + y[..., None] * fy + phase)
        name = f"images/{index:06d}.jpg"
        Image.fromarray(((wave * 0.5 + 0.5) * 255).astype(np.uint8)).save(folder / name)
        captions = [world.caption(identity, view, rng) for _ in range(2)]
        rows.append({"file_name": name, "captions": captions, **describe(identity, view)})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "shards" / "000000.jsonl").write_text(text)
    return folder


def recipe(pictures: Path, *overrides: str) -> PretrainConfig:
    """The shipped recipe, tiny: two steps a stage on small networks."""
    out = pictures.parent
    tiny = [
        f"pictures={pictures}",
        f"work_folder={out / 'work'}",
        f"output={out / 'base'}",
        f"scorer_output={out / 'clip'}",
        f"judge_output={out / 'judge'}",
        "autoencoder.crop_size=32",
        "autoencoder.block_out_channels=[16,48,64,80,80]",
        "contrast.hidden_size=48",
        "contrast.text_layers=1",
        "contrast.image_channels=[16,24,32,40]",
        "contrast.max_shift=2",
        "judge.channels=[16,24]",
        "judge.depths=[1,1]",
        "denoiser.block_out_channels=[32,64]",
        "denoiser.layers_per_block=1",
    ]
    for stage in STAGES[:-1]:
        tiny += [f"{stage}.{key}=2" for key in ("num_steps", "checkpoint_every", "sample_every")]
        tiny += [f"{stage}.batch_size=8", f"{stage}.warmup_steps=0"]
    values = apply_overrides(read_yaml(ROOT / "configs/clay/pretrain.yaml"), [*tiny, *overrides])
    return validate(PretrainConfig, values, "test")


def run(config: PretrainConfig, *stages: str, max_minutes: float | None = None) -> list[str]:
    said: list[str] = []
    run_stages(config, stages or STAGES, max_minutes=max_minutes, announce=said.append)
    return said


def test_all_stages_make_a_base_that_plain_diffusers_runs(pictures: Path) -> None:
    from diffusers import StableDiffusionPipeline

    from finetune.dual_encoder import DualEncoder
    from finetune.judge import Judge

    config = recipe(pictures)
    run(config)
    pipe = StableDiffusionPipeline.from_pretrained(config.output)
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a photo of a dog", height=64, width=64, num_inference_steps=2).images[0]
    assert picture.size == (64, 64)
    assert np.isfinite(np.asarray(picture, float)).all()
    work = config.work_folder
    stored = pipe.vae.state_dict()
    from safetensors.torch import load_file

    first = load_file(work / "autoencoder" / "vae" / "diffusion_pytorch_model.safetensors")
    last = load_file(work / "decoder" / "vae" / "diffusion_pytorch_model.safetensors")
    for name, value in first.items():
        learnt = name.startswith(("decoder", "post_quant_conv"))
        assert torch.equal(value, last[name]) != learnt or not value.any(), name
        torch.testing.assert_close(stored[name], last[name], atol=2e-3, rtol=2e-3)
    latents = pipe.vae.config.scaling_factor
    assert latents > 0
    assert DualEncoder.from_pretrained(config.scorer_output).image_size == 64
    told = Judge.from_pretrained(config.judge_output).tell([picture])
    assert told[0]["class"] in world.CLASSES


def test_a_stage_names_the_one_that_is_missing(pictures: Path) -> None:
    config = recipe(pictures)
    with pytest.raises(ArtifactError, match="run --stage autoencoder"):
        run(config, "denoiser")
    with pytest.raises(ArtifactError, match="run --stage denoiser"):
        run(config, "decoder")
    with pytest.raises(ArtifactError, match="run --stage denoiser"):
        run(config, "assemble")


def test_networks_that_do_not_belong_together_are_not_put_together(pictures: Path) -> None:
    config = recipe(pictures)
    run(config)
    vae = config.work_folder / "autoencoder" / "vae" / "config.json"
    vae.write_text(vae.read_text().replace("scaling_factor", "scaling_factor "))
    for stage in ("decoder", "assemble"):
        with pytest.raises(ArtifactError, match="denoiser .* learnt from another autoencoder"):
            run(config, stage)


def test_a_stage_without_time_is_not_finished(pictures: Path) -> None:
    config = recipe(pictures)
    said = run(config, "autoencoder", "contrast", max_minutes=0)
    assert said[-1].startswith("autoencoder is not finished")
    assert not (config.work_folder / "autoencoder" / "vae").exists()
    assert run(config, "autoencoder") == ["stage: autoencoder"]


def test_a_checkpoint_of_other_pictures_is_refused(pictures: Path) -> None:
    config = recipe(pictures)
    run(config, "contrast")
    shard = pictures / "shards" / "000000.jsonl"
    shard.write_text("".join(shard.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(CheckpointError, match="another pictures"):
        run(config, "contrast")


def test_kept_latents_are_made_anew_for_another_autoencoder(pictures: Path) -> None:
    config = recipe(pictures)
    run(config, "autoencoder", "contrast")
    before: Any = build_stage("denoiser", config)
    again: Any = build_stage("denoiser", config)
    assert torch.equal(before.encoded.means, again.encoded.means)
    kept = config.work_folder / "encoded.safetensors"
    kept.write_bytes(kept.read_bytes()[:-100])  # as a full disk would leave it
    mended: Any = build_stage("denoiser", config)
    assert torch.equal(before.encoded.means, mended.encoded.means)
    vae = before.vae
    with torch.no_grad():
        vae.quant_conv.bias.add_(1.0)
    vae.save_pretrained(config.work_folder / "autoencoder" / "vae")
    other: Any = build_stage("denoiser", config)
    assert not torch.equal(before.encoded.means, other.encoded.means)


def test_decoder_s_guesses_are_the_latents_where_the_denoiser_is_exact(pictures: Path) -> None:
    """With v = alpha·noise - sigma·x0 known, the guess of x0 is x0 itself (Salimans & Ho 2022, eq. 10)."""
    config = recipe(pictures, "decoder.clean_share=0")
    run(config, "autoencoder", "contrast", "denoiser")
    stage: Any = build_stage("decoder", config)
    indices = torch.arange(4)
    latents = stage.encoded.means[indices].float() * stage.vae.config.scaling_factor

    class Exact(torch.nn.Module):
        def forward(self, noisy: Any, timesteps: Any, prompt_embeds: Any) -> Any:
            alphas = stage.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
            noise = (noisy - alphas.sqrt() * latents) / (1 - alphas).sqrt()
            velocity = alphas.sqrt() * noise - (1 - alphas).sqrt() * latents
            return type("Output", (), {"sample": velocity})()

    stage.unet = Exact()
    guesses = stage._guesses(indices, torch.Generator().manual_seed(1))
    torch.testing.assert_close(guesses, latents, atol=0.02, rtol=0.02)


def test_pictures_are_read_as_bytes(pictures: Path) -> None:
    from finetune.pretrain.data import load_pictures

    loaded = load_pictures(pictures)
    content = (pictures / "images" / "000005.jpg").read_bytes()
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(loaded.pixels[5], expected)
    values = loaded.pixel_values([5])[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(values, expected / 127.5 - 1, atol=1e-6)
