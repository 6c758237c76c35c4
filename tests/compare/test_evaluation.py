"""Pictures that any tool made: how their names are read, what they score, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from data_prep.config import DataConfig
from finetune.compare.evaluation import Wanted, evaluated, open_given
from finetune.compare.folders import find_pictures, prompts_of
from finetune.compare.measure import Scorers
from finetune.compare.merge import merged
from finetune.errors import CheckpointError, ConfigError, DataError
from finetune.generate import SamplingConfig, generate
from finetune.results import FROZEN_BASE, Results

TEMPLATES = ("a {subject} on the beach", "a {subject} at night", "a photo of a {class}", "a car")
PROMPTS = prompts_of(TEMPLATES, "dog")
Fill = Callable[..., Path]


@pytest.fixture
def pictures(tmp_path: Path) -> Fill:
    """A folder of pictures by these names, each another."""

    def fill(name: str, *names: str, size: int = 16) -> Path:
        folder = tmp_path / name
        for number, file in enumerate(names):
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
        return folder

    return fill


def test_names_tell_prompt_and_seed(pictures: Fill) -> None:
    def read(folder: Path) -> list[list[tuple[str, int | None]]]:
        table = find_pictures(folder, PROMPTS)
        return [[(p.path.relative_to(folder).as_posix(), p.seed) for p in row] for row in table]

    flat = pictures("flat", "00-0007.png", "00-0003.png", "1-x.jpg", "03-1.png", "grid.png")
    assert read(flat) == [
        [("00-0003.png", 3), ("00-0007.png", 7)], [("1-x.jpg", None)], [], [("03-1.png", 1)],
    ]  # fmt: skip
    nested = pictures("nested", "00 beach/0012.png", "02/a.png")
    assert read(nested) == [[("00 beach/0012.png", 12)], [], [("02/a.png", None)], []]
    listed = pictures("listed", "x.png", "y.png")
    rows = [
        {"file_name": "x.png", "prompt": "a dog at night", "seed": 4},
        {"file_name": "y.png", "prompt": 0},
    ]
    (listed / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert read(listed) == [[("y.png", None)], [("x.png", 4)], [], []]


def test_pictures_that_cannot_be_placed_are_named(pictures: Fill, tmp_path: Path) -> None:
    def refused(match: str, folder: Path) -> None:
        with pytest.raises(DataError, match=match):
            find_pictures(folder, PROMPTS)

    refused("is no folder", tmp_path / "gone")
    (pictures("latin", "x.png") / "metadata.jsonl").write_bytes(b'{"file_name": "caf\xe9.png"}')
    refused("metadata.jsonl is not UTF-8 text", tmp_path / "latin")
    (tmp_path / "empty").mkdir()
    refused("holds no pictures", tmp_path / "empty")
    refused("beach.png does not tell which prompt", pictures("odd", "beach.png"))
    refused("09-0.png is of prompt 9, but there are only 4", pictures("many", "09-0.png"))
    refused(r"no picture of a prompt with \{subject\}", pictures("others", "02-0.png"))
    listed = pictures("listed", "x.png")
    for row, match in (
        ({"prompt": 0}, "line 1: expected file_name"),
        ({"file_name": "x.png", "prompt": "a cat"}, "line 1: the prompt 'a cat' is none"),
        ({"file_name": "../out.png", "prompt": 0}, "line 1: there is no picture"),
        ({"file_name": "x.png", "prompt": 0, "seed": "7"}, "line 1: seed is '7'"),
        ({"file_name": "x.png", "prompt": True}, "line 1: the prompt True is none"),
        ({"file_name": "x\0.png", "prompt": 0}, r"line 1: there is no picture x\\x00\.png"),
        ({"file_name": 300 * "x", "prompt": 0}, "line 1: there is no picture"),
    ):
        (listed / "metadata.jsonl").write_text(json.dumps(row))
        refused(match, listed)
    (listed / "metadata.jsonl").write_text('{"prompt": ' + 100_000 * "[")
    refused("line 1: expected file_name", listed)


@pytest.fixture
def evaluate(suite_folder: Path, clay_scorers: Scorers, tmp_path: Path) -> Callable[..., Results]:
    def run(folders: dict[str, Path], *, base: Any = None, **options: Any) -> Results:
        wanted = Wanted(
            folders=folders,
            name=options.pop("name", "rex"),
            kind="live",
            photos=DataConfig(photos=str(suite_folder / "rex"), class_noun="dog"),
            prompts=PROMPTS,
            base_pictures=options.pop("base_pictures", None),
        )
        return evaluated(
            wanted,
            options.pop("output", tmp_path / "scores"),
            scorers=clay_scorers,
            base=base,
            sampling=SamplingConfig(num_steps=2, scheduler="ddim"),
            command="finetune evaluate",
        )

    return run


NAMES = ("00-1.png", "00-2.png", "01-1.png", "02-1.png", "03-1.png")


def test_the_base_s_own_pictures_have_no_drift_from_it(
    evaluate: Callable[..., Results], tiny_base: Any, pictures: Fill, tmp_path: Path
) -> None:
    """What `finetune generate` would write with the frozen base, and something else beside it."""
    own, other = tmp_path / "own", pictures("other", *NAMES)
    own.mkdir()
    prompts = [PROMPTS[int(name[:2])].text for name in NAMES]
    seeds = [int(name[3]) for name in NAMES]
    sampling = SamplingConfig(num_steps=2, scheduler="ddim")
    for name, image in zip(NAMES, generate(tiny_base, prompts, seeds, sampling), strict=True):
        image.save(own / name)
    results = evaluate({"own": own, "other": other}, base=tiny_base)
    cells = {cell.row: cell for cell in results.cells}
    assert cells["own"].scores["class_drift/clay-clip"] == ((), (), (0.0,), ())
    assert cells["own"].scores["other_drift/clay-clip"] == ((), (), (), (0.0,))
    assert cells["own"].scores == cells[FROZEN_BASE].scores
    (drifted,) = cells["other"].scores["other_drift/clay-clip"][3]
    assert drifted is not None
    assert drifted > 0.01
    assert cells["own"].noise_seeds == cells[FROZEN_BASE].noise_seeds == ((1, 2), (1,), (1,), (1,))
    assert results.base is not None
    assert results.base.fingerprint == tiny_base.fingerprint
    # Given as pictures, the same base gives the same numbers.
    given = evaluate({"other": other}, base_pictures=own, output=tmp_path / "given")
    assert given.base is None
    assert {c.row: c for c in given.cells}["other"].scores == cells["other"].scores


def test_scores_without_a_base_leave_out_what_is_a_difference(
    evaluate: Callable[..., Results], pictures: Fill, tmp_path: Path
) -> None:
    results = evaluate({"mine": pictures("mine", "00-1.png", "01-1.png", size=24)})
    assert {row.name for row in results.rows} == {"real photos", "photos as outputs", "mine"}
    measured = {s.score for s in results.summaries if s.row == "mine"}
    assert measured == {
        f"{id}/clay-clip" for id in ("subject_fidelity", "prompt_fidelity", "copy", "copy_share")
    }
    before = (tmp_path / "scores" / "results.json").read_bytes()
    with pytest.raises(CheckpointError, match="nothing is written over"):
        evaluate({"mine": tmp_path / "mine"})
    assert (tmp_path / "scores" / "results.json").read_bytes() == before


def test_pictures_of_several_sizes_are_remarked_upon(
    evaluate: Callable[..., Results], pictures: Fill
) -> None:
    rows = {"large": pictures("large", "00-1.png", size=32), "small": pictures("small", "00-1.png")}
    remarks = evaluate(rows).remarks
    assert any("large: 32 × 32; small: 16 × 16" in remark for remark in remarks)


def test_seeds_that_do_not_fit_are_refused(
    evaluate: Callable[..., Results], pictures: Fill, tiny_base: Any, tmp_path: Path
) -> None:
    one, two = pictures("one", "00-1.png"), pictures("two", "00-2.png")
    with pytest.raises(ConfigError, match="both of prompt 0, have different seeds"):
        evaluate({"one": one, "two": two})
    silent = pictures("silent", "00-x.png")  # what the first does not tell, the others may
    with pytest.raises(ConfigError, match="so one and two cannot be compared picture by picture"):
        evaluate({"silent": silent, "one": one, "two": two})
    with pytest.raises(ConfigError, match=r"x\.png of mine does not tell its seed"):
        evaluate({"mine": pictures("mine", "00-x.png")}, base=tiny_base)
    with pytest.raises(ConfigError, match="one: rename the folder"):
        evaluate({"frozen base": one})
    assert not (tmp_path / "scores").exists()


def test_pictures_that_the_base_cannot_make_are_refused_before_anything_is_made(
    evaluate: Callable[..., Results], pictures: Fill, tiny_base: Any, tmp_path: Path
) -> None:
    odd = pictures("odd", "00-1.png", size=17)
    with pytest.raises(ConfigError, match=r"--base: odd holds pictures of 17 × 17.*multiples of"):
        evaluate({"odd": odd}, base=tiny_base)
    Image.new("RGB", (16, 24)).save(odd / "00-1.png")
    with pytest.raises(ConfigError, match=r"--base: odd holds pictures of 16 × 24"):
        evaluate({"odd": odd}, base=tiny_base)
    large, small = pictures("large", "00-1.png", size=32), pictures("small", "00-1.png")
    with pytest.raises(ConfigError, match=r"large: 32 × 32; small: 16 × 16.*one size at a time"):
        evaluate({"large": large, "small": small}, base=tiny_base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "odd", "small"]


def test_evaluations_of_several_subjects_are_joined(
    evaluate: Callable[..., Results], pictures: Fill, tiny_base: Any, tmp_path: Path
) -> None:
    """A row of the same name on two subjects, with other pictures under the same names."""
    folders = {name: pictures(f"{name}/mine", "00-1.png", "02-1.png") for name in ("rex", "tom")}
    Image.new("RGB", (16, 16), "red").save(folders["tom"] / "00-1.png")
    for name, folder in folders.items():
        evaluate({"mine": folder}, name=name, base=tiny_base, output=tmp_path / f"of-{name}")
    both = merged([tmp_path / "of-rex", tmp_path / "of-tom"], tmp_path / "both", command="x")
    assert [subject.name for subject in both.subjects] == ["rex", "tom"]
    assert both.base is not None
    assert (both.base.dtype, both.sampling["size"]) == ("float32", 16)
    for name, folder in folders.items():
        (cell,) = [cell for cell in both.cells_of("mine") if cell.subject == name]
        kept = Image.open(tmp_path / "both" / cell.pictures[0][0])
        assert kept.tobytes() == Image.open(folder / "00-1.png").tobytes()
    (row,) = [row for row in both.rows if row.name == "mine"]
    assert row.settings == {"path": {name: str(folder) for name, folder in folders.items()}}


def test_no_picture_is_embedded_twice(
    pictures: Fill, evaluate: Callable[..., Results], tmp_path: Path
) -> None:
    """Those of the class are, for two scores, held against photos and against the base's."""
    base = pictures("base", *NAMES[::-1])
    results = evaluate({"mine": pictures("mine", *NAMES)}, base_pictures=base)
    shown = sum(len(row) for cell in results.cells for row in cell.pictures)
    embedded = [load_file(f)["vectors"] for f in (tmp_path / "scores").rglob("*.safetensors")]
    assert sum(map(len, embedded)) == shown == 2 * len(NAMES) + 4  # and two photos a test prompt


def test_drift_pairs_pictures_prompt_by_prompt_whatever_their_numbers(
    pictures: Fill, evaluate: Any
) -> None:
    """Three class pictures and one unrelated against one and three: four each, two twins."""
    mine = pictures("mine", "00-1.png", "02-1.png", "02-2.png", "02-3.png", "03-1.png")
    base = pictures("base", "00-1.png", "02-1.png", "03-1.png", "03-2.png", "03-3.png")
    Image.open(mine / "03-1.png").save(base / "03-1.png")
    results = evaluate({"mine": mine}, base_pictures=base)
    (cell,) = [cell for cell in results.cells if cell.row == "mine"]
    assert cell.scores["class_drift/clay-clip"][2:] == ((0.0, None, None), ())
    assert cell.scores["other_drift/clay-clip"][2:] == ((), (0.0,))


def test_a_damaged_picture_of_somebody_s_is_named_and_nothing_is_to_be_removed(
    pictures: Fill,
) -> None:
    folder = pictures("mine", "00-1.png")
    content = (folder / "00-1.png").read_bytes()
    (folder / "00-1.png").write_bytes(content[:60])
    with pytest.raises(CheckpointError, match=r"00-1\.png cannot be read.*Replace it") as error:
        open_given(folder / "00-1.png")
    assert "Remove" not in str(error.value)
