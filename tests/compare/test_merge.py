"""Several comparisons as one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.compare.merge import merged
from finetune.errors import ArtifactError, CheckpointError
from finetune.results import Results, read_results

Values = Callable[..., dict[str, Any]]
Compare = Callable[..., Results]


@pytest.fixture
def two(values: Values, run_comparison: Compare, tmp_path: Path) -> tuple[Path, Path]:
    """The rows `low` and `high`, each compared by itself; `high` at another training seed too."""
    folders = tmp_path / "one", tmp_path / "two"
    first = values(output=str(folders[0]))
    del first["methods"]["high"]
    second = values(output=str(folders[1]), seeds=[0, 3])
    del second["methods"]["low"]
    run_comparison(first)
    run_comparison(second)
    return folders


def test_merged_rows_are_compared_as_if_made_together(
    two: tuple[Path, Path], values: Values, run_comparison: Compare, tmp_path: Path
) -> None:
    both = merged(two, tmp_path / "both", command="finetune compare --from one two")
    assert read_results(tmp_path / "both") == both
    together = run_comparison(values(output=str(tmp_path / "together"), seeds=[0, 3]))
    pairs = {(d.row, d.other, d.score): d for d in together.differences}
    assert [row.name for row in both.rows] == [row.name for row in together.rows]
    assert both.seeds == (0, 3)
    assert {(d.row, d.other, d.score) for d in both.differences} == set(pairs)
    # `low` has one seed here and two there, so summaries of it differ, those of `high` do not.
    of_high = [[s for s in r.summaries if s.row == "high"] for r in (both, together)]
    assert of_high[0] == of_high[1]
    names = [name for cell in both.cells for row in cell.pictures for name in row]
    assert names
    assert all((tmp_path / "both" / name).is_file() for name in names)
    again = merged([tmp_path / "both"], tmp_path / "again", command="x")
    assert again.summaries == both.summaries
    assert again.remarks == both.remarks


def test_what_does_not_belong_together_is_refused_and_nothing_is_written(
    two: tuple[Path, Path], values: Values, run_comparison: Compare, tmp_path: Path
) -> None:
    target = tmp_path / "both"

    def refused(match: str, *folders: Path) -> None:
        with pytest.raises(ArtifactError, match=match):
            merged(folders, target, command="x")
        assert not target.exists()

    def made(name: str, **sections: Any) -> Path:
        folder = tmp_path / name
        run_comparison(values(output=str(folder), **sections))
        return folder

    other_rank = {"methods": {"low": {"method": {"rank": 3}}}}
    refused(r"the row low is not the same .*rank is 2 .* 3", two[0], made("rank", **other_rank))
    refused("num_images is 2 in the one and 1", two[0], made("few", num_images=1))
    refused("the subject rex is not the same", two[0], made("prompts", prompts=["a {subject}"]))
    refused("Give the folder that `finetune compare`", two[0], tmp_path / "gone")
    path = tmp_path / "rank" / "results.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "schema_version": 99}))
    refused("has the schema version 99", two[0], tmp_path / "rank")
    path.write_text(json.dumps({**content, "rows": 3}))
    refused("cannot be read as results of a comparison: rows", two[0], tmp_path / "rank")
    cell = next(c for c in content["cells"] if c["row"] == "low")
    cell["pictures"] = [["../../escaped.png"]]
    path.write_text(json.dumps(content))
    refused("leads out of its folder|not the same", tmp_path / "rank")
    target.mkdir()
    (target / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="nothing is written over"):
        merged(two, target, command="x")
