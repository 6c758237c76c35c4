"""Mistakes come out before anything is trained, and a refused or stopped run stays as it was."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from finetune.base import BaseConfig, load_base, skeleton_of
from finetune.cli import app
from finetune.config import build_run_config
from finetune.errors import ArtifactError, ConfigError
from finetune.run import preflight
from methods import load_method


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def written(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def config_file(run_values: Any, tmp_path: Path) -> Path:
    values = run_values(
        "lora", prior={"kind": "none"}, training={"num_steps": 2, "checkpoint_every": 2}
    )
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**values, "output": str(tmp_path / "run")}))
    return path


def test_a_refused_resume_changes_nothing_and_the_run_goes_on(
    config_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert invoke("train", config_file).exit_code == 0
    shutil.rmtree(run / "artifact")
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (16, 16), "red").save(other / "a.png")
    before = written(run)
    longer = ("training.num_steps=4", "--allow-change", "training.num_steps")
    refused = invoke(
        "train", "--resume", run, f"data.photos={other}", "--allow-change", "data.photos", *longer
    )
    assert refused.exit_code == 2
    assert "was made with other data" in refused.stderr
    assert written(run) == before
    assert invoke("train", "--resume", run, *longer).exit_code == 0
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_finished_run_that_was_being_extended_is_not_taken_for_finished(
    config_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert invoke("train", config_file).exit_code == 0
    assert "is finished already" in invoke("train", "--resume", run).stdout
    # As a kill leaves it: told to do four steps, the artifact of two still there.
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["training"]["num_steps"] = 4
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    resumed = invoke("train", "--resume", run)
    assert "Done in" in resumed.stdout
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4
    assert "is finished already" in invoke("train", "--resume", run).stdout
    fewer = invoke(
        "train", "--resume", run, "training.num_steps=3", "--allow-change", "training.num_steps"
    )
    assert fewer.exit_code == 2
    assert "has done 4 steps already" in fewer.stderr


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"optimizer": {"name": "prodigy"}}, "optimizer.name: prodigy"),
        ({"prior": {"kind": "class_images", "photos": "/nowhere"}}, "prior.photos"),
        ({"samples": {"every": 1, "prompts": ["a {foo}"]}}, "samples.prompts"),
        ({"training": {"attention": "efficient"}}, "training.attention: efficient"),
    ],
)
def test_a_comparison_looks_at_every_row_before_it_trains_one(
    section: dict[str, Any], message: str, run_values: Any, tmp_path: Path
) -> None:
    if torch.cuda.is_available() or (
        "prodigy" in message and _is_installed("prodigyopt")
    ):  # then it is no mistake
        pytest.skip("this machine can do it")
    values = run_values("lora")
    path = tmp_path / "compare.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                **{key: values[key] for key in ("base", "data")},
                "methods": {
                    "first": {"method": {"kind": "lora"}},
                    "second": {"method": {"kind": "lora"}, **section},
                },
                "prompts": ["a {subject} in the snow"],
                "output": str(tmp_path / "out"),
            }
        )
    )
    result = invoke("compare", path)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def _is_installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def test_samples_that_a_family_cannot_make_are_refused_without_weights(
    family_folders: Any, run_values: Any, tmp_path: Path
) -> None:
    shutil.copytree(family_folders("flux"), tmp_path / "flux")
    file = tmp_path / "flux" / "vae" / "config.json"
    levels = {  # as many as the published model's, so that pictures have to be multiples of 16
        "block_out_channels": [8] * 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    file.write_text(json.dumps({**json.loads(file.read_text()), **levels}))
    flux = {"source": str(tmp_path / "flux")}
    for sampling, message in (
        ({"negative_prompt": "bad"}, r"sampling\.negative_prompt: .* steers by a number"),
        ({"size": 24}, r"sampling\.size 24 is not a multiple of 16"),
    ):
        values = run_values("lora", base=flux, data={"size": 16}, sampling=sampling)
        config = build_run_config(values, load_method, "test")
        method = load_method("lora")(config.method)
        with pytest.raises(ConfigError, match=message):
            preflight(skeleton_of(BaseConfig(**flux)), method, config)


def test_nothing_to_train_and_nothing_to_show_are_refused(run_values: Any, tiny_base: Any) -> None:
    for section, message in (
        ({"samples": {"prompts": []}}, r"samples\.prompts"),
        ({"prior": {"kind": "none", "photos": "dogs"}}, "photos are those of kind=class_images"),
        ({"prior": {"kind": "class_images", "photos": ""}}, r"prior\.photos"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_run_config(run_values("lora", **section), load_method, "test")
    values = run_values("lora", method={"target_modules": []}, prior={"kind": "none"})
    config = build_run_config(values, load_method, "test")
    with pytest.raises(ConfigError, match="target_modules is empty"):
        preflight(tiny_base, load_method("lora")(config.method), config)


@pytest.mark.parametrize("size", [None, [16, 16], 0])
def test_a_base_of_no_size_is_refused_with_and_without_weights(
    size: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "sample_size": size}))
    for read in (skeleton_of, load_base):
        with pytest.raises(ArtifactError, match="cannot be read"):
            read(BaseConfig(source=str(folder)))


def test_frozen_weights_follow_the_network_to_another_device(
    tiny_folder: Path, run_values: Any
) -> None:
    """The meta device stands for an accelerator that the base goes to when its method is attached."""
    base = load_base(BaseConfig(source=str(tiny_folder)))
    config = build_run_config(run_values("dreambooth"), load_method, "test")
    method = load_method("dreambooth")(config.method)
    method.prepare(base)
    base.denoiser.to("meta")
    with method.frozen(base):
        assert {p.device.type for p in base.denoiser.parameters()} == {"meta"}
    method.detach(base)
    assert {p.device.type for p in base.denoiser.parameters()} == {"meta"}


def test_a_picture_under_two_captions_is_itself_when_resumed(
    config_file: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "twins"
    photos.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (16, 16), "red").save(photos / f"{name}.png")
        (photos / f"{name}.txt").write_text(f"the {name} {{subject}}")
    settings = (f"data.photos={photos}", f"output={tmp_path / 'twins-run'}")
    assert invoke("train", config_file, *settings).exit_code == 0
    longer = ("training.num_steps=4", "--allow-change", "training.num_steps")
    assert "Done in" in invoke("train", "--resume", tmp_path / "twins-run", *longer).stdout
    (photos / "b.txt").write_text("another {subject}")
    again = ("training.num_steps=6", "--allow-change", "training.num_steps")
    refused = invoke("train", "--resume", tmp_path / "twins-run", *again)
    assert refused.exit_code == 2
    assert "the caption of b.png has changed" in refused.stderr
    assert "a.png" not in refused.stderr


def test_what_a_stopped_write_leaves_in_the_cache_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_prep import cache as module

    def stopped(tensors: Any, path: Path, header: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_file", stopped)
    cache = module.TensorCache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.put("key", {"a": torch.ones(2)})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert os.environ["FINETUNE_CACHE"] != str(tmp_path)  # not the session's own
