"""Finished artifacts, ours or other tools', as rows of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from finetune.compare.config import CompareConfig
from finetune.compare.planned import plan
from finetune.compare.run import make_cells
from finetune.config import validate
from finetune.errors import ArtifactError, ConfigError
from finetune.export import export_artifact
from methods import load_method


@pytest.fixture
def settings(tiny_base: Any, photos_folder: Path, tmp_path: Path) -> Any:
    def build(**artifacts: Any) -> CompareConfig:
        values = {
            "base": {"source": tiny_base.source},
            "data": {"photos": str(photos_folder), "class_noun": "dog", "size": 16},
            "shared": {
                "training": {"num_steps": 1},
                "prior": {"kind": "none"},
                "sampling": {"num_steps": 2, "scheduler": "ddim"},
            },
            "methods": {"fresh": {"method": {"kind": "lora"}}},
            "prompts": ["a photo of a {subject} on the beach"],
            "num_images": 2,
            "artifacts": artifacts,
            "output": str(tmp_path / "compare"),
        }
        return validate(CompareConfig, values, "test")

    return build


def test_an_artifact_and_its_exports_make_equal_rows(
    tiny_base: Any, make_artifact: Any, settings: Any, tmp_path: Path
) -> None:
    make_artifact(tiny_base, "lora", rank=4, alpha=6.0, train_text_encoder=True)
    (tmp_path / "run").rename(tmp_path / "lora")
    kohya = tmp_path / "lora.safetensors"
    export_artifact(tmp_path / "lora", "kohya", kohya)
    model = make_artifact(tiny_base, "dreambooth", train_text_encoder=True)
    single = tmp_path / "model.safetensors"
    export_artifact(model.folder, "single-file", single)
    config = settings(
        lora={"path": str(tmp_path / "lora")},
        kohya={"path": str(kohya)},
        model={"path": str(model.folder)},
        single={"path": str(single), "subject": "sks dog"},
    )
    planned = plan(config, tiny_base, load_method)
    made = make_cells(planned, tiny_base, load_method, announce=lambda text: None)
    assert tiny_base.current_fingerprint() == tiny_base.fingerprint
    rows = {cell.row: cell for cell in made.cells}
    assert list(rows) == ["frozen base", "fresh", "lora", "kohya", "model", "single"]
    pixels = {
        name: [(config.output / file).read_bytes() for column in cell.pictures for file in column]
        for name, cell in rows.items()
    }
    assert pixels["lora"] == pixels["kohya"] != pixels["frozen base"]
    assert pixels["model"] == pixels["single"] != pixels["lora"]
    assert rows["kohya"].subject_phrase == "sks dog"
    assert rows["kohya"].costs.train_seconds is None
    assert rows["kohya"].artifact_bytes == kohya.stat().st_size


def test_what_lies_beside_a_run_s_artifact_may_change(
    tiny_base: Any, make_artifact: Any, settings: Any, tmp_path: Path
) -> None:
    make_artifact(tiny_base, "lora")
    run = tmp_path / "run"
    config = settings(lora={"path": str(run)})
    before = plan(config, tiny_base, load_method).rows
    (run / "metrics.jsonl").write_text("{}\n")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "state").write_bytes(b"0")
    assert plan(config, tiny_base, load_method).rows == before
    with (run / "artifact" / "artifact.json").open("a") as note:
        note.write("\n")
    assert plan(config, tiny_base, load_method).rows["lora"] != before["lora"]


def test_mistakes_come_out_before_anything_is_trained(
    tiny_base: Any, settings: Any, tmp_path: Path
) -> None:
    nameless = tmp_path / "nameless.safetensors"
    module = "lora_unet_mid_block_attentions_0_proj_in"
    sides = {"lora_down.weight": (2, 768), "lora_up.weight": (16, 2)}
    save_file({f"{module}.{side}": torch.ones(shape) for side, shape in sides.items()}, nameless)
    row = {"path": str(nameless)}

    def refused(error: type[Exception], match: str, **artifacts: Any) -> None:
        with pytest.raises(error, match=match):
            plan(settings(**artifacts), tiny_base, load_method)

    refused(ConfigError, r"artifacts\.theirs\.subject is not set", theirs=row)
    refused(ConfigError, r"artifacts\.fresh: choose another name", fresh=row)
    refused(ArtifactError, "another base", theirs={**row, "subject": "my dog"})
    refused(ArtifactError, "there is no such folder", theirs={"path": str(tmp_path / "gone")})
    assert not (tmp_path / "compare").exists()
