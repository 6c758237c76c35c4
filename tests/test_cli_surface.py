"""The command line: what there is, and one clear sentence with exit code 2 for what a user can mend."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

from finetune.cli import app, reports_errors
from finetune.compare.config import CompareConfig
from finetune.config import build_run_config, parse_yaml, read_yaml, validate
from finetune.pretrain.recipe import PretrainConfig
from methods import METHODS, load_method

COMMANDS = {
    "train",
    "generate",
    "compare",
    "evaluate",
    "export",
    "inspect",
    "show-config",
    "pretrain",
    "clay render",
    "clay subjects",
    "list methods",
    "list bases",
    "list configs",
}
ALL_METHODS = sorted(METHODS)


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(*arguments: str | Path) -> str:
    """The message of a command that must fail: exit code 2, one error, no traceback."""
    result = invoke(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert result.output.count("Error: ") == 1
    assert "Traceback" not in result.output
    return str(result.stderr).partition("Error: ")[2].strip()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)


WriteConfig = Callable[..., Path]


@pytest.fixture
def write_config(run_values: Any, tmp_path: Path) -> WriteConfig:
    """A YAML of the smallest possible run; keyword arguments are sections laid over."""

    def write(kind: str = "lora", **sections: Any) -> Path:
        smallest = {
            "training": {"num_steps": 1, "batch_size": 1},
            "prior": {"kind": "none"},
            "data": {"crop": "center", "flip_probability": 0.0},
            "output": str(tmp_path / "run"),
        }
        from finetune.config import merge

        values = merge(run_values(kind, **smallest), sections)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return write


@pytest.fixture
def finished_run(write_config: WriteConfig, tmp_path: Path) -> Path:
    result = invoke("train", write_config())
    assert result.exit_code == 0, result.output
    return tmp_path / "run"


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def leaf_commands(command: Any = None, path: str = "") -> Iterator[tuple[str, Any]]:
    command = typer.main.get_command(app) if command is None else command
    if not hasattr(command, "commands"):
        yield path.strip(), command
        return
    for name, child in command.commands.items():
        yield from leaf_commands(child, f"{path} {name}")


def test_commands_are_exactly_these() -> None:
    assert {name for name, _ in leaf_commands()} == COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_option_has_a_help_text(name: str) -> None:
    command = dict(leaf_commands())[name]
    assert len(command.help) > 20
    for parameter in command.params:
        assert parameter.help, f"{name}: {parameter.name}"
        assert parameter.help.endswith((".", ")")), f"{name}: {parameter.name}"


@pytest.mark.parametrize("name", ["", "clay", "list", *sorted(COMMANDS)])
def test_help_is_shown(name: str) -> None:
    result = invoke(*name.split(), "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_show_config_prints_a_configuration_that_is_read_back() -> None:
    for kind in ALL_METHODS:
        result = invoke("show-config", kind)
        assert result.exit_code == 0
        config = build_run_config(parse_yaml(result.stdout, kind), load_method, kind)
        assert config.method == load_method(kind).config_class()
    for command, kind, field in (
        ("compare", CompareConfig, "unrelated_prompts"),
        ("pretrain", PretrainConfig, "freeze_text_encoder"),
    ):
        text = invoke("show-config", command).stdout
        assert f"{field}: " in text
        values = parse_yaml(text, command)
        told = validate(kind, values, command).model_dump(mode="json")
        assert told == values


def test_list_methods_shows_all_and_survives_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "zz_broken", "no_such_package:Method")
    result = invoke("list", "methods")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [*ALL_METHODS, "zz_broken"]
    assert "broken: " in lines[-1]
    assert "No module named 'no_such_package'" in lines[-1]
    assert "LoRA (Hu et al. 2022)" in lines[ALL_METHODS.index("lora")]


def test_list_configs_shows_files_and_what_they_are_for() -> None:
    result = invoke("list", "configs")
    assert result.exit_code == 0
    paths = [Path(line.split()[0]) for line in result.stdout.splitlines()]
    assert {"lora.yaml", "compare.yaml"} <= {path.name for path in paths}
    assert all(path.is_file() for path in paths)


def test_list_bases_ends_with_what_else_serves() -> None:
    result = invoke("list", "bases")
    assert result.exit_code == 0
    assert "a Hub id" in result.stdout.splitlines()[-1]


# --- photos ---------------------------------------------------------------------------------------


def test_missing_photos_folder(write_config: WriteConfig, tmp_path: Path) -> None:
    gone = tmp_path / "no" / "photos"
    message = refusal("train", write_config(), f"data.photos={gone}")
    assert message == f"data.photos: there is no folder '{gone}'."
    assert f"there is no folder '{gone}'" in refusal("inspect", gone)


def test_folder_without_pictures(write_config: WriteConfig, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    message = refusal("train", write_config(), f"data.photos={empty}")
    assert message.startswith(f"data.photos: {empty} holds no pictures.")
    assert "holds no pictures" in refusal("inspect", empty)


@pytest.fixture
def spoilt_photos(tmp_path: Path) -> Path:
    folder = tmp_path / "spoilt"
    folder.mkdir()
    Image.new("RGB", (20, 20)).save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


def test_unreadable_picture_is_named(write_config: WriteConfig, spoilt_photos: Path) -> None:
    message = refusal("train", write_config(), f"data.photos={spoilt_photos}")
    assert message.startswith("bad.png cannot be read as a picture")


def test_inspect_lists_all_pictures_and_fails_for_the_unreadable(spoilt_photos: Path) -> None:
    result = invoke("inspect", spoilt_photos, "--output", "sheet.png")
    assert result.exit_code == 2
    assert "bad.png   refused" in result.stdout
    assert "good.png  ok       20 × 20" in result.stdout
    assert "1 of the pictures cannot be used" in result.stderr
    with Image.open("sheet.png") as sheet:
        assert sheet.size == (2 * 192, 192)
    verdicts = [photo["verdict"] for photo in json.loads(Path("sheet.json").read_text())["photos"]]
    assert verdicts == ["refused", "ok"]


def test_inspect_refuses_what_it_cannot_do(spoilt_photos: Path) -> None:
    assert "should end in .png" in refusal("inspect", spoilt_photos, "--output", "sheet.tiff")
    assert "unknown color specifier: 'whyte'" in refusal(
        "inspect", spoilt_photos, "--background", "whyte"
    )


def test_inspect_takes_a_configuration(write_config: WriteConfig, photos_folder: Path) -> None:
    result = invoke("inspect", write_config(), "--output", "new/folder/sheet.png")
    assert result.exit_code == 0, result.output
    assert "3 of 3 pictures can be used." in result.stdout
    assert "smaller than" not in result.stdout  # 20 pixels, trained at 16
    assert "smaller than 512 px" in invoke("inspect", photos_folder).stdout
    with Image.open("new/folder/sheet.png") as sheet:
        assert sheet.size == (3 * 192, 192)


def test_inspect_of_a_configuration_shows_what_the_loader_yields(
    write_config: WriteConfig,
) -> None:
    config = write_config(training={"num_steps": 6, "batch_size": 2})
    result = invoke("inspect", config, "data.flip_probability=1", "--output", "sheet.png")
    assert result.exit_code == 0, result.output
    assert "6 steps of 2 will show:" in result.stdout
    photos = json.loads(Path("sheet.json").read_text())["training"]["photos"]
    assert [photo["times"] for photo in photos] == [4, 4, 4]
    assert [photo["mirrored_ways"] for photo in photos] == [1, 1, 1]
    with Image.open("sheet-training.png") as sheet:
        assert sheet.size == (3 * 192, 192 + 46)
    # Without a size the base is asked for its own.
    result = invoke("inspect", config, "data.size=null", "--output", "sheet.png")
    assert "16 × 16  4 times" in result.stdout
    assert "changes are for a configuration" in refusal("inspect", ".", "data.size=16")


def test_buckets_and_class_pictures_exclude_each_other(write_config: WriteConfig) -> None:
    config = write_config(data={"buckets": True}, prior={"kind": "class_images"})
    for command in ("train", "inspect"):
        message = refusal(command, config)
        assert "class pictures are square" in message
        assert "prior.kind=base_prediction" in message


def test_a_run_says_where_its_class_pictures_come_from(
    write_config: WriteConfig, photos_folder: Path, tmp_path: Path
) -> None:
    config = write_config(prior={"kind": "class_images", "num_images": 2})
    assert invoke("train", config).exit_code == 0
    told = json.loads((tmp_path / "run" / "class_pictures.json").read_text())
    assert told["made_by"]["prompt"] == "a photo of a dog"
    assert told["made_by"]["sampler"] == "sde-dpm-solver++"
    assert len(told["pictures"]) == 2
    own = invoke("train", config, f"prior.photos={photos_folder}", "--overwrite")
    assert own.exit_code == 0, own.output
    told = json.loads((tmp_path / "run" / "class_pictures.json").read_text())
    assert [picture["file"] for picture in told["pictures"]] == ["0.png", "1.png", "2.png"]
    gone = refusal("train", config, f"prior.photos={tmp_path / 'gone'}", "--overwrite")
    assert gone.startswith("prior.photos: there is no folder")


def test_mistake_in_the_photos_costs_no_run_folder(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    config = write_config()
    refusal("train", config, f"data.photos={tmp_path / 'gone' / 'away'}")
    refusal("train", config, "data.prompt='a {subjekt}'")
    refusal("train", config, "method.target_modules=[no_such_module]")
    assert not (tmp_path / "run").exists()
    assert invoke("train", config).exit_code == 0


# --- configurations -------------------------------------------------------------------------------


def test_unknown_key_names_the_nearest(write_config: WriteConfig) -> None:
    config = write_config(training={"num_step": 3})
    message = refusal("train", config)
    assert message.startswith(f"{config}:")
    assert "training.num_step: unknown key. Did you mean 'num_steps'?" in message
    override = refusal("train", write_config(), "method.rnk=3")
    assert "method.rnk: unknown key. Did you mean 'rank'?" in override


def test_value_out_of_range(write_config: WriteConfig) -> None:
    message = refusal("train", write_config(), "training.num_steps=0", "method.learning_rate=-1")
    assert "training.num_steps: input should be greater than 0 (given: 0)." in message
    assert "method.learning_rate: input should be greater than 0 (given: -1)." in message


def test_malformed_override(write_config: WriteConfig) -> None:
    message = refusal("train", write_config(), "training.num_steps")
    assert message == "'training.num_steps' is not of the form section.key=value."


def test_unknown_method(write_config: WriteConfig) -> None:
    message = refusal("train", write_config(), "method.kind=lorra")
    assert "there is no method 'lorra'" in message
    assert message.endswith("Did you mean 'lora'?")
    assert refusal("show-config", "lorra") == message


def test_unknown_base(write_config: WriteConfig, tmp_path: Path) -> None:
    message = refusal("train", write_config(), "base.source=nowhere")
    assert message.startswith("There is no base 'nowhere'")
    assert not (tmp_path / "run").exists()


def test_base_that_is_no_pipeline(write_config: WriteConfig, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    message = refusal("train", write_config(), f"base.source={tmp_path / 'weights'}")
    assert "has no readable model_index.json" in message


def test_class_noun_missing_with_a_prior(write_config: WriteConfig) -> None:
    config = write_config(data={"class_noun": None}, prior={"kind": "class_images"})
    message = refusal("train", config)
    assert "prior.kind is class_images, but data.class_noun is not set" in message
    assert "data.class_noun=dog" in message


def test_missing_configuration_file(tmp_path: Path) -> None:
    for command in ("train", "compare", "pretrain", "inspect"):
        message = refusal(command, tmp_path / "gone.yaml")
        assert f"{tmp_path / 'gone.yaml'} cannot be read" in message
    assert refusal("train").startswith("Give a configuration")


def test_invalid_yaml(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("data: [a\nmethod: b\n")
    message = refusal("train", path)
    assert message.startswith(f"{path} is not valid YAML")
    assert "line 2" in message


def test_comparison_row_with_a_mistake_is_named(tmp_path: Path) -> None:
    path = tmp_path / "compare.yaml"
    row = {"method": {"kind": "lora", "rnk": 1}}
    values = {"data": {"photos": "p"}, "methods": {"mine": row}, "prompts": ["a {subject}"]}
    path.write_text(yaml.safe_dump(values))
    message = refusal("compare", path)
    assert message.startswith("methods.mine:")
    assert "method.rnk: unknown key. Did you mean 'rank'?" in message


def test_unknown_stage(tmp_path: Path) -> None:
    message = refusal("pretrain", tmp_path / "x.yaml", "--stage", "vae")
    assert message == (
        "--stage: 'vae' is not one of autoencoder, contrast, judge, denoiser, decoder, assemble, all."
    )


# --- identifiers ----------------------------------------------------------------------------------


def test_common_word_as_identifier_is_a_warning(write_config: WriteConfig, tmp_path: Path) -> None:
    result = invoke("train", write_config(), "method.identifier=house")
    assert result.exit_code == 0, result.output
    assert "Warning: 'house' is a common word" in result.stderr
    assert (tmp_path / "run" / "artifact" / "artifact.json").is_file()


def test_rare_token_as_identifier_is_no_warning(write_config: WriteConfig) -> None:
    result = invoke("train", write_config())
    assert result.exit_code == 0
    assert "Warning" not in result.output


def test_class_noun_as_identifier_is_refused(write_config: WriteConfig, tmp_path: Path) -> None:
    message = refusal("train", write_config(), "method.identifier=dog")
    assert message.startswith("method.identifier is 'dog', the class noun itself")
    assert not (tmp_path / "run").exists()


# --- run folders ----------------------------------------------------------------------------------


def test_run_folder_is_never_lost_without_being_told(finished_run: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    before = files_of(finished_run)
    assert "artifact/pytorch_lora_weights.safetensors" in before
    message = refusal("train", config, "training.seed=7")
    assert message.startswith(f"The run folder {finished_run} exists.")
    assert files_of(finished_run) == before
    # A mistake elsewhere must not cost the old run either.
    refusal("train", config, "base.source=nowhere", "--overwrite")
    refusal("train", config, f"data.photos={tmp_path / 'gone' / 'away'}", "--overwrite")
    assert files_of(finished_run) == before
    (finished_run / "samples").mkdir()
    result = invoke("train", config, "training.seed=7", "--overwrite")
    assert result.exit_code == 0, result.output
    after = files_of(finished_run)
    assert not (finished_run / "samples").exists()
    assert "seed: 7" in after["config.yaml"].decode()
    weights = "artifact/pytorch_lora_weights.safetensors"
    assert after[weights] != before[weights]


def test_overwrite_refuses_a_folder_that_is_no_run(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    config = write_config()
    assert "exists" in refusal("train", config)
    message = refusal("train", config, "--overwrite")
    assert "is no run folder (no config.yaml), so --overwrite will not delete it" in message
    assert files_of(folder) == {"thesis.txt": b"years of work"}


def test_output_that_is_a_file_is_refused(write_config: WriteConfig, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    for options in ((), ("--overwrite",)):
        message = refusal("train", write_config(), *options)
        assert message.startswith(f"{tmp_path / 'run'} is a file")
    assert (tmp_path / "run").read_text() == "a file"


def test_resume_with_another_configuration_shows_the_difference(
    finished_run: Path, tmp_path: Path
) -> None:
    before = files_of(finished_run)
    config = tmp_path / "config.yaml"
    message = refusal("train", config, "training.num_steps=9", "--resume", finished_run)
    assert "was started with another configuration" in message
    changed = [line for line in message.splitlines() if line.startswith(("-t", "+t"))]
    assert changed == ["-training.num_steps: 1", "+training.num_steps: 9"]
    assert files_of(finished_run) == before


def test_resume_without_a_run(write_config: WriteConfig, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    message = f"There is no run to resume in {gone} (no config.yaml)."
    assert refusal("train", "--resume", gone) == message
    assert refusal("train", write_config(), "--resume", gone) == message
    assert not gone.exists()


def test_moved_run_is_resumed_where_it_is_now(finished_run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    finished_run.rename(moved)
    result = invoke("train", "--resume", moved)
    assert result.exit_code == 0, result.output
    assert not finished_run.exists()
    again = invoke("train", tmp_path / "config.yaml", "--resume", moved)
    assert again.exit_code == 0, again.output


# --- pictures -------------------------------------------------------------------------------------


def test_generate_on_what_is_no_artifact(tmp_path: Path) -> None:
    prompt = ("--prompt", "a {subject}")
    gone = refusal("generate", tmp_path / "gone", *prompt)
    assert gone.startswith(f"{tmp_path / 'gone'} is neither a finished run nor an artifact")
    assert "there is no such folder" in gone
    assert "it holds no artifact.json" in refusal("generate", tmp_path, *prompt)


def test_generate_without_a_prompt(tmp_path: Path) -> None:
    assert refusal("generate", tmp_path).startswith("Give --prompt")
    missing = refusal("generate", tmp_path, "--prompts", tmp_path / "gone.txt")
    assert missing.startswith(f"--prompts: '{tmp_path / 'gone.txt'}' is no prompts file here")
    (tmp_path / "latin.txt").write_bytes("ein Hündchen".encode("latin-1"))
    latin = refusal("generate", tmp_path, "--prompts", tmp_path / "latin.txt")
    assert latin.startswith(f"--prompts: {tmp_path / 'latin.txt'} is not UTF-8 text")


def test_generate_with_bad_values(finished_run: Path) -> None:
    sampler = refusal("generate", finished_run, "--prompt", "x", "--scheduler", "euler")
    assert (
        "scheduler: input should be 'ddpm', 'ddim', 'dpm-solver++' or 'sde-dpm-solver++'" in sampler
    )
    unknown = refusal("generate", finished_run, "--prompt", "a {subjekt}")
    assert unknown.startswith("--prompt: 'a {subjekt}' holds {subjekt}")
    note = finished_run / "artifact" / "artifact.json"
    note.write_text(note.read_text().replace('"rank": 8', '"rank": "many"'))
    damaged = refusal("generate", finished_run, "--prompt", "x")
    assert "artifact.json" in damaged
    assert "rank" in damaged


def test_pictures_are_sampled_as_the_run_says_but_for_options(
    finished_run: Path, tmp_path: Path
) -> None:
    note = finished_run / "artifact" / "artifact.json"
    told = json.loads(note.read_text())
    config = read_yaml(finished_run / "config.yaml")
    assert told["sampling"]["num_steps"] == config["sampling"]["num_steps"]
    told["sampling"] |= {"num_steps": 3, "guidance_scale": 2.0, "scheduler": "ddim"}
    note.write_text(json.dumps(told))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# a comment is no prompt\na {subject}\n")

    def picture(*options: str) -> bytes:
        output = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        given = ("--prompts", prompts, "--num-images", "1", "--output", output)
        made = invoke("generate", finished_run, *given, *options)
        assert made.exit_code == 0, made.output
        assert {path.name for path in output.iterdir()} == {"00-0000.png", "grid.png"}
        return (output / "00-0000.png").read_bytes()

    as_told = ("--steps", "3", "--guidance-scale", "2", "--scheduler", "ddim")
    own = picture()
    assert own == picture(*as_told)
    assert own != picture("--guidance-scale", "6")
    told["sampling"]["num_steps"] = 0
    note.write_text(json.dumps(told))
    refused = refusal("generate", finished_run, "--prompt", "x")
    assert refused.startswith(
        "sampling of the artifact, and options:\n  num_steps: input should be"
    )


def test_pictures_of_artifacts_with_one_name_stay_apart(finished_run: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    config = tmp_path / "config.yaml"
    steep = invoke("train", config, f"output={second}", "method.learning_rate=1.0")
    assert steep.exit_code == 0, steep.output
    artifacts = [finished_run / "artifact", second / "artifact"]
    options = ("--prompt", "a photo of a {subject}", "--steps", "2", "--num-images", "1")
    result = invoke("generate", *artifacts, *options, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    pictures = {n: c for n, c in files_of(tmp_path / "out").items() if n != "grid.png"}
    assert len(pictures) == 2
    assert len(set(pictures.values())) == 2
    assert {Path(name).name for name in pictures} == {"00-0000.png"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_sentence_and_costs_no_picture(
    finished_run: Path, tmp_path: Path
) -> None:
    """The disk is full when the last picture is written; those before stay, and so does the run."""
    before, output = files_of(finished_run), tmp_path / "out"
    output.mkdir()
    (output / "grid.png").symlink_to("/dev/full")
    options = ("--prompt", "a {subject}", "--steps", "1", "--num-images", "2", "--output", output)
    message = refusal("generate", finished_run, *options)
    assert message.endswith("No space left on device. Free some space or choose another folder.")
    assert len(list(output.glob("00-*.png"))) == 2
    assert files_of(finished_run) == before


# --- files of other tools -------------------------------------------------------------------------


def test_export_and_back(finished_run: Path, tmp_path: Path, tiny_folder: Path) -> None:
    """The pictures of an exported LoRA are those of the run, byte for byte."""
    file = tmp_path / "dog.safetensors"
    result = invoke("export", finished_run, "--format", "kohya", "--output", file)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"Wrote {file}\n"
    options = ("--prompt", "a photo of a {subject}", "--steps", "2", "--num-images", "1")
    pictures = []
    for artifact in ((finished_run,), (file, "--base", tiny_folder)):
        output = tmp_path / f"out{len(pictures)}"
        made = invoke("generate", *artifact, *options, "--output", output)
        assert made.exit_code == 0, made.output
        pictures.append((output / "00-0000.png").read_bytes())
    assert pictures[0] == pictures[1]
    side = invoke("generate", finished_run, file, *options, "--output", tmp_path / "both")
    assert side.exit_code == 0, side.output  # the run says which base


def test_export_with_bad_values(finished_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "dog.safetensors"

    def export(*options: str | Path, source: Path = finished_run) -> str:
        return refusal("export", source, *options)

    unknown = export("--format", "kohia", "--output", file)
    assert unknown.startswith(
        "--format: 'kohia' is not one of kohya, a1111, single-file, diffusers."
    )
    assert unknown.endswith("Did you mean 'kohya'?")
    embedding = export("--format", "a1111", "--output", file)
    assert embedding.startswith("--format a1111 is for a Textual Inversion embedding;")
    assert embedding.endswith("holds a LoRA. Use --format kohya or diffusers.")
    assert "is for a whole model" in export("--format", "single-file", "--output", file)
    assert "--dtype: 'float8' is not one of" in export(
        "--format", "kohya", "--output", file, "--dtype", "float8"
    )
    assert "has to end in .safetensors" in export("--format", "kohya", "--output", "dog.pt")
    (tmp_path / "f.safetensors").mkdir()
    folder = export("--format", "kohya", "--output", tmp_path / "f.safetensors")
    assert "is a folder; name the file in it" in folder
    assert not file.exists()
    gone = export("--format", "kohya", "--output", file, source=tmp_path / "gone")
    assert "is neither a finished run nor an artifact" in gone


def test_export_never_writes_over_what_it_is_not_told_to(
    finished_run: Path, tmp_path: Path
) -> None:
    file, folder = tmp_path / "dog.safetensors", tmp_path / "folder"
    file.write_text("mine")
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    kohya = ("export", finished_run, "--format", "kohya", "--output")
    assert "exists. Replace it with --overwrite" in refusal(*kohya, file)
    copy = ("export", finished_run, "--format", "diffusers", "--output")
    assert "exists. Replace it with --overwrite" in refusal(*copy, folder)
    message = refusal(*copy, folder, "--overwrite")
    assert "is no artifact (no artifact.json), so --overwrite will not delete it" in message
    assert "is a file; --format diffusers writes a folder" in refusal(*copy, file, "--overwrite")
    assert "overlaps the artifact itself" in refusal(*copy, finished_run / "artifact" / "copy")
    assert "--dtype: --format diffusers copies" in refusal(
        *copy, tmp_path / "c", "--dtype", "float16"
    )
    assert file.read_text() == "mine"
    assert files_of(folder) == {"thesis.txt": b"years of work"}
    assert invoke(*kohya, file, "--overwrite").exit_code == 0
    assert invoke(*copy, tmp_path / "new").exit_code == 0
    assert invoke(*copy, tmp_path / "new", "--overwrite").exit_code == 0
    assert files_of(tmp_path / "new") == files_of(finished_run / "artifact")


def test_generate_with_files_of_other_tools_that_cannot_be_used(
    finished_run: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    prompt = ("--prompt", "a photo of a {subject}")
    file = tmp_path / "dog.safetensors"
    assert invoke("export", finished_run, "--format", "kohya", "--output", file).exit_code == 0
    assert "Say which with --base" in refusal("generate", file, *prompt)
    assert "no base 'cley'" in refusal("generate", file, "--base", "cley", *prompt)
    other = refusal("generate", file, "--base", "clay", *prompt)
    assert "was made for another base than clay" in other
    module = "lora_unet_mid_block_attentions_0_proj_in"
    sides = {"lora_down.weight": (2, 16), "lora_up.weight": (16, 2), "alpha": ()}
    state = {f"{module}.{side}": torch.ones(shape) for side, shape in sides.items()}
    save_file(state, file)
    nameless = refusal("generate", file, "--base", tiny_folder, *prompt)
    assert "does not say what {subject} is. Write the words themselves" in nameless
    classless = refusal("generate", file, "--base", tiny_folder, "--prompt", "a {class}")
    assert "does not say what {class} is" in classless
    torch.save({"*": torch.ones(16)}, tmp_path / "old.pt")
    pickle = refusal("generate", tmp_path / "old.pt", "--base", tiny_folder, *prompt)
    assert "is a pickle, which can run code when it is read" in pickle
    (tmp_path / "model.ckpt").write_bytes(b"no pickle")
    damaged = refusal("generate", tmp_path / "model.ckpt", "--allow-pickle", *prompt)
    assert "holds more than tensors or is damaged" in damaged


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file-size limit")
def test_export_to_a_full_disk_keeps_what_was_there(finished_run: Path, tmp_path: Path) -> None:
    """A file-size limit in a process of its own stands for the disk."""
    file = tmp_path / "dog.safetensors"
    kohya = ["export", str(finished_run), "--format", "kohya", "--output", str(file)]
    assert invoke(*kohya).exit_code == 0
    before = file.read_bytes()
    program = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from finetune.cli import app\n"
        "app(sys.argv[1:])\n"
    )
    command = [sys.executable, "-B", "-c", program, *kohya, "--overwrite"]
    root = Path(__file__).resolve().parent.parent
    result = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert result.returncode == 2, result.stderr
    assert "could not be written" in result.stderr
    assert "Traceback" not in result.stderr
    assert file.read_bytes() == before
    assert list(tmp_path.glob(".*partial")) == []


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "picture.png could not be opened: Permission denied. Give yourself access"),
        (errno.EISDIR, "picture.png could not be opened: Is a directory."),
        (
            errno.ENOSPC,
            "picture.png could not be written: No space left on device. Free some space",
        ),
    ],
)
def test_what_the_system_refuses_is_called_by_its_name(
    number: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise OSError(number, os.strerror(number), "picture.png")

    with pytest.raises(typer.Exit) as caught:
        reports_errors(command)()
    assert caught.value.exit_code == 2
    assert said in capsys.readouterr().err


def test_a_signal_outside_the_loop_ends_in_good_order(capsys: pytest.CaptureFixture[str]) -> None:
    unwound = []

    def command(number: int) -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            unwound.append(number)

    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with pytest.raises(typer.Exit) as caught:
            reports_errors(command)(number)
        assert caught.value.exit_code == code
        assert "Stopped." in capsys.readouterr().err
    assert unwound == [signal.SIGINT, signal.SIGTERM]


def test_stages_and_groups_are_refused_by_name(tmp_path: Path) -> None:
    recipe = Path(__file__).resolve().parents[1] / "configs" / "clay" / "pretrain.yaml"
    folder = f"work_folder={tmp_path}"
    assert f"Run: finetune pretrain {recipe} {folder} --stage autoencoder" in refusal(
        "pretrain", recipe, folder, "--stage", "denoiser"
    )
    assert "'others' is not one of examples" in refusal(
        "clay", "subjects", tmp_path, "--group", "others"
    )
