"""The parts a base is made of: linear start, contrast, tokenizer, resumable stages."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from data_prep.clay.world import Identity, Pose, View, all_words
from finetune.errors import CheckpointError
from finetune.optim import ExponentialMovingAverage, learning_rate_factor
from finetune.pretrain.autoencoder import AutoencoderConfig, AutoencoderStage
from finetune.pretrain.contrast import contrastive_loss
from finetune.pretrain.data import Pictures
from finetune.pretrain.linear_start import principal_components, start_linear
from finetune.pretrain.stage import run_stage
from finetune.pretrain.tokenizer import build_tokenizer


def smooth_pictures(count: int = 48, size: int = 64) -> Pictures:
    """Pictures of broad colour waves."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size] / size
    waves = []
    for _ in range(count):
        fx, fy, phase = rng.uniform(0, 3, 3), rng.uniform(0, 3, 3), rng.uniform(0, 6, 3)
        wave = np.sin(x[..., None] * fx * 4 + y[..., None] * fy * 4 + phase)
        waves.append(((wave * 0.5 + 0.5) * 255).astype(np.uint8))
    view = View("in the snow", "day", "photo", None, Pose(), 0, 0, 3, (0, 0, 0), 0, 0)
    identity = Identity("dog", "red", "plain", "blue", 0, 0)
    return Pictures(np.stack(waves), [["a dog"]] * count, [(identity, view)] * count, "waves")


def test_principal_components_equal_numpy_s_svd() -> None:
    samples = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) @ torch.diag(
        torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    )
    mean, directions, deviations = principal_components(samples, 3)
    centred = (samples - samples.mean(0)).numpy()
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(mean.numpy(), samples.mean(0).numpy())
    np.testing.assert_allclose(deviations.numpy(), singular[:3] / math.sqrt(199), rtol=1e-4)
    for ours, theirs in zip(directions.numpy(), right[:3], strict=True):
        assert abs(float(ours @ theirs)) == pytest.approx(1, abs=1e-4)


def test_autoencoder_starts_as_a_sharp_thumbnail_whose_coarse_latents_are_larger() -> None:
    """Random weights have a mean absolute error of about 0.5 on these; repeating the mean colour of
    each 8 × 8 patch is what the linear start does."""
    pictures = smooth_pictures()
    pixels = pictures.pixel_values(list(range(48)))
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 96, 96),
        latent_channels=8,
        norm_num_groups=2,
    )
    with torch.no_grad():
        before = (vae.decode(vae.encode(pixels).latent_dist.mode()).sample - pixels).abs().mean()
    start_linear(vae, pixels)
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
        after = (vae.decode(latents).sample - pixels).abs().mean()
        patches = torch.nn.functional.interpolate(
            torch.nn.functional.avg_pool2d(pixels, 8), scale_factor=8
        )
    thumbnail = (patches - pixels).abs().mean()
    assert float(before) > 0.4
    assert float(after) < 1.5 * float(thumbnail)
    spread = latents.std((0, 2, 3))
    assert 0.5 < float(spread[:3].mean()) < 2
    assert float(spread[0]) > 2 * float(spread[-1])


def test_contrastive_loss_is_clip_s_when_all_captions_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(5, 8, generator=generator), dim=-1)
    texts = torch.nn.functional.normalize(torch.randn(5, 8, generator=generator), dim=-1)
    logits = 7.0 * images @ texts.T
    rows = -logits.log_softmax(1).diagonal().mean()
    columns = -logits.log_softmax(0).diagonal().mean()
    ours = contrastive_loss(images, texts, torch.arange(5), torch.tensor(7.0))
    torch.testing.assert_close(ours, (rows + columns) / 2)


def test_contrastive_loss_shares_a_caption_among_its_pictures_by_hand() -> None:
    """Two pictures share caption 0: each is worth one half of that caption's target."""
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    texts = torch.eye(2)
    e = math.e
    to_text = -math.log(e / (e + 1))
    first = -math.log(e / (2 * e + 1))
    second = -math.log(e / (e + 2))
    expected = (to_text + (first + second) / 2) / 2
    ours = contrastive_loss(images, texts, torch.tensor([0, 0, 1]), torch.tensor(1.0))
    assert float(ours) == pytest.approx(expected)


def test_every_word_of_the_world_is_one_token_and_other_words_still_come_out(
    tmp_path: Path,
) -> None:
    from transformers import CLIPTokenizer

    build_tokenizer(all_words()).save_pretrained(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    for word in all_words():
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1, word
    assert tokenizer.tokenize("a photo of a SKS dog")[4] == "sks</w>"
    ids = tokenizer("a zebra, ünlike öthers", add_special_tokens=False).input_ids
    assert tokenizer.decode(ids).replace(" ", "") == "azebra,ünlikeöthers"
    assert tokenizer.model_max_length == 24


def test_moving_average_by_hand() -> None:
    parameter = torch.tensor([1.0])
    average = ExponentialMovingAverage([parameter], decay=0.5)
    parameter.fill_(3.0)
    average.update([parameter])  # warm-up: decay min(0.5, 2 / 11)
    assert float(average.averages[0]) == pytest.approx(1 * 2 / 11 + 3 * 9 / 11)
    before = average.averages[0].clone()
    average.swap([parameter])
    assert torch.equal(parameter, before)
    assert float(average.averages[0]) == 3.0


def test_learning_rate_schedules_by_hand() -> None:
    def factors(schedule: str, warmup_steps: int = 0) -> list[float]:
        return [
            learning_rate_factor(s, num_steps=4, schedule=schedule, warmup_steps=warmup_steps)
            for s in range(4)
        ]

    assert factors("constant", 2) == [0.5, 1.0, 1.0, 1.0]
    assert factors("linear") == [1.0, 0.75, 0.5, 0.25]
    assert factors("cosine") == pytest.approx([1, 0.5 + 0.5**0.5 / 2, 0.5, 0.5 - 0.5**0.5 / 2])


def test_a_stage_stopped_and_resumed_equals_one_that_was_not(tmp_path: Path) -> None:
    pictures = smooth_pictures(16, 32)
    config = AutoencoderConfig(
        num_steps=4, batch_size=2, learning_rate=1e-3, crop_size=16, checkpoint_every=2
    )
    whole, first = AutoencoderStage(config, pictures), AutoencoderStage(config, pictures)
    # The start solves least squares on these flat pictures, which LAPACK rounds as memory lies.
    first.vae.load_state_dict(whole.vae.state_dict())
    assert list(run_stage(whole, tmp_path / "whole")) == [1, 2, 3, 4]
    for step in run_stage(first, tmp_path / "parts"):
        if step == 3:  # dies after the checkpoint of step 2
            break
    second = AutoencoderStage(config, pictures)
    assert list(run_stage(second, tmp_path / "parts")) == [3, 4]
    for name, value in whole.vae.state_dict().items():
        assert torch.equal(value, second.vae.state_dict()[name]), name


def test_a_stage_goes_on_with_the_settings_it_began_with(tmp_path: Path) -> None:
    pictures = smooth_pictures(16, 32)
    config = AutoencoderConfig(
        num_steps=2, batch_size=2, learning_rate=1e-3, crop_size=16, checkpoint_every=2
    )
    list(run_stage(AutoencoderStage(config, pictures), tmp_path))
    longer = config.model_copy(update={"num_steps": 3, "sample_every": 7})
    assert list(run_stage(AutoencoderStage(longer, pictures), tmp_path)) == [3]
    for name, value, match in (
        ("learning_rate", 2e-3, "autoencoder.learning_rate 0.001, not 0.002"),
        ("block_out_channels", (32, 64, 96, 128, 96), "block_out_channels"),
        ("num_steps", 2, "learnt for 3 steps already"),
    ):
        other = config.model_copy(update={"num_steps": 3, name: value})
        with pytest.raises(CheckpointError, match=match):
            list(run_stage(AutoencoderStage(other, pictures), tmp_path))
