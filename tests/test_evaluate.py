"""Scores on embeddings by hand."""

from __future__ import annotations

import pytest
import torch

from finetune.evaluate import (
    bootstrap_interval,
    prompt_similarity,
    real_similarity,
    subject_similarity,
)

AXES = torch.eye(3)


def test_subject_similarity_is_the_mean_over_all_pairs() -> None:
    generated = torch.stack([AXES[0], (AXES[0] + AXES[1]) / 2**0.5])
    expected = torch.tensor([0.5, (0.5**0.5 + 0.5**0.5) / 2])
    torch.testing.assert_close(subject_similarity(generated, AXES[:2]), expected)


def test_real_similarity_leaves_out_pairs_of_the_same_picture() -> None:
    real = torch.stack([AXES[0], AXES[0], AXES[1]])
    assert real_similarity(real) == pytest.approx(2 / 6)


def test_prompt_similarity_is_each_picture_s_own() -> None:
    prompts = torch.stack([AXES[0], AXES[0]])
    torch.testing.assert_close(prompt_similarity(AXES[:2], prompts), torch.tensor([1.0, 0.0]))


def test_bootstrap_interval_covers_the_mean_of_normal_data_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for trial in range(200):
        values = torch.randn(30, generator=generator).tolist()
        low, high = bootstrap_interval(values, num_resamples=400, seed=trial)
        hits += low <= 0.0 <= high
    assert 180 <= hits <= 198


def test_bootstrap_interval_of_a_constant_is_that_constant() -> None:
    assert bootstrap_interval([2.0] * 5) == (2.0, 2.0)
