"""Configurations are read as they were meant, or refused with everything that is wrong at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep.config import DataConfig
from finetune.compare.config import CompareConfig
from finetune.compare.plan import method_runs
from finetune.config import (
    RunConfig,
    apply_overrides,
    build_run_config,
    commented_yaml,
    differences,
    merge,
    parse_yaml,
    read_yaml,
    to_yaml,
    validate,
)
from finetune.errors import ConfigError
from methods import METHODS, load_method

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def build(values: dict[str, Any]) -> RunConfig:
    return build_run_config(values, load_method, "test.yaml")


def run_of(kind: str = "lora", **sections: Any) -> dict[str, Any]:
    values = {"data": {"photos": "photos", "class_noun": "dog"}, "method": {"kind": kind}}
    return merge(values, sections)


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        build(values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E4", 1e4),
        ("-2.5e+3", -2500.0),
        (".5e-1", 0.05),
        ("1.0e-5", 1e-5),
        ("0.1", 0.1),
        ("5", 5),
        ("-3", -3),
        ("0", 0),
        ("sks", "sks"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("v1.5-4", "v1.5-4"),
        ("true", True),
        ("null", None),
    ],
)
def test_numbers_are_read_as_in_python(text: str, value: object) -> None:
    read = parse_yaml(f"key: {text}", "test")["key"]
    assert read == value
    assert type(read) is type(value)


def test_learning_rate_without_a_point_is_a_number() -> None:
    values = parse_yaml("{data: {photos: p}, method: {kind: lora, learning_rate: 1e-4}}", "test")
    assert build(values).method.learning_rate == 0.0001


def test_plain_yaml_loader_is_left_as_it_was() -> None:
    assert yaml.safe_load("1e-4") == "1e-4"


def test_yaml_cannot_make_objects() -> None:
    with pytest.raises(ConfigError, match="test is not valid YAML"):
        parse_yaml("!!python/object/apply:os.getcwd []", "test")


def test_invalid_yaml_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("data:\n  photos: [a\nmethod: x\n")
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert "line 3" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"- a\n- b\n", b"just text", b"a: \xff\xfe", b"\x00\x01"])
def test_file_that_holds_no_sections_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"odd\.yaml"):
        read_yaml(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml cannot be read: No such file"):
        read_yaml(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    ("section", "key", "nearest"),
    [
        ("training", "num_step", "num_steps"),
        ("data", "photo", "photos"),
        ("method", "ranks", "rank"),
        ("prior", "num_image", "num_images"),
        ("base", "sorce", "source"),
        ("optimizer", "warmup", "warmup_steps"),
    ],
)
def test_unknown_key_is_refused_with_path_and_nearest(section: str, key: str, nearest: str) -> None:
    message = refusal(run_of(**{section: {key: 1}}))
    assert f"{section}.{key}: unknown key. Did you mean '{nearest}'?" in message


def test_unknown_section_is_refused_with_the_nearest() -> None:
    assert "trainig: unknown key. Did you mean 'training'?" in refusal(run_of(trainig={}))
    assert "zzzzzz: unknown key.\n" in refusal(run_of(zzzzzz={})) + "\n"


def test_all_errors_come_at_once() -> None:
    values = run_of(
        method={"rank": 0, "learning_rte": 1},
        data={"crop": "left", "flip_probability": 1.5},
        training={"num_steps": "many"},
    )
    lines = refusal(values).splitlines()
    assert lines[0] == "test.yaml:"
    starts = [line.split()[0] for line in lines[1:]]
    assert sorted(starts) == [
        "data.crop:",
        "data.flip_probability:",
        "method.learning_rte:",
        "method.rank:",
        "training.num_steps:",
    ]


def test_error_tells_the_given_value_and_what_is_allowed() -> None:
    message = refusal(run_of(training={"num_steps": 0}, data={"crop": "left"}))
    assert "training.num_steps: input should be greater than 0 (given: 0)." in message
    assert "data.crop: input should be 'center', 'random' or 'subject' (given: 'left')." in message


def test_missing_photos_are_named() -> None:
    assert "data: field required" in refusal({"method": {"kind": "lora"}})
    assert "data.photos: field required" in refusal({"method": {"kind": "lora"}, "data": {}})


@pytest.mark.parametrize("values", [{}, {"method": "lora"}, {"method": {}}, {"method": None}])
def test_missing_method_kind_is_named(values: dict[str, Any]) -> None:
    assert refusal(values).startswith("test.yaml: method.kind is missing")


def test_unknown_method_names_the_nearest() -> None:
    message = refusal(run_of("dreamboth"))
    assert "there is no method 'dreamboth'" in message
    assert "Known: dreambooth, lora, textual_inversion." in message
    assert message.endswith("Did you mean 'dreambooth'?")


def test_only_the_chosen_methods_keys_are_known() -> None:
    assert "method.num_vectors: unknown key" in refusal(run_of("lora", method={"num_vectors": 2}))
    inversion = build(run_of("textual_inversion", method={"num_vectors": 2}))
    assert inversion.method.model_dump()["num_vectors"] == 2


@pytest.mark.parametrize("kind", ["class_images", "base_prediction"])
def test_prior_without_a_class_noun_is_refused(kind: str) -> None:
    message = refusal(run_of(data={"class_noun": None}, prior={"kind": kind}))
    assert f"prior.kind is {kind}, but data.class_noun is not set" in message
    spelled_out = {"kind": kind, "prompt": "a photo of a dog"}
    assert build(run_of(data={"class_noun": None}, prior=spelled_out)).prior.kind == kind
    assert build(run_of(data={"class_noun": None})).prior.kind == "none"


def test_batch_size_must_be_divisible_by_accumulation() -> None:
    values = run_of(training={"batch_size": 4, "gradient_accumulation_steps": 3})
    assert "training: batch_size 4 is not a multiple of gradient_accumulation_steps 3" in refusal(
        values
    )
    parts = {"batch_size": 4, "gradient_accumulation_steps": 2}
    assert build(run_of(training=parts)).training.gradient_accumulation_steps == 2


def test_configuration_is_frozen() -> None:
    config = build(run_of())
    with pytest.raises(ValueError, match="frozen"):
        config.training.num_steps = 3


def test_overrides_are_laid_over_and_typed() -> None:
    values = run_of(training={"num_steps": 7, "seed": 3})
    changed = apply_overrides(
        values,
        [
            "training.num_steps=12",
            "method.learning_rate=2e-3",
            "data.prompt=a {subject} = mine",
            "samples.prompts=['a {subject}', b]",
            "data.size=null",
            "output=runs/x",
        ],
    )
    config = build(changed)
    assert (config.training.num_steps, config.training.seed) == (12, 3)
    assert config.method.learning_rate == 0.002
    assert config.data.prompt == "a {subject} = mine"
    assert config.data.size is None
    assert config.samples.prompts == ("a {subject}", "b")
    assert config.output == Path("runs/x")
    assert values["training"] == {"num_steps": 7, "seed": 3}


def test_later_override_wins() -> None:
    assert apply_overrides({}, ["a.b=1", "a.b=2", "a.c=3"]) == {"a": {"b": 2, "c": 3}}


@pytest.mark.parametrize("override", ["training.num_steps", "=3", "--seed"])
def test_malformed_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=f"'{override}' is not of the form section.key=value"):
        apply_overrides({}, [override])


def test_override_with_invalid_yaml_is_named() -> None:
    with pytest.raises(ConfigError, match=r"the value of data\.photos is not valid YAML"):
        apply_overrides({}, ["data.photos=[a"])


def test_merge_goes_section_by_section_and_changes_neither() -> None:
    first = {"a": {"x": 1, "y": {"z": 1}}, "b": 2, "c": {"k": 1}}
    second = {"a": {"y": {"w": 2}}, "b": {"n": 1}, "c": None}
    assert merge(first, second) == {
        "a": {"x": 1, "y": {"z": 1, "w": 2}},
        "b": {"n": 1},
        "c": None,
    }
    assert first == {"a": {"x": 1, "y": {"z": 1}}, "b": 2, "c": {"k": 1}}
    assert second == {"a": {"y": {"w": 2}}, "b": {"n": 1}, "c": None}


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_resolved_yaml_reads_back_to_the_same(kind: str) -> None:
    config = build(
        run_of(
            kind,
            method={"learning_rate": 1e-7},
            data={"prompt": "ein Bild: {subject} — 'schön'", "photos": "~/fotos"},
            samples={"prompts": ["a", "b: c"]},
            optimizer={"eps": 1e-16},
        )
    )
    text = to_yaml(config)
    assert build(parse_yaml(text, "text")) == config
    assert to_yaml(build(parse_yaml(text, "text"))) == text


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_commented_yaml_reads_back_and_explains_every_field(kind: str) -> None:
    data = DataConfig(photos="photos", class_noun="dog", prompt="a #1 photo: of {subject}")
    method = load_method(kind).config_class()
    config = RunConfig(data=data, method=method, output=Path("runs/x"))
    text = commented_yaml(config)
    assert build(parse_yaml(text, "text")) == config
    lines = text.splitlines()
    keys = [line for line in lines if not line.lstrip().startswith("#")]
    num_fields = sum(1 for _ in all_fields(config))
    assert len(keys) == num_fields
    for number, line in enumerate(lines):
        if line in keys:
            assert lines[number - 1].lstrip().startswith("#"), line


def all_fields(section: Any) -> Any:
    for name in type(section).model_fields:
        yield name
        value = getattr(section, name)
        if hasattr(type(value), "model_fields"):
            yield from all_fields(value)


def test_differences_show_both_values_and_nothing_else() -> None:
    old = to_yaml(build(run_of(training={"num_steps": 3})))
    new = to_yaml(build(run_of(training={"num_steps": 4})))
    lines = differences(old, new, "the run", "now").splitlines()
    assert lines == ["--- the run", "+++ now", "-  num_steps: 3", "+  num_steps: 4"]
    assert differences(old, old, "a", "b") == ""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    values = read_yaml(path)
    assert path.read_text("utf-8").startswith("# ")
    if path.name == "pretrain.yaml":
        from finetune.pretrain.recipe import PretrainConfig

        recipe = validate(PretrainConfig, values, str(path))
        assert recipe.output == Path("finetune/bases") / path.parent.name
        return
    if path.name == "study.yaml":
        return  # of subjects that are rendered first: see test_study.py
    if path.name == "compare.yaml":
        comparison = validate(CompareConfig, values, str(path))
        runs = method_runs(comparison, load_method)
        # SD3 and FLUX learn no words; FLUX's DreamBooth fits on no single device.
        without = {"sd35": {"textual_inversion"}, "flux": {"textual_inversion", "dreambooth"}}
        expected = set(METHODS) - without.get(path.parent.name, set())
        assert {run.method.kind for run in runs.values()} == expected
        assert len({run.training for run in map(RunConfigKey, runs.values())}) == 1
        data = comparison.data
    else:
        config = build(values)
        assert config.method.kind == path.stem
        data = config.data
    assert (ROOT / data.photos).is_dir()
    assert data.class_noun


class RunConfigKey:
    """What must be alike in all rows of a fair comparison."""

    def __init__(self, run: RunConfig) -> None:
        self.training = to_yaml(run.training) + to_yaml(run.data) + to_yaml(run.base)


def comparison_of(**changes: Any) -> dict[str, Any]:
    values = {
        "data": {"photos": "photos", "class_noun": "dog"},
        "shared": {"training": {"num_steps": 7}, "method": {"learning_rate": 1e-3}},
        "methods": {"first": {"method": {"kind": "lora"}}, "second": {"method": {"kind": "lora"}}},
        "prompts": ["a {subject}"],
    }
    return merge(values, changes)


def test_rows_of_a_comparison_share_what_is_shared(tmp_path: Path) -> None:
    values = comparison_of(
        methods={"second": {"method": {"rank": 2, "learning_rate": 2e-3}}}, output=str(tmp_path)
    )
    runs = method_runs(validate(CompareConfig, values, "test"), load_method)
    assert [run.training.num_steps for run in runs.values()] == [7, 7]
    assert [run.method.learning_rate for run in runs.values()] == [1e-3, 2e-3]
    assert [run.method.model_dump()["rank"] for run in runs.values()] == [8, 2]


def test_error_in_a_row_names_the_row() -> None:
    values = comparison_of(methods={"second": {"training": {"num_step": 3}}})
    comparison = validate(CompareConfig, values, "test")
    with pytest.raises(ConfigError) as caught:
        method_runs(comparison, load_method)
    assert "methods.second" in str(caught.value)
    assert "training.num_step: unknown key. Did you mean 'num_steps'?" in str(caught.value)


@pytest.mark.parametrize("name", ["frozen base", "a/b"])
def test_row_names_that_cannot_be_used_are_refused(name: str) -> None:
    values = comparison_of(methods={name: {"method": {"kind": "lora"}}})
    with pytest.raises(ConfigError, match=f"methods.{name}: choose another name"):
        method_runs(validate(CompareConfig, values, "test"), load_method)
