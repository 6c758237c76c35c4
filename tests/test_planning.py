"""What would settle a difference: against a sample size by hand, and by doing as it says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from finetune.planning import MOST, settle
from finetune.statistics import interval


def centred(*shape: int, mean: float, seed: int = 0) -> np.ndarray:
    table = np.random.default_rng(seed).normal(size=shape)
    return table - table.mean() + mean


def by_hand(spread: float, now: int, mean: float, *, per_unit: int = 1) -> int:
    """Fewest more values of a one-sample t test with the chance 0.8 (the usual normal approximation)."""
    for more in range(1, 100):
        count = (now + more) * per_unit
        freedom = (now + more - 1) * per_unit
        quantiles = stats.t.isf(0.025, freedom) + stats.t.isf(0.2, freedom)
        if quantiles * spread / count**0.5 <= mean:
            return more
    raise AssertionError("out of reach")


def test_pictures_are_asked_for_as_by_the_formula_of_a_t_test() -> None:
    table = centred(1, 1, 1, 6, mean=0.5)
    advice = settle(table)
    assert advice is not None
    assert advice.more_pictures == by_hand(table.std(ddof=1), 6, 0.5)
    assert advice.more_prompts is None
    assert advice.more_rows is None


def test_prompts_are_asked_for_as_by_the_formula_of_a_t_test() -> None:
    table = centred(1, 1, 5, 1, mean=0.6)
    advice = settle(table)
    assert advice is not None
    assert advice.more_prompts == by_hand(table.std(ddof=1), 5, 0.6)
    assert advice.more_pictures is None  # one picture per prompt does not tell how pictures scatter


def test_subjects_are_asked_for_where_they_are_what_varies() -> None:
    rng = np.random.default_rng(2)
    table = rng.normal(size=(6, 1, 1, 1)) + 0.01 * rng.normal(size=(6, 1, 8, 4))
    table += 0.5 - table.mean()
    advice = settle(table)
    assert advice is not None
    assert advice.row_kind == "subjects"
    assert advice.more_rows == pytest.approx(
        by_hand(table.mean((1, 2, 3)).std(ddof=1), 6, 0.5), abs=1
    )
    assert advice.more_prompts is None
    assert advice.more_pictures is None
    assert advice.in_words() == (
        f"About {advice.more_rows} more subjects would settle it, if the gap is what it seems."
    )


def test_doing_as_it_says_settles_it_four_times_in_five() -> None:
    rng = np.random.default_rng(0)

    def experiment(prompts: int) -> np.ndarray:
        table = 0.1 * rng.normal(size=(6, 1, 1, 1)) + 0.5 * rng.normal(size=(1, 1, prompts, 1))
        return table + rng.normal(size=(6, 1, prompts, 4)) + 0.3

    asked = []
    for _ in range(60):
        pilot = experiment(8)
        advice = settle(pilot - pilot.mean() + 0.3)  # a gap that is just as it seems
        asked.append(None if advice is None else advice.more_prompts)
    prompts = 8 + int(np.median([more or 0 for more in asked]))
    told = [interval(experiment(prompts)).sign == 1 for _ in range(300)]
    assert prompts > 10
    assert 0.7 <= np.mean(told) <= 0.9


@pytest.mark.parametrize("pictures", [64, 65, 200])
def test_more_pictures_than_one_could_have_are_not_asked_for(pictures: int) -> None:
    advice = settle(centred(1, 1, 2, pictures, mean=0.001))
    assert advice is not None
    assert advice.more_pictures is None
    assert (
        advice.in_words()
        == (
            "The gap is too small for more pictures per prompt to settle it."  # nothing else was thought of
        )
    )
    assert MOST["pictures"] == 64


def test_a_picture_more_per_prompt_is_one_more_in_every_run() -> None:
    rng = np.random.default_rng(1)
    one_run = rng.normal(size=(4, 1, 2, 6))
    one_run += 0.25 - one_run.mean(
        (1, 2, 3), keepdims=True
    )  # subjects differ by no more than chance
    three_runs = one_run.reshape(4, 2, 3, 2).transpose(0, 2, 1, 3)  # the same pictures, two per run
    single, several = settle(one_run), settle(three_runs)
    assert single is not None
    assert several is not None
    assert single.more_pictures is not None
    assert several.more_pictures == pytest.approx(single.more_pictures / 3, rel=0.3)


def test_what_is_no_sample_is_not_asked_for() -> None:
    advice = settle(centred(1, 1, 5, 4, mean=0.3))
    assert advice is not None
    assert advice.more_rows is None
    assert advice.in_words().endswith(
        "would settle it for these training runs, if the gap is what it seems."
    )
    seeds = settle(centred(1, 4, 2, 4, mean=0.3))
    assert seeds is not None
    assert seeds.row_kind == "training seeds"
    assert seeds.more_prompts is None
    assert "these training runs" not in seeds.in_words()
    assert settle(centred(2, 1, 5, 4, mean=0.3)).of_runs_alone
    hopeless = settle(centred(4, 1, 5, 4, mean=1e-9))
    assert hopeless.in_words() == (
        "The gap is too small for more pictures per prompt, prompts or subjects to settle it."
    )


def test_where_nothing_can_be_said_nothing_is() -> None:
    assert settle(np.full((1, 1, 1, 1), np.nan)) is None
    assert settle(np.full((1, 1, 1, 1), 0.2)) is None
    equal = settle(np.zeros((1, 1, 4, 3)))
    assert equal is not None
    assert (equal.more_rows, equal.more_prompts, equal.more_pictures) == (None, None, None)


def test_any_table_gets_an_answer() -> None:
    rng = np.random.default_rng(4)
    for _ in range(100):
        shape = tuple(rng.integers(1, (6, 4, 7, 6)))
        table = rng.normal(size=shape) * rng.choice([0, 1]) + rng.normal(size=(shape[0], 1, 1, 1))
        table[rng.random(shape[:3]) < rng.random() / 2] = np.nan
        advice = settle(table)
        if advice is not None:
            assert advice.in_words().endswith(".")
            for number in (advice.more_rows, advice.more_prompts, advice.more_pictures):
                assert number is None or number >= 1
