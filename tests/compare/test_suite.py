"""Subjects, prompts, rows, budgets and trials of a comparison, before anything is trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.base import recognise_base
from finetune.compare.config import CompareConfig, TuneConfig
from finetune.compare.plan import (
    Trial,
    budget_text,
    check_nouns,
    method_runs,
    row_run,
    trials_of,
    with_trial,
)
from finetune.compare.suite import SuiteSubject, load_suite
from finetune.config import RunConfig, validate
from finetune.errors import ConfigError, DataError
from finetune.run import check_settings
from methods import load_method

Values = Callable[..., dict[str, Any]]


def suite(values: dict[str, Any]) -> tuple[SuiteSubject, ...]:
    return load_suite(validate(CompareConfig, values, "test"), size=16)


def check(values: dict[str, Any]) -> None:
    config = validate(CompareConfig, values, "test")
    method_runs(config, load_method)
    subjects = load_suite(config, size=16)
    check_nouns(config)
    for name in config.methods:
        for subject in subjects:
            row_run(config, name, subject, 0, Path("run"), load_method)


def refused(match: str, values: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, DataError), match=match):
        check(values)


def runs_of(values: dict[str, Any]) -> dict[str, RunConfig]:
    return method_runs(validate(CompareConfig, values, "test"), load_method)


def test_one_subject_has_its_folder_s_name_and_prompts_by_role(values: Values) -> None:
    (rex,) = suite(values())
    assert (rex.name, rex.class_noun, len(rex.photos)) == ("rex", "dog", 3)
    assert [(p.role, p.text) for p in rex.prompts] == [
        ("test", "a dog on the beach"),
        ("test", "a dog at night"),
        ("class", "a photo of a dog"),
        ("unrelated", "a red car"),
    ]
    assert rex.validation == ()


def test_a_folder_of_subjects_says_what_each_is(suite_folder: Path, values: Values) -> None:
    data = {"photos": str(suite_folder), "class_noun": None}
    rex, cup = suite(values(data=data, prompts="dreambooth"))
    assert (rex.kind, cup.kind, cup.class_noun) == ("live", "object", "mug")
    assert (len(rex.photos), len(cup.photos)) == (3, 1)
    texts = [[p.template for p in subject.prompts if p.role == "test"] for subject in (rex, cup)]
    assert len(texts[0]) == len(texts[1]) == 25
    assert len({*texts[0], *texts[1]}) == 35
    (only,) = suite(values(data=data, subjects=["cup"]))
    assert only.name == "cup"


def test_nouns_may_be_given_for_subjects_that_are_not_taken_this_time(
    suite_folder: Path, values: Values
) -> None:
    methods = {
        "low": {
            "method": {"kind": "lora", "rank": 2},
            "class_noun": {"rex": "car", "cup": "boat"},
        }
    }
    data = {"photos": str(suite_folder), "class_noun": None}
    given = values(data=data, subjects=["cup"])
    check({**given, "methods": methods})
    methods["low"]["class_noun"] = {"tom": "cat"}
    refused("there is no subject 'tom'", {**given, "methods": methods})


def test_an_unrelated_prompt_that_names_the_class_is_left_out_for_it(values: Values) -> None:
    prompts = ["a red car", "a dog in a car"]
    (rex,) = suite(values(unrelated_prompts=prompts))
    assert [p.text for p in rex.prompts if p.role == "unrelated"] == ["a red car"]


def test_only_whole_words_name_a_class_be_it_one_or_many(values: Values) -> None:
    prompts = ["a scattered crowd", "a cat", "two Cats at sea", "a category"]
    (tom,) = suite(values(data={"class_noun": "cat"}, unrelated_prompts=prompts))
    kept = [p.text for p in tom.prompts if p.role == "unrelated"]
    assert kept == ["a scattered crowd", "a category"]


def test_there_may_be_no_unrelated_prompts(values: Values) -> None:
    (rex,) = suite(values(unrelated_prompts=[]))
    assert [p.role for p in rex.prompts] == ["test", "test", "class"]


def test_mistakes_in_a_suite_are_named(suite_folder: Path, values: Values, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(suite_folder, bare)
    (bare / "subjects.yaml").unlink()
    refused("holds no photos but folders.*subjects.yaml", values(data={"photos": str(bare)}))
    data = {"photos": str(suite_folder), "class_noun": None}
    refused("has no 'rexx'.*Did you mean 'rex'", values(data=data, subjects=["rexx"]))
    refused("data.class_noun: of a folder", values(data={"photos": str(suite_folder)}))
    refused("class_noun is not set", values(data={"class_noun": None}))
    for nothing in ("{}", "", "[rex, cup]"):
        (bare / "subjects.yaml").write_text(nothing)
        refused(r"subjects\.yaml should hold a line for each subject", values(
            data={"photos": str(bare), "class_noun": None}))  # fmt: skip
    (bare / "subjects.yaml").write_text("rex: {class_nou: dog}\n")
    refused("class_nou: unknown key. Did you mean 'class_noun'", values(
        data={"photos": str(bare), "class_noun": None}))  # fmt: skip
    (bare / "subjects.yaml").write_text("tom: cat\n")
    refused("Subject tom: .*no folder", values(data={"photos": str(bare), "class_noun": None}))


def test_prompts_that_measure_nothing_are_refused(values: Values) -> None:
    refused(r"number 1: 'a dog' does not mention \{subject\}", values(prompts=["a dog"]))
    refused("class_prompts.*: 'a thing' should hold", values(class_prompts=["a thing"]))
    refused("class_prompts", values(class_prompts=[]))
    refused("is about the subject or its class", values(unrelated_prompts=["a {class}"]))


def test_validation_prompts_may_not_be_those_that_rank(values: Values) -> None:
    own = ["A {subject} at night.", "a photo of a cup"]
    refused(
        r"'A \{subject\} at night\.' is also a prompt of the comparison",
        values(validation={"every": 1, "prompts": own}),
    )
    refused("every prompt mentions {subject}", values(
        validation={"every": 1, "prompts": ["a {subject}"]}))  # fmt: skip
    (rex,) = suite(values(validation={"every": 1}, prompts=["a photo of a {subject} on the grass"]))
    assert "a photo of a {subject} on the grass" not in rex.validation
    assert len(rex.validation) == 3


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"shared": {"base": {}}}, "set base for the whole comparison"),
        ({"methods": {"low": {"sampling": {}}}}, "set sampling for all rows"),
        ({"methods": {"low": {"training": {"seed": 3}}}}, "Give seeds:"),
        ({"methods": {"low": {"training": {"max_seconds": 3}}}}, "budget: {kind: seconds"),
        ({"methods": {"low": {"validation": {"every": 3}}}}, "validation.every: set it for all"),
        ({"methods": {"low": {"validation": None}}}, r"low:\s+validation: .*valid dictionary"),
        ({"methods": {"low": {"validation": [3]}}}, r"low:\s+validation: .*valid dictionary"),
        ({"methods": {"frozen base": {"method": {"kind": "lora"}}}}, "choose another name"),
        ({"methods": {".hidden": {"method": {"kind": "lora"}}}}, "choose another name"),
        ({"artifacts": {"low": {"path": "x"}}}, "artifacts.low: choose another name"),
        ({"methods": {"low": {"class_noun": {"tom": "cat"}}}}, "there is no subject 'tom'"),
        ({"methods": {"low": {"class_noun": 3}}}, "should be a word"),
        ({"budget": {"kind": "steps"}}, "say how many steps"),
        ({"budget": {"kind": "own", "amount": 3}}, "leave amount out"),
        ({"budget": {"kind": "pictures", "amount": 1}, "shared": {"training": {"batch_size": 2}}},
         "sees 2 pictures in one step"),
        ({"tune": {"trials": 4}}, "have only 3 combinations"),
        ({"tune": {"trials": 1, "num_steps": [9]}, "budget": {"kind": "steps", "amount": 8}},
         "more steps than budget.amount"),
        ({"tune": {"trials": 1, "num_steps": [9]}, "budget": {"kind": "seconds", "amount": 8}},
         "contradicts budget.kind seconds"),
        ({"seeds": [1, 1]}, "names a seed twice"),
    ],
)  # fmt: skip
def test_rows_and_budgets_that_contradict_themselves(
    changes: dict[str, Any], match: str, values: Values
) -> None:
    refused(match, values(**changes))


def test_budgets_make_equal_what_they_name(values: Values) -> None:
    rows = {
        "with class": {"method": {"kind": "lora"}, "prior": {"kind": "class_images"}},
        "without": {"method": {"kind": "lora"}, "training": {"batch_size": 4}},
        "words": {
            "method": {"kind": "textual_inversion", "learning_rate": 1e-3},
            "prior": {"kind": "class_images"},
        },
    }
    common = {"methods": {"low": rows["without"], "high": rows["without"], **rows}}

    def steps(**budget: Any) -> list[int]:
        found = runs_of(values(**common, budget=budget))
        return [found[name].training.num_steps for name in rows]

    assert steps(kind="own") == [2, 2, 2]
    assert steps(kind="steps", amount=7) == [7, 7, 7]
    # Class examples count where a method uses them, which Textual Inversion does not.
    assert steps(kind="pictures", amount=24) == [12, 6, 24]
    timed = runs_of(values(budget={"kind": "seconds", "amount": 1.5}))["low"].training
    assert timed.max_seconds == 1.5


def test_what_was_made_equal_is_told(values: Values) -> None:
    def text(**changes: Any) -> str:
        config = validate(CompareConfig, values(**changes), "test")
        return budget_text(config, method_runs(config, load_method))

    assert text().endswith("all for 2 optimizer steps with 1 photo each.")
    longer = {"methods": {"low": {"training": {"num_steps": 9}}}}
    assert text(**longer) == "Every method trained for its own number of steps."
    tuned = text(tune={"trials": 2}, budget={"kind": "pictures", "amount": 8})
    assert "saw at most 8 training pictures" in tuned
    assert "2 trials on validation prompts" in tuned
    # What a sentence says of all has to hold for rows that were tuned, or ended early.
    tries = {"trials": 2, "num_steps": [1, 2]}
    assert text(tune=tries).startswith("Every method trained for its own number of steps. Each was")
    same = {"trials": 2, "num_steps": [5]}
    assert "configured, all for 5 optimizer steps with 1 photo each. Each was" in text(tune=same)
    patient = {
        "validation": {"every": 1},
        "methods": {"low": {"validation": {"patience": 1}}},
    }
    assert text(**patient).endswith("all for at most 2 optimizer steps with 1 photo each.")
    million = {"kind": "steps", "amount": 1_000_000}
    assert text(budget=million) == "Every method trained for 1,000,000 optimizer steps."
    assert "for at most 1,000,000 optimizer steps." in text(budget=million, **patient)
    assert "for at most 1,000,000 optimizer steps." in text(budget=million, tune=same)
    timed = {"kind": "seconds", "amount": 1.5}
    assert text(budget=timed) == "Every method trained for 1.5 seconds of optimizer steps."


@pytest.mark.parametrize("row", [{"patience": 3}, {"keep": "recommended"}])
def test_rows_may_follow_the_checkpoint_rule_where_there_are_looks(
    values: Values, row: dict[str, Any]
) -> None:
    def checked(**validation: Any) -> None:
        methods = {"low": {"validation": row}}
        config = validate(CompareConfig, values(validation=validation, methods=methods), "test")
        run = method_runs(config, load_method)["low"]
        check_settings(run, recognise_base(config.base), load_method("lora")(run.method))

    checked(every=50)
    with pytest.raises(ConfigError, match=r"validation\.every=50"):
        checked()


def test_every_row_tries_the_same_settings_relative_to_its_own(values: Values) -> None:
    tune = TuneConfig(trials=3, learning_rate_factors=(0.5, 2.0), num_steps=(10, 20))
    trials = trials_of(tune)
    assert trials == trials_of(tune)
    assert len({(t.learning_rate_factor, t.num_steps) for t in trials}) == 3
    runs = runs_of(values())
    for trial in trials:
        low, high = (with_trial(runs[name], trial) for name in ("low", "high"))
        assert low.method.learning_rate == pytest.approx(1e-3 * trial.learning_rate_factor)
        assert high.method.learning_rate == pytest.approx(1e-2 * trial.learning_rate_factor)
        assert low.training.num_steps == trial.num_steps


def test_a_trial_scales_every_learning_rate_and_shows_no_digits_of_arithmetic(
    values: Values,
) -> None:
    both = {"learning_rate": 1e-4, "text_encoder_learning_rate": 5e-5, "train_text_encoder": True}
    given = {"methods": {"low": {"method": both}}}
    trial = Trial(learning_rate_factor=3.0, num_steps=None)
    assert 1e-4 * 3.0 != 3e-4
    tried = with_trial(runs_of(values(**given))["low"], trial)
    assert trial.settings(tried) == {
        "method.learning_rate": 3e-4,
        "method.text_encoder_learning_rate": 1.5e-4,
        "training.num_steps": 2,
    }
    timed = runs_of(values(budget={"kind": "seconds", "amount": 9}))["low"]
    assert trial.settings(with_trial(timed, trial)) == {"method.learning_rate": 3e-3}


def test_a_row_may_call_a_subject_otherwise(suite_folder: Path, values: Values) -> None:
    data = {"photos": str(suite_folder), "class_noun": None}
    config = validate(
        CompareConfig,
        values(data=data, methods={"low": {"class_noun": {"rex": "cat"}}}),
        "test",
    )
    nouns = {
        (name, subject.name): row_run(
            config, name, subject, 0, Path("run"), load_method
        ).data.class_noun
        for name in ("low", "high")
        for subject in load_suite(config, size=16)
    }
    assert nouns == {
        ("low", "rex"): "cat",
        ("low", "cup"): "mug",
        ("high", "rex"): "dog",
        ("high", "cup"): "mug",
    }
