"""Scores against few-line computations on fixed embeddings, and what holds for any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.encoders.names import EMBEDDED_SCORERS, PRESETS
from finetune.errors import ArtifactError
from finetune.planning import MOST
from finetune.scores import (
    CURVES,
    DRIFT,
    HIGHEST_THRESHOLD,
    SCORES,
    Views,
    class_leak,
    copies,
    copy,
    copy_threshold,
    cosines,
    diversity,
    drift,
    prompt_fidelity,
    real_similarity,
    score_info,
    subject_fidelity,
)

AXES = torch.eye(3)


def views(vectors: Tensor) -> Views:
    return Views.of(vectors, [f"{index}.png" for index in range(len(vectors))])


def some(count: int, *, seed: int = 0, dimensions: int = 16) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=0))


GENERATED, PHOTOS = some(6), some(4, seed=1)


def test_subject_fidelity_and_class_leak_are_means_over_all_pairs_with_real_photos() -> None:
    expected = [sum(cosine(g, p) for p in PHOTOS) / 4 for g in GENERATED]
    for score in (subject_fidelity, class_leak):
        assert score(views(GENERATED), views(PHOTOS)).tolist() == pytest.approx(expected)


def test_subject_fidelity_by_hand() -> None:
    generated = views(torch.stack([AXES[0], AXES[0] + AXES[1]]))
    found = subject_fidelity(generated, views(AXES[:2]))
    assert found.tolist() == pytest.approx([0.5, 0.5**0.5])


def test_prompt_fidelity_is_each_picture_s_cosine_with_its_own_text() -> None:
    texts = views(some(3, seed=2))
    twice = Views(texts.vectors.repeat_interleave(2, 0), ("",) * 6)
    found = prompt_fidelity(views(GENERATED), twice)
    expected = [cosine(g, texts.vectors[i // 2]) for i, g in enumerate(GENERATED)]
    assert found.tolist() == pytest.approx(expected)


def test_drift_is_one_minus_the_cosine_with_the_counterpart_and_exactly_0_for_the_base_itself() -> (
    None
):
    base = views(some(6, seed=3))
    expected = [1 - cosine(g, b) for g, b in zip(GENERATED, base.vectors, strict=True)]
    assert drift(views(GENERATED), base).tolist() == pytest.approx(expected)
    assert drift(base, base).tolist() == [0.0] * 6
    assert drift(views(AXES[:1]), views(-AXES[:1])).tolist() == [2.0]


def test_copy_is_the_highest_cosine_and_exactly_1_for_a_photo_itself() -> None:
    expected = [max(cosine(g, p) for p in PHOTOS) for g in GENERATED]
    assert copy(views(GENERATED), views(PHOTOS)).tolist() == pytest.approx(expected)
    # Embeddings of one picture, made in batches of other sizes, may be scaled otherwise; not so here.
    assert copy(views(PHOTOS[[2, 0]]), views(PHOTOS)).tolist() == [1.0, 1.0]


def test_diversity_is_the_mean_distance_of_different_pictures_of_one_prompt() -> None:
    three = GENERATED[3:6]
    expected = sum(1 - cosine(three[i], three[j]) for i, j in [(0, 1), (0, 2), (1, 2)]) / 3
    assert diversity(views(GENERATED).part(3, 6)) == pytest.approx(expected)
    assert diversity(views(GENERATED[[0, 0, 0]])) == 0
    assert np.isnan(diversity(views(GENERATED[:1])))


def test_real_similarity_leaves_out_every_photo_s_pair_with_itself() -> None:
    found = real_similarity(views(torch.stack([AXES[0], AXES[0], AXES[1]])))
    assert found.mean == pytest.approx(2 / 6)
    assert found.values.tolist() == pytest.approx([0.5, 0.5, 0])
    pairs = [cosine(PHOTOS[i], PHOTOS[j]) for i in range(4) for j in range(4) if i != j]
    assert real_similarity(views(PHOTOS)).mean == pytest.approx(sum(pairs) / 12)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_photos_give_no_number_but_a_reason(count: int) -> None:
    found = real_similarity(views(PHOTOS[:count]))
    assert found.mean is None
    assert found.values.tolist() == []
    assert "needs two" in (found.reason or "")


def test_copies_begin_halfway_from_the_most_alike_photos_to_the_same_picture() -> None:
    photos = views(torch.stack([AXES[0], AXES[1], AXES[1] + 0.5 * AXES[2]]))
    nearest = 1 / 1.25**0.5
    threshold = copy_threshold(photos)
    assert threshold == pytest.approx((1 + nearest) / 2)
    found = copies(np.array([threshold, threshold - 1e-6, np.nan, 1.0]), threshold)
    assert found[[0, 1, 3]].tolist() == [1, 0, 1]
    assert np.isnan(found[2])


def test_photos_that_are_the_same_picture_do_not_hide_copies() -> None:
    twice = views(torch.stack([AXES[0], AXES[0], AXES[1]]))
    assert copy_threshold(twice) == HIGHEST_THRESHOLD
    assert copy_threshold(views(AXES[:1])) == HIGHEST_THRESHOLD
    assert copies(copy(twice, twice), copy_threshold(twice)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_embeddings_without_direction_are_refused_by_the_picture_s_name(bad: float) -> None:
    vectors = torch.ones(3, 4)
    vectors[1] = bad
    with pytest.raises(ArtifactError, match=r"beach\.png by the scorer dino-s16"):
        Views.of(vectors, ["dog.png", "beach.png", "snow.png"], encoder="dino-s16")


def test_scores_do_not_depend_on_the_length_of_embeddings() -> None:
    scaled = GENERATED * torch.arange(1, 7)[:, None]
    assert cosines(views(scaled), views(PHOTOS)) == pytest.approx(
        cosines(views(GENERATED), views(PHOTOS))
    )


def test_many_pictures_are_compared_in_parts_without_a_seam() -> None:
    many = some(150, seed=5)
    expected = (
        torch.nn.functional.normalize(many.double())
        @ torch.nn.functional.normalize(PHOTOS.double()).T
    )
    assert cosines(views(many), views(PHOTOS)) == pytest.approx(expected.numpy())


def test_pictures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="counterparts"):
        drift(views(GENERATED), views(PHOTOS))
    with pytest.raises(ValueError, match="2 names"):
        Views.of(GENERATED, ["a", "b"])


def test_every_score_says_what_it_is() -> None:
    assert list(SCORES) == [
        "subject_fidelity",
        "subject_fidelity_masked",
        "prompt_fidelity",
        "class_leak",
        "diversity",
        "class_drift",
        "other_drift",
        "copy",
        "copy_share",
    ]
    for id, info in SCORES.items():
        assert info.id == id
        assert info.papers
        assert info.definition.endswith(".")
        assert info.encoder == ("prompt" if id == "prompt_fidelity" else "subject")
    assert "replaced by the class noun" in SCORES["prompt_fidelity"].definition
    assert score_info("class_drift/dino-s16") is SCORES["class_drift"]
    assert list(CURVES) == ["subject_fidelity", "prompt_fidelity", "drift", "copy_share"]
    assert score_info("drift/dino-s16") is DRIFT


def test_the_page_on_scores_names_every_score_and_encoder() -> None:
    text = (Path(__file__).parents[1] / "docs" / "scores.md").read_text("utf-8")
    for name in (*SCORES, *CURVES, *PRESETS, *EMBEDDED_SCORERS):
        assert f"`{name}`" in text
    for number in (HIGHEST_THRESHOLD, *MOST.values()):
        assert str(number) in text
