"""A whole comparison on a tiny base: what is made, what is kept, what is refused, what may fail."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from finetune import yardstick
from finetune.bases import EMBEDDED
from finetune.compare import pictures
from finetune.compare.config import CompareConfig
from finetune.compare.measure import Scorers
from finetune.compare.suite import load_suite
from finetune.compare.summaries import table_of
from finetune.config import merge, validate
from finetune.encoders import hide_background
from finetune.errors import CheckpointError, ConfigError, UserError
from finetune.photos import scored_photos
from finetune.results import FROZEN_BASE, PHOTOS_AS_OUTPUTS, REAL_PHOTOS, Results, read_results
from finetune.validation import Validation
from methods import load_method
from methods.lora import LoRA

Values = Callable[..., dict[str, Any]]
Compare = Callable[..., Results]


def files(folder: Path) -> dict[str, bytes]:
    """Everything that lies in a folder but for what embedding again may add."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def mean_of(results: Results, row: str, id: str) -> float:
    (found,) = [
        s.estimate.mean for s in results.summaries if s.row == row and s.score == f"{id}/clay-clip"
    ]
    assert found is not None
    return found


def test_every_number_is_that_of_the_pictures_on_the_disk(
    values: Values, run_comparison: Compare, clay_scorers: Scorers, tmp_path: Path
) -> None:
    results = run_comparison(values())
    assert read_results(tmp_path / "out") == results
    assert [row.name for row in results.rows] == [
        REAL_PHOTOS, PHOTOS_AS_OUTPUTS, FROZEN_BASE, "low", "high",
    ]  # fmt: skip
    encoder = clay_scorers.prompt
    config = validate(CompareConfig, values(), "test")
    photos = encoder.embed_images([p.image for p in scored_photos(config.data, size=16)]).double()

    def embedded(row: str, prompt: int) -> torch.Tensor:
        (cell,) = results.cells_of(row)
        images = [Image.open(tmp_path / "out" / name) for name in cell.pictures[prompt]]
        return encoder.embed_images(images).double()

    for row in ("low", "high", FROZEN_BASE):
        (cell,) = results.cells_of(row)
        for prompt, text in enumerate(["a dog on the beach", "a dog at night"]):
            own = embedded(row, prompt)
            expected = (own @ photos.T).mean(1)
            np.testing.assert_allclose(
                cell.scores["subject_fidelity/clay-clip"][prompt], expected, atol=2e-6
            )
            meant = own @ encoder.embed_texts([text]).double().T
            np.testing.assert_allclose(
                cell.scores["prompt_fidelity/clay-clip"][prompt], meant[:, 0], atol=2e-6
            )
            nearest = (own @ photos.T).max(1).values
            np.testing.assert_allclose(cell.scores["copy/clay-clip"][prompt], nearest, atol=2e-6)
            (spread,) = cell.scores["diversity/clay-clip"][prompt]
            assert spread == pytest.approx(float(1 - own[0] @ own[1]), abs=2e-6)
        for prompt, id in ((2, "class_drift"), (3, "other_drift")):
            own, base = embedded(row, prompt), embedded(FROZEN_BASE, prompt)
            np.testing.assert_allclose(
                cell.scores[f"{id}/clay-clip"][prompt], 1 - (own * base).sum(1), atol=2e-6
            )
            assert not cell.scores[f"{id}/clay-clip"][5 - prompt]
        assert cell.scores["subject_fidelity/clay-clip"][2:] == ((), ())
        assert [len(rows) for rows in cell.scores["class_leak/clay-clip"]] == [0, 0, 2, 0]
    assert mean_of(results, FROZEN_BASE, "class_drift") == 0
    assert mean_of(results, PHOTOS_AS_OUTPUTS, "copy") == 1
    similarity = photos @ photos.T
    others = (similarity.sum() - similarity.diagonal().sum()) / 6
    assert mean_of(results, REAL_PHOTOS, "subject_fidelity") == pytest.approx(
        float(others), abs=2e-6
    )
    # Three rows of eight pictures and the photos as four outputs; none is embedded twice.
    embedded_files = (tmp_path / "out" / "embeddings").rglob("*.safetensors")
    assert sum(len(load_file(path)["vectors"]) for path in embedded_files) == 3 * 8 + 4
    # What methods learn from differs, what their pictures start from does not.
    seeds = {cell.noise_seeds for cell in results.cells if cell.noise_seeds}
    assert len(seeds) == 1
    assert len({seed for line in seeds.pop() for seed in line}) == 8
    assert results.cells_of("high")[0].costs.train_seconds is not None


def test_a_finished_comparison_is_only_read_and_rows_and_seeds_can_be_added(
    values: Values, run_comparison: Compare, tmp_path: Path
) -> None:
    first = run_comparison(values())
    before, said = files(tmp_path / "out"), list[str]()
    again = run_comparison(values(), said=said)
    assert said == []
    assert again.without_times() == first.without_times()
    same = {k: v for k, v in files(tmp_path / "out").items() if k != "results.json"}
    assert same == {k: v for k, v in before.items() if k != "results.json"}
    added = {"methods": {"third": {"method": {"kind": "lora", "rank": 4}}}, "seeds": [0, 5]}
    more = run_comparison(values(**added), said=said)
    assert sorted(said) == [
        "rex, seed 0: third", "rex, seed 5: frozen base", "rex, seed 5: high", "rex, seed 5: low",
        "rex, seed 5: third",
    ]  # fmt: skip
    kept = {cell.row: cell for cell in first.cells}
    assert all(kept[c.row] == c for c in more.cells if c.seed == 0 and c.row in kept)
    score = more.score("subject_fidelity")
    assert score is not None
    table = table_of(more, "low", score)
    assert table is not None
    assert table.shape == (1, 2, 2, 2)
    assert not np.isnan(table).any()
    # Another training seed is another noise, too.
    low = more.cells_of("low")
    assert {*sum(low[0].noise_seeds, ())}.isdisjoint({*sum(low[1].noise_seeds, ())})


def test_anything_else_that_changed_is_refused_by_name_and_nothing_is_touched(
    values: Values, run_comparison: Compare, suite_folder: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(suite_folder / "rex", photos)
    given = values(data={"photos": str(photos)}, seeds=[0, 1])
    run_comparison(given)
    before = files(tmp_path / "out")

    def refused(match: str, changed: dict[str, Any]) -> None:
        with pytest.raises(CheckpointError, match=match) as caught:
            run_comparison(changed)
        assert "--overwrite" in str(caught.value)
        assert files(tmp_path / "out") == before

    def changed(**sections: Any) -> dict[str, Any]:
        return values(data={"photos": str(photos)}, **{"seeds": [0, 1], **sections})

    refused(r"rows\.low\.photos\.method\.rank: 2 → 3", changed(
        methods={"low": {"method": {"rank": 3}}}))  # fmt: skip
    refused("num_images: 2 → 3", changed(num_images=3))
    refused(r"subjects\.photos\.prompts", changed(prompts=["a {subject}"]))
    refused(r"sampling\.num_steps: 2 → 3", changed(shared={"sampling": {"num_steps": 3}}))
    refused("the training seed 1 is gone", changed(seeds=[0]))
    without = changed()
    del without["methods"]["high"]
    refused("the row high is gone", without)
    (photos / "0.txt").write_text("a {subject} on a ramp")
    refused("the caption of 0.png has changed", changed())
    (photos / "0.txt").unlink()
    Image.new("RGB", (20, 20), "red").save(photos / "3.png")
    refused("the photo 3.png is new", changed())
    Image.new("RGB", (20, 20), "blue").save(photos / "1.png")
    (photos / "3.png").unlink()
    refused("the photo 1.png has changed", changed())
    shutil.copy(suite_folder / "rex" / "1.png", photos / "1.png")
    rows = [{"file_name": f"{number}.png"} for number in range(3)]

    def listed(rows: list[dict[str, Any]]) -> None:
        (photos / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    listed([rows[0], {**rows[1], "repeats": 4}, rows[2]])
    refused("the number of repeats of 1.png has changed", changed())
    listed(rows[::-1])
    refused("the photos come in another order", changed())
    (photos / "metadata.jsonl").unlink()
    run_comparison(changed())


def test_how_often_more_photos_come_and_their_prompt_are_part_of_a_comparison(
    values: Values, suite_folder: Path
) -> None:
    def remembered(**more: Any) -> list[dict[str, Any]]:
        folder = {"path": str(suite_folder / "cup"), **more}
        config = validate(CompareConfig, values(data={"more_photos": [folder]}), "test")
        (subject,) = load_suite(config, size=16)
        return [photo.identity() for photo in subject.photos]

    plain = remembered()
    for more, key in (({"repeats": 5}, "repeats"), ({"prompt": "a close {subject}"}, "caption")):
        *same, last = remembered(**more)
        assert same == plain[:-1]
        assert {name for name in last if last[name] != plain[-1][name]} == {key}


def test_overwrite_deletes_comparisons_only_and_after_all_checks(
    values: Values, run_comparison: Compare, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="holds no comparison that could go on"):
        run_comparison(values())
    with pytest.raises(CheckpointError, match="--overwrite will not delete it"):
        run_comparison(values(), overwrite=True)
    assert (out / "thesis.txt").read_text() == "precious"
    (out / "thesis.txt").unlink()
    (out / ".comparison.json.partial").write_text("{")  # of one that was killed at its first note
    run_comparison(values())
    before = files(out)
    from finetune.errors import DataError

    with pytest.raises(DataError, match="samples.prompts"):
        run_comparison(
            values(methods={"high": {"samples": {"every": 1, "prompts": ["a {foo}"]}}}),
            overwrite=True,
        )
    assert files(out) == before
    other = run_comparison(values(num_images=1), overwrite=True)
    assert other.num_images == 1
    assert not (out / "cells" / "low" / "rex" / "seed-0" / "pictures" / "00-01.png").exists()


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A file without which LoRA of rank 3 has no connection; see `load_unreliable`."""
    return tmp_path / "server"


@pytest.fixture
def load_unreliable(server: Path) -> Callable[[str], Any]:
    """Loads methods; LoRA of rank 3 fetches something from a server in every step."""

    class Fetching(LoRA):
        def compute_loss(self, base: Any, batch: Any, objective: Any) -> Any:
            if self.config.rank == 3 and not server.exists():
                raise ConnectionError("the server does not answer")
            return super().compute_loss(base, batch, objective)

    return lambda kind: Fetching if kind == "lora" else load_method(kind)


def test_a_row_that_fails_is_named_and_the_others_finish(
    values: Values, run_comparison: Compare, load_unreliable: Any, tmp_path: Path
) -> None:
    """A learning rate of 1e30 makes numbers overflow in the second step."""
    training = {"num_steps": 6, "max_non_finite_steps": 2}
    broken = {"method": {"kind": "lora", "learning_rate": 1e30}, "training": training}
    methods = {
        "away": {"method": {"kind": "lora", "rank": 3}},
        "broken": broken,
        "last": {"method": {"kind": "lora", "rank": 1}},
    }
    results = run_comparison(values(methods=methods), load_method=load_unreliable)
    away, failed = results.failed
    assert away.error == "ConnectionError: the server does not answer"
    assert failed.row == "broken"
    assert "not finite in 2 steps in a row" in str(failed.error)
    assert failed.pictures == ()
    assert {cell.row for cell in results.cells if cell.status == "finished"} >= {"low", "last"}
    assert not any("broken" in (pair.row, pair.other) for pair in results.differences)
    assert (tmp_path / "out/cells/broken/rex/seed-0/error.txt").read_text().startswith("Traceback")
    said: list[str] = []
    run_comparison(values(methods=methods), said=said)
    assert said == []  # what failed stays failed
    run_comparison(values(methods=methods), said=said, retry_failed=True)
    assert said[:2] == ["rex, seed 0: away", "rex, seed 0: broken"]
    assert "broken failed on rex" in said[2]


def test_a_full_disk_is_no_row_s_failure(
    values: Values, run_comparison: Compare, files_up_to: Any, tmp_path: Path
) -> None:
    """Notes and pictures find room, a checkpoint of what is learnt does not."""
    given = values()
    del given["methods"]["high"]
    with files_up_to(10_000), pytest.raises(CheckpointError, match="Could not write .*step-000002"):
        run_comparison(given)
    assert (tmp_path / "out/cells/frozen base/rex/seed-0/cell.json").is_file()
    assert not (tmp_path / "out/cells/low/rex/seed-0/cell.json").exists()
    assert run_comparison(given).failed == ()


def test_a_signal_in_the_last_look_ends_the_comparison_which_goes_on_behind_it(
    values: Values, run_comparison: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Validation.look

    def look(self: Validation, step: int) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        return real(self, step)

    given = values(validation={"every": 100, "prompts": ["a {subject} at dawn", "a lamp"]})
    monkeypatch.setattr(Validation, "look", look)
    with pytest.raises(SystemExit) as caught:
        run_comparison(given)
    assert caught.value.code == 130
    monkeypatch.undo()
    cells = tmp_path / "out" / "cells"
    assert not (cells / "high").exists()
    before = (cells / "low/rex/seed-0/run/trained.json").read_bytes()
    results = run_comparison(given)
    assert not results.failed
    assert [len(results.cells_of(row)) for row in ("low", "high")] == [1, 1]
    assert (cells / "low/rex/seed-0/run/trained.json").read_bytes() == before


def test_a_half_trained_cell_goes_on_where_photos_have_moved_and_is_never_a_failure(
    values: Values,
    run_comparison: Compare,
    suite_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a comparison may call otherwise, its cells may; a run that is another one stops everything."""
    every = {"every": 1, "prompts": ["a {subject} at dawn", "a lamp"]}
    given = values(validation=every, shared={"training": {"num_steps": 4}})
    real = Validation.look

    def look(self: Validation, step: int) -> bool:
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(Validation, "look", look)
        with pytest.raises(SystemExit):
            run_comparison(given)
    run = tmp_path / "out/cells/low/rex/seed-0/run"
    assert not (run / "trained.json").exists()
    shutil.copytree(suite_folder / "rex", tmp_path / "moved" / "rex")
    moved = merge(given, {"data": {"photos": str(tmp_path / "moved" / "rex")}})
    moved["validation"]["scorers"] = {"subject": ["clay-clip"]}  # as it was by default
    moved["shared"]["samples"] = {"every": 100}
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("batch_size: 1", "batch_size: 2", 1))
    with pytest.raises(CheckpointError, match=r"another configuration[\s\S]*Or remove .*seed-0"):
        run_comparison(moved)
    assert not (run.parent / "cell.json").exists()
    (run / "config.yaml").write_text(config)
    said: list[str] = []
    results = run_comparison(moved, said=said)
    assert not results.failed, results.failed
    assert [len(results.cells_of(row)) for row in ("low", "high")] == [1, 1]
    assert "rex, seed 0: frozen base" not in said


def test_what_is_wrong_with_the_base_is_no_row_s_failure(
    values: Values, run_comparison: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little memory for its pictures of test prompts, then for those of validation prompts."""

    def without_memory(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    given = values(validation={"every": 100, "prompts": ["a {subject} at dawn", "a lamp"]})
    for module in (pictures, yardstick):
        monkeypatch.setattr(module, "generate", without_memory)
        with pytest.raises(UserError, match=r"too small for .*shared\.sampling\.batch_size=1"):
            run_comparison(given)
        monkeypatch.undo()
        assert not (tmp_path / "out/cells/low/rex/seed-0/cell.json").exists()
    with monkeypatch.context() as patched:
        patched.setattr(yardstick, "generate", without_memory)
        tuned = {**given, "tune": {"trials": 1}, "output": str(tmp_path / "tuned")}
        with pytest.raises(UserError, match="too small for the comparison's pictures"):
            run_comparison(tuned)
    assert not list((tmp_path / "tuned").rglob("trial.json"))


def test_an_identifier_is_no_subject_s_class(
    values: Values, run_comparison: Compare, suite_folder: Path, tmp_path: Path
) -> None:
    """The first subject is a dog, the second a mug."""
    given = values(
        data={"photos": str(suite_folder), "class_noun": None},
        methods={"low": {"method": {"identifier": "mug"}}},
    )
    with pytest.raises(ConfigError, match="identifier is 'mug', the class noun itself"):
        run_comparison(given)
    assert not (tmp_path / "out").exists()


def test_subjects_of_different_kinds_and_a_single_photo_leave_holes_not_errors(
    values: Values, run_comparison: Compare, suite_folder: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text(
        "live:\n  - a {subject} at sea\n  - a {subject} in a hat\n"
        "object:\n  - a {subject} at sea\n  - a {subject} on a rug\n  - a red {subject}\n"
    )
    data = {"photos": str(suite_folder), "class_noun": None}
    given = values(data=data, prompts=str(prompts))
    del given["methods"]["high"]
    results = run_comparison(given)
    score = results.score("subject_fidelity")
    assert score is not None
    table = table_of(results, "low", score)
    assert table is not None
    assert np.isnan(table[:, 0, :, 0]).tolist() == [
        [False, False, True, True],
        [False, True, False, False],
    ]
    assert "cup: There is one photo; similarity among photos needs two." in results.remarks
    assert [c.subject for c in results.cells_of(REAL_PHOTOS) if c.scores] == ["rex"]


def test_tuning_tries_each_row_equally_often_and_ranks_what_it_chose(
    values: Values, run_comparison: Compare, tmp_path: Path
) -> None:
    tune = {"trials": 2, "learning_rate_factors": [0.5, 2.0], "num_steps": [1]}
    every_trial = {"max_drift": 100, "max_copy_share": 1, "min_prompt_fidelity": 0}
    given = values(tune=tune, validation={"limits": every_trial})
    given["methods"]["broken"] = {
        "method": {"kind": "lora", "learning_rate": 1e30},
        "training": {"max_non_finite_steps": 1},
    }
    given["tune"]["num_steps"] = [3]
    results = run_comparison(given)
    rows = {row.name: row for row in results.rows}
    error = tmp_path / "out" / "tuning" / "broken" / "trial-00" / "rex" / "error.txt"
    assert error.read_text().startswith("Traceback")
    for name, rate in (("low", 1e-3), ("high", 1e-2)):
        row = rows[name]
        tried = [trial.settings["method.learning_rate"] for trial in row.trials]
        assert tried == pytest.approx([0.5 * rate, 2 * rate])
        assert row.chosen_trial is not None
        chosen = row.trials[row.chosen_trial]
        assert row.settings["method"]["learning_rate"] == chosen.settings["method.learning_rate"]
        assert row.settings["training"]["num_steps"] == 3
        assert all(trial.allowed for trial in row.trials)
        assert chosen == max(row.trials, key=lambda t: t.scores["subject_fidelity/clay-clip"] or 0)
        config = tmp_path / "out" / "cells" / name / "rex" / "seed-0" / "run" / "config.yaml"
        assert f"learning_rate: {chosen.settings['method.learning_rate']}" in config.read_text()
    assert rows["broken"].chosen_trial is None
    assert {trial.status for trial in rows["broken"].trials} == {"failed"}
    assert "No trial of 2 succeeded" in str(rows["broken"].error)
    assert results.cells_of("broken") == ()
    assert not list((tmp_path / "out" / "tuning").rglob("*.safetensors"))
    said: list[str] = []
    run_comparison(given, said=said)
    assert said == []


def test_failed_trials_can_be_tried_once_more(
    values: Values,
    run_comparison: Compare,
    suite_folder: Path,
    server: Path,
    load_unreliable: Any,
    tmp_path: Path,
) -> None:
    given = values(
        data={"photos": str(suite_folder), "class_noun": None},
        tune={"trials": 1, "num_steps": [1], "learning_rate_factors": [1.0]},
    )
    given["methods"] = {"away": {"method": {"kind": "lora", "rank": 3}}}
    said: list[str] = []
    results = run_comparison(given, said=said, load_method=load_unreliable)
    away = results.rows[-1]
    assert away.error is not None
    assert away.error.endswith("ConnectionError: the server does not answer")
    # A trial that failed on one subject is over.
    assert [text for text in said if "trial" in text] == [
        "away: trial 1 on rex",
        "away: trial 1 failed on rex: ConnectionError: the server does not answer",
    ]
    server.touch()
    said.clear()
    run_comparison(given, said=said, load_method=load_unreliable)
    assert said == []
    results = run_comparison(given, said=said, load_method=load_unreliable, retry_failed=True)
    assert said == [
        "away: trial 1 on rex",
        "away: trial 1 on cup",
        "rex, seed 0: away",
        "cup, seed 0: away",
    ]
    away = results.rows[-1]
    assert (away.error, away.chosen_trial) == (None, 0)
    assert results.failed == ()
    # Had another trial been the best before, what was made of that one would go.
    note = tmp_path / "out" / "tuning" / "away" / "chosen.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "trial": 7}))
    said.clear()
    run_comparison(given, said=said, load_method=load_unreliable)
    assert said == [
        "away: another trial is the best now, so its cells are made anew",
        "rex, seed 0: away",
        "cup, seed 0: away",
    ]


def test_curves_are_of_validation_prompts_and_say_where_overfitting_begins(
    values: Values, run_comparison: Compare, tmp_path: Path
) -> None:
    """Judged by a network of their own for pictures, and the comparison's for texts."""
    judge = tmp_path / "judge"
    shutil.copytree(EMBEDDED / "clay-clip", judge)
    limits = {"max_drift": 1e-9}
    given = values(
        shared={"training": {"num_steps": 4}},
        validation={"every": 2, "scorers": {"subject": [str(judge)]}, "limits": limits},
    )
    results = run_comparison(given)
    assert [encoder.name for encoder in results.encoders] == ["clay-clip", "judge"]
    (low,) = results.cells_of("low")
    assert [point.step for point in low.curve] == [2, 4]
    assert {*low.curve[0].scores} == {
        "subject_fidelity/judge", "prompt_fidelity/clay-clip", "drift/judge", "copy/judge",
        "copy_share/judge",
    }  # fmt: skip
    names = [name for point in low.curve for row in point.pictures for name in row]
    assert len(names) == 2 * 4 * 2
    assert all((tmp_path / "out" / name).is_file() for name in names)
    curve = next(curve for curve in results.curves if curve.row == "high")
    assert curve.steps == (2, 4)
    # Any drift at all breaks the limit: everything counts as overfitted, nothing is recommended.
    assert (curve.recommended_step, curve.overfits_from) == (None, 2)
    assert results.rule is not None
    assert results.rule.limits["max_drift"] == 1e-9


def kill_at_write(place: int, folder: Path) -> None:
    """Have this process killed at the `place`-th time that it opens to write, or renames, under `folder`."""
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        opens = event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if (opens or event == "os.rename") and str(arguments[0]).startswith(str(folder)):
            count += 1
            if count == place:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


@pytest.mark.slow
def test_a_comparison_killed_three_times_ends_as_an_unbroken_one(
    values: Values, run_comparison: Compare, tiny_base: Any, tmp_path: Path
) -> None:
    """Killed with SIGKILL at random writes; results.json agrees in every byte but times."""
    torch.set_num_threads(1)  # threads do not survive a fork
    common = {
        "shared": {"training": {"num_steps": 6, "checkpoint_every": 2}},
        "validation": {"every": 2, "keep": "recommended"},
    }
    whole = run_comparison(values(output=str(tmp_path / "whole"), **common))
    broken = values(output=str(tmp_path / "broken"), **common)
    rng, reached = random.Random(0), list[int]()
    for _ in range(3):
        place = rng.randrange(10, 80)
        child = os.fork()
        if child == 0:
            try:
                kill_at_write(place, tmp_path / "broken")
                run_comparison(broken)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "it was done before it was killed"
        reached.append(len(list((tmp_path / "broken").rglob("*.png"))))
    assert reached == sorted(reached)
    assert 0 < reached[-1] < len(list((tmp_path / "whole").rglob("*.png")))
    again = run_comparison(broken)
    texts = [json.dumps(results.without_times()) for results in (whole, again)]
    assert texts[0] == texts[1]
    names = [name for cell in whole.cells for row in cell.pictures for name in row]
    assert len(names) > 20
    for name in names:
        same = [(tmp_path / folder / name).read_bytes() for folder in ("whole", "broken")]
        assert same[0] == same[1], name


def test_masks_make_a_score_of_their_own_and_artifacts_need_not_be_kept(
    values: Values,
    run_comparison: Compare,
    clay_scorers: Scorers,
    suite_folder: Path,
    tmp_path: Path,
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(suite_folder / "rex", photos)
    (photos / "mask").mkdir()
    left = np.zeros((20, 20), np.uint8)
    left[:, :10] = 255
    Image.fromarray(left).save(photos / "mask" / "0.png")
    given = values(
        data={"photos": str(photos)},
        keep_artifacts=False,
        validation={"every": 1, "prompts": ["a {subject} at dawn", "a lamp"]},
        methods={"low": {"validation": {"keep": "recommended"}}},
    )
    del given["methods"]["high"]
    results = run_comparison(given)
    assert results.title == "1 way to learn photos"
    assert [photo.masked for photo in results.subjects[0].photos] == [True, False, False]
    (cell,) = results.cells_of("low")
    encoder = clay_scorers.prompt
    config = validate(CompareConfig, given, "test")
    photo = scored_photos(config.data, size=16)[0]
    assert photo.mask is not None
    bare = encoder.embed_images([hide_background(photo.image, photo.mask)]).double()
    made = [Image.open(tmp_path / "out" / name) for name in cell.pictures[0]]
    expected = (encoder.embed_images(made).double() @ bare.T)[:, 0]
    found = cell.scores["subject_fidelity_masked/clay-clip"][0]
    np.testing.assert_allclose(found, expected, atol=2e-6)
    run = tmp_path / "out" / "cells" / "low" / "photos" / "seed-0" / "run"
    assert (run / "config.yaml").is_file()
    assert not (run / "artifact").exists()
    assert not list(run.rglob("*.safetensors"))
    assert cell.artifact_bytes is not None
    said: list[str] = []
    assert run_comparison(given, said=said).without_times() == results.without_times()
    assert said == []


def test_a_network_called_like_another_is_refused(tmp_path: Path) -> None:
    from finetune.encoders import ScorersConfig
    from finetune.errors import ConfigError

    with pytest.raises(ConfigError, match="two networks are called clay-clip"):
        Scorers.load(ScorersConfig(subject=("clay-clip", "clay-clip"), prompt="clay-clip"))
    other = tmp_path / "clay-clip"
    shutil.copytree(EMBEDDED / "clay-clip", other)
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, other / "model.safetensors")
    with pytest.raises(ConfigError, match="two different networks are called clay-clip"):
        Scorers.load(ScorersConfig(subject=("clay-clip",), prompt=str(other)))
