"""What comparisons must share to be joined, and what is kept where only one of them has it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.config import DataConfig
from finetune.checkpoint_rule import Limits
from finetune.compare.evaluation import Wanted, evaluated
from finetune.compare.folders import prompts_of
from finetune.compare.measure import Scorers
from finetune.compare.merge import merged
from finetune.errors import ArtifactError
from finetune.generate import SamplingConfig
from finetune.results import Results, read_results, write_results

Values = Callable[..., dict[str, Any]]
Compare = Callable[..., Results]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("one")


@pytest.fixture
def one(kept: Path, values: Values, run_comparison: Compare) -> Path:
    """The row `low`, compared once for all tests here, which leave it as it is."""
    if not (kept / "results.json").is_file():
        given = values(output=str(kept))
        del given["methods"]["high"]
        run_comparison(given)
    return kept


def changed(folder: Path, to: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of results with values of its file changed."""
    shutil.copytree(folder, to)
    values = json.loads((to / "results.json").read_text())
    change(values)
    (to / "results.json").write_text(json.dumps(values))
    return to


def cell_of(values: Any, row: str) -> Any:
    return next(cell for cell in values["cells"] if cell["row"] == row)


def join(tmp_path: Path, *folders: Path) -> Results:
    return merged(folders, tmp_path / f"joined-{len(list(tmp_path.iterdir()))}", command="x")


def test_artifacts_and_folders_of_several_subjects_are_one_row(one: Path, tmp_path: Path) -> None:
    """Monday the artifact of rex, Tuesday that of tom: another path, another subject, the same row."""

    def artifact(values: dict[str, Any], name: str) -> None:
        row = next(row for row in values["rows"] if row["name"] == "low")
        row |= {"kind": "artifact", "method": None, "settings": {"path": {name: f"runs/{name}"}}}

    def tuesday(values: dict[str, Any]) -> None:
        artifact(values, "tom")
        values["subjects"][0]["name"] = "tom"
        for cell in values["cells"]:
            cell["subject"] = "tom"

    first = changed(one, tmp_path / "monday", lambda values: artifact(values, "rex"))
    both = join(tmp_path, first, changed(one, tmp_path / "tuesday", tuesday))
    (row,) = [row for row in both.rows if row.name == "low"]
    assert row.settings == {"path": {"rex": "runs/rex", "tom": "runs/tom"}}
    assert [cell.subject for cell in both.cells_of("low")] == ["rex", "tom"]


def test_budgets_that_differ_are_told_and_one_that_is_given_holds(
    one: Path, tmp_path: Path
) -> None:
    def seconds(values: dict[str, Any]) -> None:
        values["budget"] = {"kind": "seconds", "amount": 60, "text": "For 60 seconds each."}

    def none(values: dict[str, Any]) -> None:
        values["budget"] = None

    timed = changed(one, tmp_path / "timed", seconds)
    mine = read_results(one).budget
    assert mine is not None
    both = join(tmp_path, one, timed)
    assert both.budget is None
    told = (
        f"The comparisons had different budgets. {one}: {mine.text} {timed}: For 60 seconds each."
    )
    assert told in both.remarks
    assert join(tmp_path, one, changed(one, tmp_path / "none", none)).budget == mine


@pytest.fixture
def watched(one: Path, tmp_path: Path) -> Path:
    """`one` with a learning curve of two steps."""

    def watch(values: dict[str, Any]) -> None:
        values["rule"] = {"text": "The best.", "limits": Limits().model_dump()}
        prompt = {
            "template": "a {subject} in the rain",
            "text": "a dog in the rain",
            "role": "validation",
        }
        values["subjects"][0]["validation_prompts"] = [prompt]
        row = next(row for row in values["rows"] if row["name"] == "low")
        row["settings"]["validation"] |= {"every": 1, "prompts": [prompt["template"]]}
        ids = ("subject_fidelity", "prompt_fidelity", "drift", "copy_share")
        curve = [
            {"step": step, "scores": {f"{id}/clay-clip": 0.1 * step for id in ids}, "pictures": []}
            for step in (1, 2)
        ]
        scale = {"prompt_fidelity": 0.1, "noise": 10.0}
        cell = cell_of(values, "low")
        cell |= {"curve": curve, "curve_scale": scale, "recommended_step": 2}

    return changed(one, tmp_path / "watched", watch)


def test_learning_curves_outlast_a_comparison_without_any(
    one: Path, watched: Path, tmp_path: Path
) -> None:
    for folders in ((one, watched), (watched, one)):
        both = join(tmp_path, *folders)
        assert both.rule == read_results(watched).rule
        assert [curve.steps for curve in both.curves] == [(1, 2)]
        (cell,) = both.cells_of("low")
        assert cell.recommended_step == 2
        assert len(both.subjects[0].validation_prompts) == 1


def test_learning_curves_by_another_rule_or_on_other_prompts_are_left_out_and_told(
    watched: Path, tmp_path: Path
) -> None:
    def to_high(values: dict[str, Any]) -> None:
        for named in (*values["rows"], *values["cells"]):
            for key in ("name", "row"):
                if named.get(key) == "low":
                    named[key] = "high"

    def rule(values: dict[str, Any]) -> None:
        to_high(values)
        values["rule"]["limits"]["max_drift"] = 9.0

    def prompts(values: dict[str, Any]) -> None:
        to_high(values)
        values["subjects"][0]["validation_prompts"][0]["template"] = "a {subject} in the snow"

    def judges(values: dict[str, Any]) -> None:
        to_high(values)
        for point in cell_of(values, "high")["curve"]:
            point["scores"] = {f"{key}-other": value for key, value in point["scores"].items()}

    for change, why in (
        (rule, "a different checkpoint rule"),
        (prompts, "on different validation"),
        (judges, "other networks judged them"),
    ):
        other = changed(watched, tmp_path / change.__name__, change)
        both = join(tmp_path, watched, other)
        assert [curve.row for curve in both.curves] == ["low"]
        (remark,) = [r for r in both.remarks if r.startswith(f"The learning curves of {other} are")]
        assert why in remark
        assert not both.cells_of("high")[0].curve
    same = join(tmp_path, watched, changed(watched, tmp_path / "same", to_high))
    assert [curve.row for curve in same.curves] == ["low", "high"]


def test_rows_that_learnt_from_other_data_or_were_kept_by_another_rule_are_not_one(
    one: Path, tmp_path: Path
) -> None:
    def row(values: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = next(row for row in values["rows"] if row["name"] == "low")
        return found

    def data(values: dict[str, Any]) -> None:
        row(values)["settings"]["data"]["unmasked_weight"] = 0.1

    def kept(values: dict[str, Any]) -> None:
        looks = row(values)["settings"]["validation"]
        names = {"subject": ["/somewhere/clay-clip"], "prompt": "clay-clip"}
        looks |= {"every": 1, "keep": "recommended", "scorers": names}

    def limits(values: dict[str, Any]) -> None:
        kept(values)
        row(values)["settings"]["validation"]["limits"]["max_drift"] = 9.0

    def moved(values: dict[str, Any]) -> None:
        kept(values)
        row(values)["settings"]["validation"]["scorers"]["subject"] = ["/elsewhere/clay-clip"]

    def untold(values: dict[str, Any]) -> None:
        """As in results from before rows told their validation's scorers."""
        kept(values)
        row(values)["settings"]["validation"]["scorers"] = {"subject": [], "prompt": None}

    first = changed(one, tmp_path / "kept", kept)
    for folder, change, match in (
        (one, data, r"settings\.data\.unmasked_weight is 1\.0 in the one and 0\.1"),
        (first, limits, r"settings\.validation\.limits\.max_drift is 0\.5 in the one and 9\.0"),
        (first, untold, r"settings\.validation\.scorers"),
    ):
        with pytest.raises(ArtifactError, match=match):
            join(tmp_path, folder, changed(folder, tmp_path / change.__name__, change))
    assert join(tmp_path, first, changed(one, tmp_path / "moved", moved)).cells_of("low")


def test_scorers_may_be_added_in_another_comparison(one: Path, tmp_path: Path) -> None:
    def rename(values: dict[str, Any]) -> None:
        """The same scores under a second encoder's name, as headlines, beside those of the first."""
        encoder = {**values["encoders"][0], "name": "second"}
        values["encoders"].append(encoder)
        values["scores"] = [
            {**score, "key": f"{score['id']}/second", "encoder": "second"}
            for score in values["scores"]
        ] + [{**score, "headline": False} for score in values["scores"]]
        for cell in values["cells"]:
            cell["scores"] |= {
                key.replace("clay-clip", "second"): table for key, table in cell["scores"].items()
            }

    more = changed(one, tmp_path / "more", rename)
    for folders in ((one, more), (more, one)):
        both = join(tmp_path, *folders)
        (cell,) = both.cells_of("low")
        assert cell.scores["class_drift/second"] == cell.scores["class_drift/clay-clip"]
        headlines = {score.key for score in both.scores if score.headline}
        assert headlines == {score.key for score in both.scores if score.encoder == "clay-clip"}


def test_a_cell_that_failed_in_one_is_the_other_s(one: Path, tmp_path: Path) -> None:
    def fail(values: dict[str, Any]) -> None:
        gone = {"status": "failed", "error": "out of memory", "scores": {}, "pictures": []}
        cell_of(values, "low").update(gone, noise_seeds=[], num_steps=None)

    failed = changed(one, tmp_path / "failed", fail)
    for folders in ((failed, one), (one, failed)):
        both = join(tmp_path, *folders)
        assert both.failed == ()
        assert both.cells_of("low") == read_results(one).cells_of("low")


def test_what_another_machine_computes_a_little_differently_is_the_same(
    one: Path, tmp_path: Path
) -> None:
    def move(row: str, by: float) -> Path:
        def change(values: dict[str, Any]) -> None:
            cell_of(values, row)["scores"]["subject_fidelity/clay-clip"][0][0] += by

        return changed(one, tmp_path / f"{row}-{by}", change)

    def value(results: Results, row: str) -> Any:
        return results.cells_of(row)[0].scores["subject_fidelity/clay-clip"][0][0]

    for row in ("low", "frozen base"):
        both = join(tmp_path, one, move(row, 0.001))
        assert value(both, row) == value(read_results(one), row)
        assert not [remark for remark in both.remarks if "machines" in remark]
    far = move("frozen base", 0.05)
    both = join(tmp_path, far, one)
    assert value(both, "frozen base") == value(read_results(far), "frozen base")
    (remark,) = [remark for remark in both.remarks if "different machines" in remark]
    assert "differ by up to 0.050" in remark
    with pytest.raises(ArtifactError, match=r"with different values \(by up to 0\.050\)"):
        join(tmp_path, one, move("low", 0.05))


def test_rows_from_different_noise_are_not_compared(one: Path, tmp_path: Path) -> None:
    def other_noise(values: dict[str, Any]) -> None:
        values["cells"] = [cell for cell in values["cells"] if cell["row"] == "low"]
        for kind in (values["rows"][-1], values["cells"][0]):
            kind["name" if "name" in kind else "row"] = "high"
        values["cells"][0]["noise_seeds"][1][0] += 1

    with pytest.raises(ArtifactError, match="of frozen base and high on rex start from different"):
        join(tmp_path, one, changed(one, tmp_path / "noisy", other_noise))


def test_photos_are_one_row_however_many_comparisons_show_them(one: Path, tmp_path: Path) -> None:
    """Three results that differ in the training seed alone."""

    def at(seed: int) -> Path:
        def change(values: dict[str, Any]) -> None:
            values["seeds"] = [seed]
            for cell in values["cells"]:
                cell["seed"] = seed

        return changed(one, tmp_path / f"seed-{seed}", change)

    own, both = read_results(one), join(tmp_path, one, at(1), at(2))
    assert [len(both.cells_of(row)) for row in ("real photos", "photos as outputs", "low")] == [
        1,
        1,
        3,
    ]
    for row in ("real photos", "photos as outputs"):
        mine = [summary for summary in own.summaries if summary.row == row]
        assert mine
        assert [summary for summary in both.summaries if summary.row == row] == mine


def test_what_differs_between_subjects_is_named_shortly(one: Path, tmp_path: Path) -> None:
    def prompt(values: dict[str, Any]) -> None:
        del values["subjects"][0]["prompts"][1]

    def order(values: dict[str, Any]) -> None:
        values["subjects"][0]["prompts"][:2] = values["subjects"][0]["prompts"][1::-1]

    for change, match in (
        (prompt, r"\(subject\.prompts\.'a \{subject\} at night' is only in the one\)"),
        (order, r"\(subject\.columns are in another order\)"),
    ):
        with pytest.raises(ArtifactError, match=match):
            join(tmp_path, one, changed(one, tmp_path / change.__name__, change))


def test_another_tool_s_pictures_meet_a_comparison_of_the_subject(
    one: Path, suite_folder: Path, clay_scorers: Scorers, tmp_path: Path
) -> None:
    """The very pictures of `low`, by names that tell no seed."""
    own = read_results(one)
    (low,) = own.cells_of("low")
    for prompt, files in enumerate(low.pictures):
        for letter, name in zip("ab", files, strict=True):
            path = tmp_path / "tool" / f"{prompt:02d}-{letter}.png"
            path.parent.mkdir(exist_ok=True)
            shutil.copyfile(one / name, path)
    wanted = Wanted(
        folders={"tool": tmp_path / "tool"},
        name="rex",
        kind="object",
        photos=DataConfig(photos=str(suite_folder / "rex"), class_noun="dog"),
        prompts=prompts_of([prompt.template for prompt in own.subjects[0].prompts], "dog"),
        base_pictures=None,
    )
    evaluated(
        wanted, tmp_path / "scores", scorers=clay_scorers, base=None, sampling=SamplingConfig(), command="x"
    )  # fmt: skip
    both = join(tmp_path, one, tmp_path / "scores")
    assert (both.base, both.sampling) == (own.base, own.sampling)
    scores = both.cells_of("tool")[0].scores
    assert scores
    assert scores == {key: t for key, t in low.scores.items() if "drift" not in key}


def test_results_of_many_pictures_are_read_as_they_were_written(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = read_results(one).model_copy(update={"remarks": ("long " * 4_000_000,)})
    file = write_results(large, tmp_path)
    assert file.stat().st_size > 20_000_000
    assert read_results(tmp_path) == large
    monkeypatch.setattr("finetune.results.MAX_RESULTS_BYTES", 10_000_000)
    with pytest.raises(ArtifactError, match=r"it is larger than 10\.0 MB"):
        read_results(tmp_path)
