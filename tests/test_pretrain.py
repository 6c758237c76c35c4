"""The parts a base is made of: linear start, contrast, tokenizer, resumable stages."""

from __future__ import annotations

import csv
import itertools
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from data_prep.clay.world import (
    ACCESSORIES,
    PATTERNS,
    PLACES,
    STYLES,
    TIMES,
    Identity,
    Pose,
    View,
    all_words,
    caption,
)
from finetune.config import validate
from finetune.errors import CheckpointError, ConfigError
from finetune.optim import ExponentialMovingAverage, learning_rate_factor
from finetune.pretrain.autoencoder import AutoencoderConfig, AutoencoderStage
from finetune.pretrain.contrast import ContrastConfig, ContrastStage, contrastive_loss
from finetune.pretrain.data import Pictures
from finetune.pretrain.denoiser import DenoiserConfig, cell_weights
from finetune.pretrain.judge import JudgeConfig
from finetune.pretrain.linear_start import principal_components, start_linear
from finetune.pretrain.loss_log import LossLog
from finetune.pretrain.stage import StageConfig, run_stage
from finetune.pretrain.tokenizer import MAX_TOKENS, build_tokenizer


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
    covers = np.zeros((count, 2, 8, 8), np.uint8)
    truths = [(identity, view)] * count
    return Pictures(np.stack(waves), [["a dog"]] * count, truths, covers, "waves")


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_stage_with_a_checkpoint(number: int, tmp_path: Path) -> None:
    config = AutoencoderConfig(num_steps=4, batch_size=2, learning_rate=1e-3, crop_size=16)
    stage = AutoencoderStage(config, smooth_pictures(16, 32))
    steps = run_stage(stage, tmp_path)
    assert next(steps) == 1
    os.kill(os.getpid(), number)
    with pytest.raises(SystemExit) as end:
        next(steps)
    assert end.value.code == 128 + number
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_a_loss_that_is_no_number_ends_a_stage_before_it_reaches_a_weight(tmp_path: Path) -> None:
    config = AutoencoderConfig(
        num_steps=4, batch_size=2, learning_rate=1e-3, crop_size=16, checkpoint_every=1
    )
    stage = AutoencoderStage(config, smooth_pictures(16, 32))
    steps = run_stage(stage, tmp_path)
    assert next(steps) == 1
    with torch.no_grad():
        stage.vae.decoder.conv_out.bias.fill_(math.nan)
    kept = {key: value.clone() for key, value in stage.vae.state_dict().items()}
    with pytest.raises(ConfigError, match=r"autoencoder is nan at step 2.*learning_rate"):
        next(steps)
    for key, value in stage.vae.state_dict().items():
        torch.testing.assert_close(value, kept[key], rtol=0, atol=0, equal_nan=True)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_losses_are_a_table_that_goes_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    log = LossLog(path, step=0)
    for step in (50, 100, 150):
        log.write(step, {"loss": 1 / step, "l1": 0.5})
    log = LossLog(path, step=100)
    log.write(150, {"l1": 0.25, "loss": 2.0})
    log.write(200, {"loss": 3.0})
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["50", "100", "150", "200"]
    assert [row["loss"] for row in rows] == ["0.02000", "0.01000", "2.00000", "3.00000"]
    assert [row["l1"] for row in rows] == ["0.50000", "0.50000", "0.25000", ""]
    whole = "step,seconds,loss\n50,1000,1.0\n"
    for cut in ("", "1", "100", "100,", "100,2000,0."):  # by a full disk
        path.write_text(whole + cut)
        LossLog(path, step=100).write(100, {"loss": 1.0})
        assert path.read_text().startswith(whole)
        step, seconds, loss = path.read_text().removeprefix(whole).split(",")
        assert (step, loss) == ("100", "1.00000\n")
        assert 1000 <= int(seconds) < 2000


def test_cells_of_the_subject_weigh_more_by_hand() -> None:
    """Latents of 2 x 2: a quarter of the first cell is subject, half of that worn; the last is subject."""
    covers = np.zeros((1, 2, 8, 8), np.uint8)
    covers[0, 0, :2, :2] = covers[0, 0, 4:, 4:] = 255
    covers[0, 1, :2, :1] = 255
    config = DenoiserConfig(**COMMON, subject_weight=4, worn_weight=8)
    weights = cell_weights(config, covers, (2, 2))[0]
    expected = torch.tensor([[1 + 4 / 4 + 8 / 8, 1.0], [1.0, 1 + 4.0]])
    torch.testing.assert_close(weights, expected / expected.mean())
    plain = cell_weights(DenoiserConfig(**COMMON, subject_weight=0, worn_weight=0), covers, (2, 2))
    assert (plain == 1).all()


COMMON = {"num_steps": 1, "batch_size": 2, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("config", "changes", "told"),
    [
        (AutoencoderConfig, {"block_out_channels": [64, 128]}, "three or more even numbers"),
        (AutoencoderConfig, {"block_out_channels": [33, 64, 96, 128]}, "three or more even"),
        (AutoencoderConfig, {"block_out_channels": [64, 64, 128, 128]}, "a larger number"),
        (AutoencoderConfig, {"block_out_channels": [8, 64, 128, 128]}, "begin with 10"),
        (AutoencoderConfig, {"block_out_channels": [32, 64, 48, 128]}, "never fall"),
        (AutoencoderConfig, {"block_out_channels": [16, 30, 64, 80]}, "30 latent channels, fewer"),
        (AutoencoderConfig, {"block_out_channels": [32, 64, 66]}, "must be 68 to 124"),
        (AutoencoderConfig, {"block_out_channels": [32, 48, 96]}, "must be 68 to 92"),
        (AutoencoderConfig, {"crop_size": 40}, "crop_size must be a multiple of 16"),
        (AutoencoderConfig, {"crop_size": 8}, "crop_size must be a multiple of 16"),
        (ContrastConfig, {"hidden_size": 145}, "hidden_size must be a multiple of its 3 heads"),
        (ContrastConfig, {"image_depths": [1, 2]}, "image_channels and image_depths must be as"),
        (JudgeConfig, {"batch_size": 2}, "batch_size"),
        (JudgeConfig, {"batch_size": 8, "channels": [16, 24]}, "channels and depths must be as"),
        (JudgeConfig, {"batch_size": 8, "channels": [16, 24, 30]}, "multiple of 4"),
        (DenoiserConfig, {"block_out_channels": [32, 48]}, "must be multiples of 32"),
        (DenoiserConfig, {"block_out_channels": []}, "must be multiples of 32"),
    ],
)
def test_shapes_that_cannot_be_are_refused(
    config: type[StageConfig], changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        validate(config, {**COMMON, **changes}, "test")


@pytest.mark.parametrize(
    ("channels", "latents", "crop_size"),
    [((10, 36, 68), 32, 16), ((10, 12, 12, 16), 4, 8), ((32, 48, 72), 34, 4)],
)
def test_an_autoencoder_of_the_smallest_shapes_learns(
    channels: tuple[int, ...], latents: int, crop_size: int
) -> None:
    config = AutoencoderConfig(
        num_steps=1,
        batch_size=2,
        learning_rate=1e-3,
        block_out_channels=channels,
        latent_channels=latents,
        crop_size=crop_size,
    )
    stage = AutoencoderStage(config, smooth_pictures(12, 32))
    stage.loss(torch.Generator().manual_seed(0))["loss"].backward()
    assert any(parameter.grad.any() for parameter in stage.vae.encoder.parameters())


def test_what_is_larger_than_the_pictures_is_refused() -> None:
    pictures = smooth_pictures(4, 32)
    common: dict[str, Any] = {**COMMON, "batch_size": 5}
    with pytest.raises(ConfigError, match="crop_size: 64 is more than the 32 pixels"):
        AutoencoderStage(AutoencoderConfig(**common), pictures)
    with pytest.raises(ConfigError, match="contrast.batch_size: 5 is more than the 4 pictures"):
        ContrastStage(ContrastConfig(**common), pictures, build_tokenizer(["dog"]))


def test_a_tokenizer_is_the_same_whenever_it_is_built() -> None:
    first = build_tokenizer(all_words()).get_vocab()
    assert all(build_tokenizer(reversed(all_words())).get_vocab() == first for _ in range(4))


def test_the_longest_caption_just_fits() -> None:
    """Every word of it is one token; start, end and the rare token come to it."""
    identities = [
        Identity("dog", color, pattern, color2, 0, 0)
        for color, color2, pattern in itertools.product(
            ("red", "orange"), ("red", "orange"), PATTERNS
        )
    ]
    worn = [(kind, color) for kind in ACCESSORIES for color in ("red", "orange")]
    longest = max(
        len(
            caption(
                identity, View(place, time, style, thing, Pose(), 0, 0, 3, (0, 0, 0), 0, 0)
            ).split()
        )
        for identity, place, time, style, thing in itertools.product(
            identities, PLACES, TIMES, STYLES, worn
        )
    )
    assert longest + 3 == MAX_TOKENS


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
