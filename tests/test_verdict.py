"""The comparison in words: who leads, what cannot be told, and what would settle it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from finetune.differences import LEVEL, pair_differences, score_keys, summarise
from finetune.planning import settle
from finetune.scores import SCORES
from finetune.shares import share_interval
from finetune.statistics import difference, interval
from finetune.tables import Table, paired
from finetune.verdict import Finding, References, verdict
from finetune.wording import decimal

SUBJECT, PROMPT, DRIFT = "subject_fidelity/e", "prompt_fidelity/t", "class_drift/e"
SHAPE = (1, 1, 8, 4)
NOISE = np.random.default_rng(0)
SHARED = NOISE.normal(size=SHAPE) * 0.05
"""What all rows have in common: hard prompts, lucky noise."""


def table(mean: float, *, seed: int, spread: float = 0.01) -> Table:
    """Values of a row, paired with every other's; their mean is exactly `mean`."""
    own = np.random.default_rng(seed).normal(size=SHAPE) * spread
    values = SHARED + own
    return values - values.mean() + mean


def rows_of(**means: tuple[float, float, float]) -> dict[str, dict[str, Table]]:
    return {
        row: {
            SUBJECT: table(subject, seed=3 * index),
            PROMPT: table(prompt, seed=3 * index + 1),
            DRIFT: table(drift, seed=3 * index + 2),
        }
        for index, (row, (subject, prompt, drift)) in enumerate(means.items())
    }


CLEAR = rows_of(dreambooth=(0.7, 0.30, 0.2), lora=(0.6, 0.32, 0.1), ti=(0.4, 0.28, 0.0))


def by_question(tables: dict[str, dict[str, Table]], **more: object) -> dict[str, Finding]:
    found = verdict(tables, list(tables), **more)  # type: ignore[arg-type]
    return {finding.question: finding for finding in found.findings}


def test_clear_leads_are_named_with_their_amount_and_interval() -> None:
    found = by_question(CLEAR)
    assert [f.leaders for f in found.values()] == [("dreambooth",), ("lora",), ("ti",)]
    level = 1 - 0.05 / 3
    lead = difference(CLEAR["dreambooth"][SUBJECT], CLEAR["lora"][SUBJECT], level=level)
    assert found["subject"].text == (
        "dreambooth kept the subject best here (1 subject, 1 training run): subject fidelity 0.700, "
        f"0.100 ({lead.low:.3f} to {lead.high:.3f}) above lora, the next."
    )
    less = difference(CLEAR["lora"][DRIFT], CLEAR["ti"][DRIFT], level=level)
    assert found["class"].text == (
        "ti left the class most alone here (1 subject, 1 training run): drift of the class 0.000, "
        f"0.100 ({less.low:.3f} to {less.high:.3f}) below lora, the next."
    )


def test_the_class_verdict_asks_drift_not_likeness_to_the_subject() -> None:
    tables = {
        row: {"class_leak/e": table(leak, seed=i), DRIFT: table(drift, seed=9 + i)}
        for i, (row, leak, drift) in enumerate([("wrecked", 0.0, 0.9), ("kept", 0.4, 0.05)])
    }
    assert by_question(tables)["class"].leaders == ("kept",)


def test_a_ruined_class_is_not_made_up_for_by_what_has_nothing_to_do_with_it() -> None:
    """Two prompts about neither outnumber the one about the class, and do not answer for it."""
    tables = {
        row: {"other_drift/e": table(other, seed=i), DRIFT: table(drift, seed=9 + i)}
        for i, (row, drift, other) in enumerate([("ruins", 0.3, 0.0), ("spares", 0.1, 0.4)])
    }
    assert by_question(tables)["class"].leaders == ("spares",)


def test_less_drift_is_not_called_being_ahead() -> None:
    tables = {
        "ti": {DRIFT: table(0.030, seed=1, spread=0.05)},
        "lora": {DRIFT: table(0.031, seed=2, spread=0.05)},
    }
    text = by_question(tables)["class"].text
    assert "ti (0.030) has less drift of the class than lora (0.031), by 0.001 (" in text
    assert "ahead" not in text


def test_a_lead_of_single_runs_says_so_and_one_of_several_does_not() -> None:
    assert by_question(CLEAR)["subject"].scope == "1 subject, 1 training run"
    noise = np.random.default_rng(5).normal(size=(2, 1, 3, 6, 2)) * 0.01
    repeated = {row: {SUBJECT: noise[i] + 0.5 + 0.1 * i} for i, row in enumerate("ab")}
    found = verdict(repeated, ["a", "b"])
    assert found.findings[0].text.startswith("b kept the subject best: subject fidelity")
    assert found.findings[0].scope == ""
    assert found.remarks[0] == (
        "The intervals speak of this subject, training runs like these 3 and prompts like these 6."
    )
    twice = {row: {SUBJECT: t[SUBJECT][:, :2]} for row, t in repeated.items()}
    assert by_question(twice)["subject"].scope == "1 subject, 2 training runs"


def test_no_interval_of_a_drift_reaches_below_zero() -> None:
    few = np.array([0.001, 0.002, 0.2]).reshape(1, 1, 3, 1)
    plain, found = interval(few), summarise(DRIFT, few)
    assert plain.low < 0
    assert (found.low, found.mean, found.high) == (0, plain.mean, plain.high)
    near_one = 1 - few
    assert summarise(SUBJECT, near_one).high == 1
    assert difference(few, few * 0).low < 0  # a difference may be negative


def test_what_cannot_be_told_says_so_and_what_would_settle_it() -> None:
    tables = {
        "one": {SUBJECT: table(0.600, seed=1, spread=0.05)},
        "two": {SUBJECT: table(0.595, seed=2, spread=0.05)},
        "far": {SUBJECT: table(0.3, seed=3, spread=0.05)},
    }
    found = by_question(tables)["subject"]
    assert found.leaders == ("one", "two")
    level = 1 - 0.05 / 3
    gap = difference(tables["one"][SUBJECT], tables["two"][SUBJECT], level=level)
    assert gap.low is not None
    assert found.text.startswith(
        "Which row kept the subject best cannot be told: one (0.600) is ahead of two (0.595) in subject "
        f"fidelity, by 0.005 ({decimal(gap.low)} to {gap.high:.3f}); far (0.300) is clearly behind."
    )
    advice = settle(paired(tables["one"][SUBJECT], tables["two"][SUBJECT]), level=level)
    assert advice is not None
    assert found.text.endswith(advice.in_words())


def test_rows_that_share_the_best_place_are_all_named() -> None:
    tables = {f"row{i}": {SUBJECT: table(0.5, seed=i, spread=0.1)} for i in range(4)}
    found = by_question(tables)["subject"]
    assert set(found.leaders) == set(tables)
    assert "may be as good" in found.text


def test_equal_rows_are_equal_and_nothing_is_asked_for() -> None:
    tables = {name: {DRIFT: np.zeros(SHAPE)} for name in ("ti", "ti, two vectors")}
    found = by_question(tables)["class"]
    assert found.leaders == ("ti", "ti, two vectors")
    assert found.text == (
        "Which row left the class most alone cannot be told: ti (0.000) and “ti, two vectors” (0.000) "
        "are equal in drift of the class."
    )


def test_a_single_row_stands_between_floor_and_ceiling() -> None:
    tables = {"lora": CLEAR["lora"]}
    photos = np.array([0.7, 0.8]).reshape(1, 1, 1, 2)
    references = References({SUBJECT: table(0.3, seed=7)}, {SUBJECT: photos})
    found = by_question(tables, references=references)["subject"]
    own = summarise(SUBJECT, tables["lora"][SUBJECT])
    assert found.text == (
        f"Subject fidelity of lora: 0.600 ({own.low:.3f} to {own.high:.3f}); the frozen base has 0.300, "
        "real photos among themselves 0.750."
    )


def test_what_was_not_measured_is_said() -> None:
    found = verdict({"folder": {SUBJECT: CLEAR["lora"][SUBJECT]}}, ["folder"])
    assert [f.question for f in found.findings] == ["subject", "prompt", "class"]
    assert found.findings[2].text == "Which row left the class most alone was not measured."
    assert found.findings[2].leaders == ()
    empty = verdict({}, [])
    assert all("was not measured" in f.text for f in empty.findings)


def test_rows_without_any_value_are_named_and_left_out() -> None:
    tables = dict(CLEAR, broken={SUBJECT: np.full(SHAPE, np.nan)}, gone={})
    found = verdict(tables, list(tables))
    assert found.findings == verdict(CLEAR, list(CLEAR)).findings
    assert found.remarks[0] == "Without any score, and left out: broken and gone."


def test_rows_that_share_no_picture_cannot_be_compared() -> None:
    first, second = table(0.6, seed=1), table(0.5, seed=2)
    first[0, 0, :4], second[0, 0, 4:] = np.nan, np.nan
    found = by_question({"a": {SUBJECT: first}, "b": {SUBJECT: second}})["subject"]
    assert "share no pictures to compare subject fidelity on" in found.text
    assert found.leaders == ("a", "b")


def test_a_row_that_failed_where_it_is_hard_does_not_win_by_that() -> None:
    easy, hard = 0.8, 0.2
    base = np.random.default_rng(0).normal(size=(4, 1, 5, 4)) * 0.01
    base += np.array([easy, easy, easy, hard]).reshape(4, 1, 1, 1)
    better = base + 0.05 + np.random.default_rng(1).normal(size=base.shape) * 0.005
    partial = base.copy()
    partial[3] = np.nan  # its mean is 0.8, the better row's 0.7
    found = by_question({"partial": {SUBJECT: partial}, "better": {SUBJECT: better}})["subject"]
    assert found.leaders == ("better",)
    assert found.text.endswith("above partial, the next, on the pictures that both have.")


def test_floor_and_ceiling_are_of_the_subjects_that_the_row_has() -> None:
    easy_and_hard = np.array([0.8, 0.2]).reshape(2, 1, 1, 1)
    base = np.broadcast_to(easy_and_hard, (2, 1, 3, 2)) - 0.1
    photos = np.broadcast_to(easy_and_hard, (2, 1, 1, 4)) + 0.1
    row = base + 0.05
    row[1] = np.nan
    references = References({SUBJECT: base}, {SUBJECT: photos})
    text = by_question({"lora": {SUBJECT: row}}, references=references)["subject"].text
    assert "the frozen base has 0.700, real photos among themselves 0.900" in text


def test_a_row_that_is_better_only_where_the_other_has_no_pictures_is_not_called_ahead() -> None:
    rng = np.random.default_rng(0)
    base = np.array([0.8, 0.8, 0.8, 0.2]).reshape(4, 1, 1, 1) + rng.normal(size=(4, 1, 5, 4)) * 0.01
    whole = base + 0.003 + rng.normal(size=base.shape) * 0.05
    partial = base.copy()
    partial[3] = np.nan
    gap = float(np.nanmean(whole - partial))
    assert 0 < gap < 0.01
    found = by_question({"partial": {SUBJECT: partial}, "whole": {SUBJECT: whole}})["subject"]
    assert found.leaders == ("partial", "whole")
    assert f"whole has the better subject fidelity, by {gap:.3f} (" in found.text
    assert "on the pictures that both have" in found.text
    assert "ahead" not in found.text


def test_rows_that_lack_the_deciding_score_are_named() -> None:
    tables = dict(CLEAR, tool={SUBJECT: table(0.5, seed=20)})
    found = by_question(tables)
    for question in ("prompt", "class"):
        assert found[question].text.endswith("; tool was not measured in it.")
    assert "tool" not in found["subject"].text.replace("tool (0.500)", "")
    assert found["class"].leaders == by_question(CLEAR)["class"].leaders


def test_seeds_of_rows_that_were_not_trained_here_are_no_training_runs() -> None:
    noise = np.random.default_rng(5).normal(size=(2, 1, 3, 6, 2)) * 0.01
    tables = {row: {SUBJECT: noise[i] + 0.5 + 0.1 * i} for i, row in enumerate("ab")}
    trained, shown = verdict(tables, ["a", "b"]), verdict(tables, ["a", "b"], shown={"a", "b"})
    assert (trained.findings[0].scope, shown.findings[0].scope) == (
        "",
        "1 subject, 1 training run",
    )
    assert shown.remarks[0] == (
        "The intervals speak of this subject as trained here and prompts like these 6: what another "
        "training run would change is in none of them. To speak of the methods takes 3 subjects."
    )
    (folded,) = pair_differences(tables, ["a", "b"], shown={"a", "b"})
    pictures = (noise[0] - noise[1] - 0.1).transpose(0, 2, 1, 3).reshape(1, 1, 6, 6)
    again = interval(pictures, level=LEVEL)
    assert (folded.interval.low, folded.interval.high) == pytest.approx((again.low, again.high))
    assert folded.interval.speaks_of == again.speaks_of
    assert pair_differences(tables, ["a", "b"], shown={"a"}) == pair_differences(tables, ["a", "b"])


def test_every_question_s_intervals_speak_for_themselves() -> None:
    """One prompt about the class and six about the subject; the first row failed on all but one subject."""
    rng = np.random.default_rng(3)
    tables = {
        row: {SUBJECT: rng.normal(size=(4, 1, 6, 2)), DRIFT: rng.normal(size=(4, 1, 1, 2))}
        for row in "abc"
    }
    tables["a"][SUBJECT][1:] = tables["a"][SUBJECT][1:] * np.nan
    tables["a"][SUBJECT][0] -= 9
    told = [r for r in verdict(tables, list(tables)).remarks if r.startswith("The intervals")]
    assert told == [
        "The intervals of subject fidelity speak of subjects like these 4 and prompts like these 6.",
        "The intervals of drift of the class speak of subjects like these 4 and this prompt.",
    ]


def test_remarks_say_what_the_intervals_speak_of_and_how_prompts_were_read() -> None:
    remarks = verdict(CLEAR, list(CLEAR)).remarks
    assert remarks == (
        "The intervals speak of this subject as trained here and prompts like these 8: what another training "
        "run would change is in none of them. To speak of the methods takes 3 training seeds, or 3 subjects.",
        "Intervals of differences hold for all 3 pairs of rows at once, with 95 %.",
        "Prompt fidelity is CLIP-T with the identifier replaced by the class noun.",
    )


def test_copies_and_beaten_ceilings_are_remarked_upon() -> None:
    share = np.zeros(SHAPE)
    share[0, 0, :, 0] = 1
    tables = {"lora": {SUBJECT: table(0.9, seed=1), "copy_share/e": share}}
    references = References({}, {SUBJECT: np.full((1, 1, 1, 2), 0.7)})
    remarks = verdict(tables, ["lora"], references=references).remarks
    assert any("lora is nearer to the photos than they are to each other" in r for r in remarks)
    assert "25% of the pictures of lora pass for copies of a training photo." in remarks


def test_rows_are_remarked_upon_that_learnt_nothing_or_harmed_the_base() -> None:
    def scores(subject: float, prompt: float, leak: float, seed: int) -> dict[str, Table]:
        return {
            SUBJECT: table(subject, seed=seed),
            PROMPT: table(prompt, seed=seed + 1),
            "class_leak/e": table(leak, seed=seed + 2),
        }

    tables = {
        "idle": scores(0.30, 0.35, 0.3, 1),
        "greedy": scores(0.7, 0.2, 0.6, 5),
        "lost": scores(0.10, 0.35, 0.3, 11),
    }
    references = References(scores(0.30, 0.35, 0.3, 9))
    remarks = " ".join(verdict(tables, list(tables), references=references).remarks)
    assert re.search(
        r"Cannot be told from the frozen base in subject fidelity: idle by [^:]*\)\. F", remarks
    )
    assert "Further from the subject than the frozen base: lost by 0.200 (" in remarks
    assert "Obey prompts less than the frozen base: greedy by 0.150 (" in remarks
    assert "towards the subject, measured from the frozen base: greedy by 0.300 (" in remarks


def test_every_pair_of_rows_has_its_difference_at_a_level_that_holds_for_all() -> None:
    found = pair_differences(CLEAR, list(CLEAR))
    assert [(d.row, d.other) for d in found[:3]] == [
        ("dreambooth", "lora"),
        ("dreambooth", "ti"),
        ("lora", "ti"),
    ]
    assert [d.score for d in found] == [SUBJECT] * 3 + [PROMPT] * 3 + [DRIFT] * 3
    assert found[0].interval.mean == pytest.approx(0.1)
    assert found[0].interval.level == pytest.approx(1 - 0.05 / 3)
    assert found[0].conclusion == "higher"
    assert found[8].conclusion == "higher"  # lora drifts more than ti
    assert found[0].needed is None


def test_two_rows_need_no_wider_interval() -> None:
    found = pair_differences({row: CLEAR[row] for row in ("ti", "lora")}, ["ti", "lora"])
    assert {d.interval.level for d in found} == {LEVEL}
    assert found[0].conclusion == "lower"


def test_unsure_differences_come_with_advice() -> None:
    tables = {"a": {SUBJECT: SHARED + 0.5}, "b": {SUBJECT: SHARED + 0.5}}
    assert pair_differences(tables, ["a", "b"])[0].needed == "They are equal in every picture."
    one = {row: {SUBJECT: np.full((1, 1, 1, 1), value)} for row, value in (("a", 0.5), ("b", 0.6))}
    needed = pair_differences(one, ["a", "b"])[0].needed
    assert needed is not None
    assert "Nothing is repeated" in needed


def test_scores_come_in_the_agreed_order_and_encoders_as_given() -> None:
    tables = {
        "a": {DRIFT: SHARED, "subject_fidelity/z": SHARED},
        "b": {"subject_fidelity/a": SHARED, "copy/z": SHARED},
    }
    assert score_keys(tables) == ["subject_fidelity/z", "subject_fidelity/a", DRIFT, "copy/z"]
    assert len(SCORES) == 9


def test_the_headline_encoder_can_be_chosen() -> None:
    tables = {
        row: {"subject_fidelity/x": table(x, seed=1), "subject_fidelity/y": table(y, seed=2)}
        for row, x, y in (("a", 0.7, 0.2), ("b", 0.3, 0.6))
    }
    assert by_question(tables)["subject"].leaders == ("a",)
    chosen = by_question(tables, headline={"subject_fidelity": "subject_fidelity/y"})
    assert chosen["subject"].leaders == ("b",)
    assert chosen["subject"].score == "subject_fidelity/y"


def test_shares_are_summarised_as_shares() -> None:
    ones = np.zeros((1, 1, 5, 4))
    assert summarise("copy_share/e", ones) == share_interval(ones)
    photos = np.random.default_rng(0).normal(size=(2, 1, 1, 5))
    assert summarise(SUBJECT, photos, real_photos=True).low is None


def test_the_same_tables_give_the_same_words() -> None:
    again = {row: {key: value.copy() for key, value in t.items()} for row, t in CLEAR.items()}
    assert verdict(again, list(again)) == verdict(CLEAR, list(CLEAR))


def test_the_order_of_rows_decides_between_equal_ones_alone() -> None:
    forwards, backwards = (
        verdict(CLEAR, rows).findings for rows in (["lora", "ti"], ["ti", "lora"])
    )
    assert [f.leaders for f in forwards] == [f.leaders for f in backwards]


@pytest.mark.parametrize("pictures", [1, 64, 100])
def test_any_comparison_gets_three_sentences(pictures: int) -> None:
    rng = np.random.default_rng(pictures)
    for _ in range(20):
        shape = (*rng.integers(1, (5, 3, 6)), pictures)
        tables = {}
        for row in ("a", "b", "c")[: rng.integers(1, 4)]:
            tables[row] = {key: rng.normal(size=shape) for key in (SUBJECT, PROMPT, DRIFT)}
            for values in tables[row].values():
                values[rng.random(shape[:3]) < 0.3] = np.nan
        found = verdict(tables, list(tables))
        assert len(found.findings) == 3
        assert all(f.text.endswith(".") and "nan" not in f.text for f in found.findings)
