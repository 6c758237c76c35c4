"""The checkpoint rule on points by hand."""

from __future__ import annotations

from finetune.checkpoint_rule import (
    Limits,
    Point,
    Scale,
    has_stalled,
    is_allowed,
    least_bad,
    overfits_from,
    recommended,
)

SCALE = Scale(prompt_fidelity=0.5, noise=0.25)
LIMITS = Limits(max_drift=0.5, max_copy_share=0.25, min_prompt_fidelity=0.75)
# So: drift up to 0.125, copies up to a quarter, prompt fidelity from 0.375.


def point(step: int, subject: float, *, prompt: float = 0.5, drift: float = 0.0) -> Point:
    return Point(step, subject, prompt, drift, 0.0)


def test_limits_are_relative_to_the_frozen_base() -> None:
    assert is_allowed(Point(1, 0.0, 0.375, 0.125, 0.25), SCALE, LIMITS)
    assert SCALE.limits(LIMITS) == {
        "drift": 0.125,
        "copy_share": 0.25,
        "prompt_fidelity": 0.375,
    }
    # 0.1875 is 0.75 of the noise, 0.1875 of prompt fidelity 0.375 of the base's.
    assert Point(1, 0.9, 0.375, 0.1875, 0.25).excess(SCALE, LIMITS) == {"drift": 0.25}
    assert Point(1, 0.9, 0.1875, 0.125, 0.5).excess(SCALE, LIMITS) == {
        "copy_share": 0.25,
        "prompt_fidelity": 0.375,
    }


def test_any_drift_is_too_much_where_noise_changes_nothing() -> None:
    still = Scale(prompt_fidelity=0.4, noise=0.0)
    assert is_allowed(point(1, 0.5), still, LIMITS)
    assert not is_allowed(point(1, 0.5, drift=1e-6), still, LIMITS)


def test_a_base_that_misses_its_prompts_sets_a_limit_as_well() -> None:
    """What may be lost is a quarter of its size: from -0.5 on down to -0.625."""
    odd = Scale(prompt_fidelity=-0.5, noise=0.25)
    assert is_allowed(point(1, 0.5, prompt=-0.625), odd, LIMITS)
    assert point(1, 0.5, prompt=-0.75).excess(odd, LIMITS) == {"prompt_fidelity": 0.25}
    none = Scale(prompt_fidelity=0.0, noise=0.25)
    assert is_allowed(point(1, 0.5, prompt=0.0), none, LIMITS)
    assert point(1, 0.5, prompt=-0.1).excess(none, LIMITS) == {"prompt_fidelity": 1.0}


def test_the_highest_fidelity_within_the_limits_is_recommended_and_the_earlier_of_equals() -> None:
    points = [point(10, 0.5), point(20, 0.7), point(30, 0.7), point(40, 0.9, drift=0.13)]
    best = recommended(points, SCALE, LIMITS)
    assert best is not None
    assert best.step == 20
    assert recommended(points[3:], SCALE, LIMITS) is None


def test_where_none_is_allowed_the_least_excess_counts() -> None:
    points = [point(10, 0.5, drift=0.15), point(20, 0.9, drift=0.2)]
    best = least_bad(points, SCALE, LIMITS)
    assert best is not None
    assert best.step == 10
    # All copies (0.75 beyond) are worse than drift of 0.6 of the noise beyond its limit.
    copied = Point(30, 0.9, 0.5, 0.0, 1.0)
    drifted = point(40, 0.9, drift=0.275)
    assert least_bad([copied, drifted], SCALE, LIMITS) == drifted
    assert least_bad([], SCALE, LIMITS) is None


def test_overfitting_begins_where_no_later_checkpoint_keeps_the_limits() -> None:
    good, bad = {"drift": 0.0}, {"drift": 0.2}
    points = [
        point(10, 0.5, **good), point(20, 0.5, **bad), point(30, 0.6, **good),
        point(40, 0.7, **bad), point(50, 0.8, **bad),
    ]  # fmt: skip
    assert overfits_from(points, SCALE, LIMITS) == 40
    assert overfits_from(points[:3], SCALE, LIMITS) is None
    assert overfits_from(points[3:], SCALE, LIMITS) == 40
    assert overfits_from([], SCALE, LIMITS) is None


def test_patience_counts_looks_since_the_recommended_one() -> None:
    points = [point(10, 0.5), point(20, 0.4), point(30, 0.9, drift=0.2)]
    assert not has_stalled(points[:2], SCALE, LIMITS, patience=2)
    assert has_stalled(points, SCALE, LIMITS, patience=2)
    assert not has_stalled([*points, point(40, 0.6)], SCALE, LIMITS, patience=2)
    never = [point(10, 0.9, drift=0.2), point(20, 0.9, drift=0.2)]
    assert has_stalled(never, SCALE, LIMITS, patience=2)


def test_the_rule_says_its_limits() -> None:
    assert "at most 25% pass for copies" in LIMITS.in_words()
    assert "at most 0.5 of what another noise seed changes" in LIMITS.in_words()
    assert "at least 75% of the frozen base's" in LIMITS.in_words()
