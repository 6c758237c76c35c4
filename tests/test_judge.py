"""The judge: its answers, its truths, its contrast and its batches."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from data_prep.clay import dataset, world
from finetune.encoders import load_encoder, load_text_encoder
from finetune.errors import ArtifactError, ConfigError, DataError
from finetune.judge import Judge
from finetune.pretrain.data import Pictures
from finetune.pretrain.judge import (
    LABELS,
    NOTHING,
    JudgeConfig,
    JudgeStage,
    identity_contrast,
    targets_of,
    truth_of,
)
from finetune.pretrain.stage import run_stage

VIEW = world.View(
    "in the snow", "night", "photo", ("hat", "red"), world.Pose(), 0, 10, 3.5, (0, 0, 0), 0, 0
)
DOG = world.Identity("dog", "white", "spots", "brown", 1, 2)


def tiny_judge() -> Judge:
    torch.manual_seed(0)
    return (
        Judge(
            labels={"class": ("dog", "cat"), "place": ("snow", "grass", "beach")},
            image_size=32,
            channels=(16, 24),
            depths=(1, 1),
            identity_dim=8,
        )
        .eval()
        .requires_grad_(False)
    )


def test_truth_names_what_a_picture_tells() -> None:
    assert truth_of(DOG, VIEW) == {
        "class": "dog",
        "color": "white",
        "color2": "brown",
        "pattern": "spots",
        "accessory": "hat",
        "accessory_color": "red",
        "place": "in the snow",
        "time": "night",
        "style": "photo",
    }
    plain = world.Identity("mug", "red", "plain", "blue", 1, 2)
    bare = replace(VIEW, accessory=None, style="pencil sketch")
    truth = truth_of(plain, bare)
    assert truth["accessory"] == NOTHING
    assert [name for name, value in truth.items() if value is None] == [
        "color",
        "color2",
        "accessory_color",
        "place",
        "time",
    ]
    targets = targets_of([(DOG, VIEW), (plain, bare)])
    assert targets["accessory"].tolist() == [LABELS["accessory"].index("hat"), 0]
    assert targets["color"].tolist() == [list(world.COLORS).index("white"), -100]


def test_identity_contrast_by_hand() -> None:
    """Two views of one subject and a stranger, unit vectors in the plane, temperature 1."""
    embeds = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    first = -math.log(math.exp(0.6) / (math.exp(0.6) + math.exp(0.0)))
    second = -math.log(math.exp(0.6) / (math.exp(0.6) + math.exp(0.8)))
    ours = identity_contrast(embeds, torch.tensor([5, 5, -1]), 1.0)
    assert float(ours) == pytest.approx((first + second) / 2, rel=1e-5)


def test_answers_are_the_mean_over_a_picture_and_its_mirror_image() -> None:
    judge = tiny_judge()
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (40, 36, 3), np.uint8)) for _ in range(5)]
    together = judge.tell(images, batch_size=2)
    for image, told in zip(images, together, strict=True):
        pixels = judge.pixel_values([image])
        logits, embeds = judge(torch.cat([pixels, pixels.flip(-1)]))
        for name, labels in judge.labels.items():
            assert told[name] == labels[int(logits[name].mean(0).argmax())]
        torch.testing.assert_close(embeds.norm(dim=1), torch.ones(2))
    mean = embeds.mean(0) / embeds.mean(0).norm()
    torch.testing.assert_close(judge.embed_images(images, batch_size=2)[-1], mean)
    mirrored = [ImageOps.mirror(image) for image in images]
    assert judge.tell(mirrored) == together
    torch.testing.assert_close(judge.embed_images(mirrored), judge.embed_images(images))


def test_a_judge_is_read_back_and_a_broken_one_named(tmp_path: Path) -> None:
    judge = tiny_judge()
    judge.save_pretrained(tmp_path)
    again = Judge.from_pretrained(tmp_path)
    pixels = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(again(pixels)[1], judge(pixels)[1])
    assert again.labels == judge.labels
    (tmp_path / "judge.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        Judge.from_pretrained(tmp_path)


def test_a_folder_with_a_judge_is_an_encoder_of_identities(tmp_path: Path) -> None:
    judge = tiny_judge()
    judge.save_pretrained(tmp_path / "mine")
    encoder = load_encoder(str(tmp_path / "mine"))
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (40, 36, 3), np.uint8)) for _ in range(3)]
    torch.testing.assert_close(encoder.embed_images(images), judge.embed_images(images))
    assert (encoder.card.name, encoder.card.kind, encoder.card.dimensions) == (
        "mine",
        "clay-judge",
        8,
    )
    with pytest.raises(ConfigError, match="mine"):
        load_text_encoder(str(tmp_path / "mine"))


def flat_pictures(count: int = 40) -> Pictures:
    """Pictures of one colour each, that of their subject."""
    pixels, truths = [], []
    for index in range(count):
        identity, views = dataset.draw(0, index)
        for view, _ in views:
            color = np.array(world.COLORS[identity.color]) ** (1 / 2.2) * 255
            pixels.append(np.broadcast_to(color.astype(np.uint8), (32, 32, 3)))
            truths.append((identity, replace(view, style="photo")))
    covers = np.zeros((len(truths), 2, 8, 8), np.uint8)
    return Pictures(np.stack(pixels), [["a"]] * len(truths), truths, covers, "flat")


def small(num_steps: int) -> JudgeConfig:
    return JudgeConfig(
        num_steps=num_steps,
        batch_size=32,
        learning_rate=3e-3,
        channels=(16, 32),
        depths=(1, 1),
        warmup_steps=5,
        ema_decay=0.9,
    )


def test_batches_hold_pairs_of_views_and_lone_pictures() -> None:
    stage = JudgeStage(small(1), flat_pictures())
    indices, identities = stage.draw(torch.Generator().manual_seed(0))
    assert len(indices) == len(identities) == 32
    paired = identities >= 0
    assert int(paired.sum()) == 24
    for identity in identities[paired].unique().tolist():
        first, second = indices[identities == identity].tolist()
        assert first != second
        assert stage.pictures.truths[first][0] == stage.pictures.truths[second][0]
    assert len(identities[~paired].unique()) == 8


def test_half_of_the_pairs_are_subjects_of_one_class() -> None:
    stage = JudgeStage(small(1), flat_pictures(400))
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(20):
        indices, identities = stage.draw(generator)
        pairs = indices[identities >= 0].tolist()
        nouns = Counter(stage.pictures.truths[index][0].class_noun for index in pairs)
        noun, count = nouns.most_common(1)[0]
        assert count >= 12  # Of 24 pictures, six pairs at least.
        seen.add(noun)
    assert len(seen) > 6


def test_lone_pictures_wear_something_more_often() -> None:
    pictures = flat_pictures(400)
    naturally = np.mean([view.accessory is not None for _, view in pictures.truths])
    assert 0.05 < naturally < 0.5

    def share(worn_share: float) -> float:
        config = small(1).model_copy(update={"worn_share": worn_share, "batch_size": 800})
        stage = JudgeStage(config, pictures)
        indices, identities = stage.draw(torch.Generator().manual_seed(0))
        alone = indices[identities < 0].tolist()
        return float(np.mean([pictures.truths[i][1].accessory is not None for i in alone]))

    assert share(0) == pytest.approx(naturally, abs=0.1)
    assert share(0.75) == pytest.approx(0.75 + 0.25 * naturally, abs=0.1)
    assert share(1) == 1


def test_views_without_a_partner_are_refused() -> None:
    lone = flat_pictures(2)
    with pytest.raises(DataError, match="render more"):
        JudgeStage(small(1), replace(lone, pixels=lone.pixels[:1], truths=lone.truths[:1]))


def test_half_of_the_pictures_are_mirrored() -> None:
    config = small(1).model_copy(update={"max_turn": 0.0, "max_zoom": 0.0, "max_shift": 0.0})
    stage = JudgeStage(config, flat_pictures(12))
    left = torch.zeros(200, 3, 8, 8)
    left[..., :4] = 1
    moved = stage._moved(left, torch.Generator().manual_seed(0))
    mirrored = (moved - left.flip(-1)).abs().amax((1, 2, 3)) < 1e-5
    same = (moved - left).abs().amax((1, 2, 3)) < 1e-5
    assert bool((mirrored ^ same).all())
    assert 70 < int(mirrored.sum()) < 130


def test_moved_pictures_keep_flat_colours_and_shift_shapes() -> None:
    stage = JudgeStage(small(1), flat_pictures(12))
    flat = torch.full((3, 3, 32, 32), 0.25)
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(stage._moved(flat, generator), flat)
    spot = torch.full((64, 3, 32, 32), -1.0)
    spot[:, :, 14:18, 14:18] = 1
    moved = stage._moved(spot, torch.Generator().manual_seed(0))[:, 0] + 1
    rows = (moved.sum(2) * torch.arange(32)).sum(1) / moved.sum((1, 2))
    # Up to 8 % of 32 pixels to either side, and a little by turning and zooming.
    assert 1 < float((rows - 15.5).abs().max()) < 4
    assert float((rows - 15.5).mean().abs()) < 0.8


def test_it_learns_the_colour_of_flat_pictures(tmp_path: Path) -> None:
    stage = JudgeStage(small(60), flat_pictures())
    assert len(list(run_stage(stage, tmp_path))) == 60
    judge = Judge.from_pretrained(tmp_path / "network")
    pictures = stage.pictures
    told = judge.tell([Image.fromarray(np.asarray(pixels)) for pixels in pictures.pixels])
    right = [
        answer["color"] == identity.color
        for answer, (identity, _) in zip(told, pictures.truths, strict=True)
    ]
    assert sum(right) / len(right) > 0.9
