"""Intervals against textbook formulas, simulation and tables with holes."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from scipy import stats

from finetune.statistics import difference, interval, overlapping
from finetune.tables import paired

RNG_SEED = 7


def normal(*shape: int, seed: int = RNG_SEED) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def crossed(
    rng: np.random.Generator, *, subject: float, prompt: float, both: float, shape: tuple[int, ...]
) -> np.ndarray:
    subjects, _, prompts, _ = shape
    table = rng.normal(size=shape) + subject * rng.normal(size=(subjects, 1, 1, 1))
    table += prompt * rng.normal(size=(1, 1, prompts, 1))
    return table + both * rng.normal(size=(subjects, 1, prompts, 1))


def t_interval(values: np.ndarray) -> tuple[float, float]:
    found = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return float(found.low), float(found.high)


def test_one_subject_is_student_s_interval_of_prompt_means() -> None:
    table = normal(1, 1, 6, 4)
    found = interval(table)
    assert (found.low, found.high) == pytest.approx(t_interval(table.mean((0, 1, 3))))
    assert found.degrees_of_freedom == 5
    assert found.speaks_of == "this subject as trained here and prompts like these 6"


def test_one_prompt_is_student_s_interval_of_subject_means() -> None:
    table = normal(5, 2, 1, 4)
    found = interval(table)
    assert (found.low, found.high) == pytest.approx(t_interval(table.mean((1, 2, 3))))
    assert found.speaks_of == "subjects like these 5 and this prompt"


def test_training_seeds_of_one_subject_are_a_sample_where_prompts_are_none() -> None:
    table = normal(1, 4, 2, 3)
    found = interval(table)
    assert (found.low, found.high) == pytest.approx(t_interval(table.mean((0, 2, 3))))
    assert found.speaks_of == "this subject, training runs like these 4 and these 2 prompts"


def test_training_seeds_of_two_subjects_scatter_around_their_own_subject() -> None:
    table = normal(2, 2, 1, 3)
    table[1] += 5
    runs = table.mean((2, 3))  # [subject, seed]
    variance = ((runs - runs.mean(1, keepdims=True)) ** 2).sum() / 2
    found = interval(table)
    assert found.standard_error == pytest.approx((variance / 4) ** 0.5)
    assert found.degrees_of_freedom == 2


def test_where_only_pictures_vary_their_scatter_within_prompts_counts() -> None:
    table = normal(1, 1, 2, 3)
    table[0, 0, 1] += 10
    first, second = table[0, 0]
    variance = (first.var(ddof=1) + second.var(ddof=1)) / 2
    found = interval(table)
    assert found.standard_error == pytest.approx((variance / 6) ** 0.5)
    assert found.degrees_of_freedom == 4
    assert found.speaks_of == "this subject as trained here and these 2 prompts"


def test_subjects_and_prompts_together_are_the_textbook_s_analysis_of_variance() -> None:
    rng = np.random.default_rng(1)
    table = crossed(rng, subject=1, prompt=1, both=0.5, shape=(4, 1, 5, 3))
    cells = table.mean((1, 3))
    num_subjects, num_prompts = cells.shape
    of_subjects = num_prompts * sum((cells[s].mean() - cells.mean()) ** 2 for s in range(4)) / 3
    of_prompts = num_subjects * sum((cells[:, p].mean() - cells.mean()) ** 2 for p in range(5)) / 4
    rest = sum(
        (cells[s, p] - cells[s].mean() - cells[:, p].mean() + cells.mean()) ** 2
        for s, p in product(range(4), range(5))
    )
    rest /= 12
    variance = (of_subjects + of_prompts - rest) / 20
    squares = (of_subjects**2 / 3 + of_prompts**2 / 4 + rest**2 / 12) / 20**2
    found = interval(table)
    assert found.mean == pytest.approx(table.mean())
    assert found.standard_error == pytest.approx(variance**0.5)
    assert found.degrees_of_freedom == pytest.approx(variance**2 / squares)
    half = stats.t.ppf(0.975, variance**2 / squares) * variance**0.5
    assert found.high == pytest.approx(table.mean() + half)
    assert found.speaks_of == "subjects like these 4 and prompts like these 5"


def test_effects_that_cannot_be_seen_are_pooled() -> None:
    rng = np.random.default_rng(3)
    prompts_only = rng.normal(size=(4, 1, 1, 1)) * 0 + rng.normal(size=(1, 1, 6, 1)) * 3
    noise = rng.normal(size=(4, 1, 6, 1)) * 0.01
    noise -= noise.mean(2, keepdims=True)  # no subject differs from another in the mean
    found = interval(prompts_only + noise)
    assert found.standard_error == pytest.approx(
        (prompts_only + noise).mean((0, 1, 3)).std(ddof=1) / 6**0.5
    )
    assert found.degrees_of_freedom == 5


@pytest.mark.parametrize(
    ("subject", "prompt", "both", "missing", "shape"),
    [
        (1.0, 1.0, 0.5, 0.0, (8, 1, 12, 4)),
        (0.0, 0.0, 0.0, 0.0, (8, 1, 12, 4)),
        (0.5, 1.0, 0.3, 0.1, (8, 1, 12, 4)),
        (0.2, 0.2, 0.2, 0.0, (8, 1, 12, 4)),
        (0.0, 0.0, 0.0, 0.0, (1, 1, 2, 4)),
    ],
    ids=["subjects and prompts", "only pictures", "holes", "a little", "pictures of two prompts"],
)
def test_nominal_95_percent_hold_the_truth_in_93_to_97_percent(
    subject: float, prompt: float, both: float, missing: float, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    num_experiments, hits = 800, 0
    for _ in range(num_experiments):
        table = crossed(rng, subject=subject, prompt=prompt, both=both, shape=shape)
        table[rng.random(shape[:3]) < missing] = np.nan
        found = interval(table)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0 <= found.high
    assert 0.93 <= hits / num_experiments <= 0.97


def test_the_mean_counts_subjects_seeds_prompts_and_pictures_alike_where_some_are_missing() -> None:
    table = np.full((2, 2, 3, 2), np.nan)
    table[0, 0, 0] = [1, 3]  # prompt mean 2
    table[0, 0, 1, 0] = 6  # seed mean (2 + 6) / 2 = 4
    table[0, 1, 0] = 8  # subject mean (4 + 8) / 2 = 6
    table[1, 0, 2] = 10
    assert interval(table).mean == pytest.approx((6 + 10) / 2)
    assert interval(table).num_values == 7


def test_prompts_that_only_some_subjects_were_asked_do_not_narrow_the_interval() -> None:
    # Live subjects and objects share 2 of 6 prompts each; live ones score higher by 4.
    rng = np.random.default_rng(5)
    table = rng.normal(size=(6, 1, 10, 4))
    table[:3, 0, 6:] = np.nan
    table[3:, 0, :4] = np.nan
    table[:3] += 4
    found = interval(table)
    means = np.nanmean(table, (1, 2, 3))
    assert found.mean == pytest.approx(means.mean())
    assert found.standard_error >= means.std(ddof=1) / 6**0.5 * 0.99


def test_tables_with_holes_never_crash() -> None:
    rng = np.random.default_rng(0)
    for _ in range(150):
        shape = tuple(rng.integers(1, (5, 4, 6, 5)))
        table = rng.normal(size=shape)
        table[rng.random(shape[:3]) < rng.random()] = np.nan
        table[rng.random(shape) < rng.random() / 2] = np.nan
        found = interval(table)
        json.dumps(found.to_dict(), allow_nan=False)
        if np.isnan(table).all():
            assert found.mean is None
            continue
        assert np.nanmin(table) <= found.mean <= np.nanmax(table)
        assert (found.low is None) == (found.reason is not None)
        if found.low is not None:
            assert found.low <= found.mean <= found.high


def test_no_value_and_a_single_value_say_why_there_is_no_interval() -> None:
    nothing = interval(np.full((1, 1, 2, 2), np.nan))
    assert nothing.mean is None
    assert nothing.reason == "There is no value to speak of."
    one = interval(np.full((1, 1, 2, 1), 0.5))
    assert one.mean == 0.5
    assert one.low is None
    assert "Nothing is repeated" in (one.reason or "")


def test_infinite_values_and_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="infinite"):
        interval(np.full((1, 1, 1, 1), np.inf))
    with pytest.raises(ValueError, match="subject, seed, prompt, picture"):
        interval(np.zeros((2, 3)))


def test_equal_values_have_an_interval_without_width() -> None:
    for shape in ((4, 1, 5, 2), (1, 1, 5, 2), (1, 1, 1, 3)):
        found = interval(np.zeros(shape))
        assert (found.mean, found.low, found.high) == (0, 0, 0)
        assert found.sign == 0


def test_equal_values_have_one_too_where_no_cell_is_left_over_to_tell_by() -> None:
    table = np.full((3, 1, 5, 1), np.nan)
    table[0, 0, :2], table[1, 0, 2:4], table[2, 0, 4] = 0.0, 0.0, 0.0
    found = interval(table)
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_a_difference_is_of_pairs_and_ignores_what_either_lacks() -> None:
    first = normal(1, 1, 4, 3)
    second = first - 0.25
    second[0, 0, 1, 2] = np.nan
    found = difference(first, second)
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    assert found.num_values == 11
    assert found.sign == 1
    assert difference(second, first).sign == -1


def test_tables_of_different_lengths_are_paired_where_both_reach() -> None:
    both = paired(np.ones((2, 1, 3, 4)), np.zeros((1, 1, 5, 2)))
    assert both.shape == (2, 1, 5, 4)
    assert np.isnan(both).sum() == 2 * 5 * 4 - 3 * 2


def test_pairing_by_prompt_and_noise_narrows_the_difference() -> None:
    shared = normal(1, 1, 8, 4) * 5
    first, second = shared + normal(1, 1, 8, 4, seed=1), shared + normal(1, 1, 8, 4, seed=2)
    error = difference(first, second).standard_error
    assert error is not None
    assert error < 0.4 * (interval(first).standard_error or 0)


def test_similarities_of_photos_have_an_interval_from_three_subjects_on_only() -> None:
    table = normal(2, 1, 1, 5)
    found = overlapping(table)
    assert found.mean == pytest.approx(table.mean())
    assert found.low is None
    assert "three subjects" in (found.reason or "")
    three = overlapping(normal(3, 1, 1, 5))
    assert (three.low, three.high) == pytest.approx(t_interval(normal(3, 1, 1, 5).mean((1, 2, 3))))
