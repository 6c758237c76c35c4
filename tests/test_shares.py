"""Intervals of shares against Clopper & Pearson's, a count by hand, and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from finetune.differences import TOO_RARE, pair_differences
from finetune.shares import share_difference, share_interval, told_by
from finetune.statistics import difference, interval

SHARE = "copy_share/e"


@pytest.mark.parametrize(
    ("shape", "count"),
    [((1, 1, 1, 20), 20), ((1, 1, 5, 4), 5), ((8, 1, 12, 4), 8), ((30, 1, 12, 4), 12)],
    ids=["only pictures", "prompts", "subjects", "more subjects than prompts"],
)
def test_no_copy_is_as_many_sure_zeros_as_there_are_subjects_or_prompts(
    shape: tuple[int, ...], count: int
) -> None:
    found = share_interval(np.zeros(shape))
    assert (found.mean, found.low) == (0, 0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / count))
    assert share_interval(np.ones(shape)).low == pytest.approx(0.025 ** (1 / count))


def test_a_share_of_independent_pictures_is_close_to_the_binomial_interval() -> None:
    values = np.zeros((1, 1, 1, 40))
    values[..., :10] = 1
    found = share_interval(values)
    exact = stats.binomtest(10, 40).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.01)


def test_a_share_that_differs_between_prompts_is_less_sure() -> None:
    spread, clustered = np.zeros((1, 1, 10, 4)), np.zeros((1, 1, 10, 4))
    spread[:, :, :, 0] = 1
    clustered[:, :, :2] = 1
    clustered[:, :, 2, :2] = 1
    sure, unsure = share_interval(spread), share_interval(clustered)
    assert sure.mean == unsure.mean == 0.25
    assert unsure.high > sure.high
    assert 0 <= unsure.low < sure.low


def copied(num_subjects: int) -> np.ndarray:
    """Of 8 subjects so many have one copy in each of 12 prompts."""
    values = np.zeros((8, 1, 12, 4))
    values[:num_subjects, :, :, 0] = 1
    return values


def test_a_picture_counts_less_the_fewer_subjects_hold_a_copy() -> None:
    assert told_by(copied(2)) == (8, 0.25)
    assert told_by(1 - copied(8)) == (8, 1)
    values, share = copied(2), 2 / 32
    plain, found = interval(values), share_interval(values)
    quantiles = stats.t.ppf(0.975, 8 * 12 * 4 - 1) / stats.t.ppf(0.975, plain.degrees_of_freedom)
    worth = share * (1 - share) / plain.standard_error**2 * quantiles**2
    count = worth**0.25 * min(worth, 8) ** 0.75
    assert found.mean == pytest.approx(share)
    assert found.high == pytest.approx(
        stats.beta.ppf(0.975, share * count + 1, count * (1 - share))
    )
    assert found.low == pytest.approx(
        stats.beta.ppf(0.025, share * count, count - share * count + 1)
    )


def test_subjects_that_all_hold_copies_and_others_leave_the_count_to_their_scatter() -> None:
    values = copied(8)
    values[::2, :, :6, 1] = 1
    plain, found = interval(values), share_interval(values)
    share = plain.mean
    quantiles = stats.t.ppf(0.975, 8 * 12 * 4 - 1) / stats.t.ppf(0.975, plain.degrees_of_freedom)
    count = share * (1 - share) / plain.standard_error**2 * quantiles**2
    assert found.high == pytest.approx(
        stats.beta.ppf(0.975, share * count + 1, count * (1 - share))
    )


@pytest.mark.parametrize(("a", "b"), [(1, 9), (5, 45), (0.5, 9.5), (0.1, 2.4)])
def test_intervals_of_shares_hold_the_truth_however_rates_differ(a: float, b: float) -> None:
    """In 95 of 100; in more where few subjects hold copies at all."""
    rng, hits, num_experiments = np.random.default_rng(0), 0, 500
    for _ in range(num_experiments):
        rates = rng.beta(a, b, size=(8, 1, 1, 1))
        found = share_interval((rng.random((8, 1, 12, 4)) < rates).astype(float))
        hits += found.low <= a / (a + b) <= found.high
    assert hits / num_experiments >= 0.93


def test_a_difference_that_shows_in_every_subject_is_student_s() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 2, (2, 8, 1, 12, 4)).astype(float)
    found, plain = share_difference(first, second), difference(first, second)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high))


def test_a_difference_in_few_subjects_is_widened() -> None:
    first, second = copied(2), np.zeros((8, 1, 12, 4))
    plain, found = difference(first, second), share_difference(first, second)
    once = (1 / 16 - (1 / 16) ** 2) / 8  # variance of a value, each subject counted once
    error = (plain.standard_error**2) ** 0.125 * once**0.375
    half = stats.t.ppf(0.975, plain.degrees_of_freedom) * error
    assert (found.low, found.high) == pytest.approx((1 / 16 - half, 1 / 16 + half))
    assert found.low < plain.low


def test_rows_that_never_copy_may_still_differ_by_what_the_subjects_leave_open() -> None:
    found = share_difference(np.zeros((8, 1, 12, 4)), np.zeros((8, 1, 12, 4)))
    most = 1 - 0.025 ** (1 / 8)
    assert (found.mean, found.low, found.high) == pytest.approx((0, -most, most))
    tables = {row: {SHARE: np.zeros((8, 1, 12, 4))} for row in "ab"}
    assert pair_differences(tables, ["a", "b"])[0].needed == "They are equal in every picture."


@pytest.mark.parametrize("sign", [1, -1])
def test_pairs_that_all_differ_alike_leave_open_what_others_do(sign: int) -> None:
    """As sure as a share of ones alone; where one pair is equal, less sure than its scatter says."""
    ones, zeros = np.ones((8, 1, 12, 4)), np.zeros((8, 1, 12, 4))
    found = share_difference(*(ones, zeros)[::sign])
    least = 0.025 ** (1 / 8)
    assert (found.mean, found.sign) == (sign, sign)
    assert sorted((abs(found.low), abs(found.high))) == pytest.approx([least, 1])
    ones[0, 0, 0, 0] = 0
    rows = (ones, zeros)[::sign]
    nearly, plain = share_difference(*rows), difference(*rows)
    assert nearly.standard_error > 2 * plain.standard_error
    assert -1 <= nearly.low < nearly.mean < nearly.high <= 1


def test_a_difference_that_is_hardly_seen_asks_for_subjects_not_pictures() -> None:
    first, second = np.zeros((8, 1, 12, 4)), np.zeros((8, 1, 12, 4))
    first[:5, 0, :, 0] = 1
    assert difference(first, second).sign == 1
    (found,) = pair_differences({"a": {SHARE: first}, "b": {SHARE: second}}, ["a", "b"])
    assert found.conclusion == "cannot tell"
    assert found.needed == TOO_RARE


def test_shares_with_holes_never_crash() -> None:
    rng = np.random.default_rng(0)
    for _ in range(150):
        shape = tuple(rng.integers(1, (5, 4, 6, 5)))
        first, second = (rng.random((2, *shape)) < rng.random()).astype(float)
        first[rng.random(shape[:3]) < rng.random()] = np.nan
        for found in (share_interval(first), share_difference(first, second)):
            if found.low is not None:
                assert -1 <= found.low <= found.mean <= found.high <= 1
