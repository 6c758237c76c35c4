"""SECURITY.md, held to its word: files of strangers run nothing and write nowhere else."""

from __future__ import annotations

import ast
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from finetune.artifact import names_module, read_artifact, save_artifact
from finetune.base import BaseConfig, load_base, recognise_base
from finetune.compare.config import CompareConfig
from finetune.config import TrackingConfig, build_run_config, read_yaml, validate
from finetune.errors import ArtifactError, ConfigError
from finetune.export.imported import attached, fit, open_source
from finetune.families.parts import MAX_NUMBER, _numbers
from finetune.run import prepare_folder, run_training
from methods import load_method

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    path for name in ("data_prep", "finetune", "methods") for path in (ROOT / name).rglob("*.py")
]


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def test_nothing_in_our_code_runs_what_a_file_says() -> None:
    calls = [
        (path.relative_to(ROOT).as_posix(), node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
    ]
    assert len(calls) > 2000
    names = {called(node) for _, node in calls}
    forbidden = {
        "eval",
        "exec",
        "compile",
        "os.system",
        "torch.save",
        "pickle.load",
        "pickle.loads",
    }
    assert not names & (
        forbidden | {"pickle.dump", "pickle.dumps", "yaml.unsafe_load", "__import__"}
    )
    loads = [(path, node) for path, node in calls if called(node) == "torch.load"]
    assert [path for path, _ in loads] == ["finetune/export/reading.py"]
    keywords = {k.arg: ast.unparse(k.value) for k in loads[0][1].keywords}
    assert keywords["weights_only"] == "True"
    yaml_loads = [ast.unparse(node) for _, node in calls if called(node) == "yaml.load"]
    assert yaml_loads == ["yaml.load(text, _Loader)"]  # a SafeLoader
    given = {(k.arg, ast.unparse(k.value)) for _, node in calls for k in node.keywords}
    assert not {("trust_remote_code", "True"), ("allow_pickle", "True"), ("shell", "True")} & given


@pytest.fixture
def copied_base(tiny_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    return folder


def change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_code_beside_a_models_weights_is_not_run(
    copied_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = copied_base / "trace"
    for folder in (copied_base, *(path for path in copied_base.iterdir() if path.is_dir())):
        for name in ("evil", "pipeline", "modeling_evil", "unet"):
            (folder / f"{name}.py").write_text(f"open({str(trace)!r}, 'w')\nclass Evil: pass\n")
    kinds = ("AutoModel", "AutoConfig", "AutoTokenizer", "CLIPTextModel")
    evil = {kind: "evil.Evil" for kind in kinds}
    for part in ("text_encoder", "unet", "vae"):
        change(copied_base / part / "config.json", auto_map=evil, custom_pipeline="evil")
    change(copied_base / "tokenizer" / "tokenizer_config.json", auto_map=evil)
    change(copied_base / "model_index.json", custom_pipeline="pipeline")
    monkeypatch.chdir(copied_base)
    monkeypatch.syspath_prepend(copied_base)
    base = load_base(BaseConfig(source=str(copied_base)))
    base.pipeline()
    assert not trace.exists()
    change(copied_base / "model_index.json", unet=["evil", "Evil"])
    with pytest.raises(ArtifactError, match="brings code of its own for unet"):
        load_base(BaseConfig(source=str(copied_base)))
    assert not trace.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["somebody/kernel", "flash_attention_2", {"": "a/b"}])
def test_kernels_from_the_hub_are_refused(copied_base: Path, key: str, value: Any) -> None:
    change(copied_base / "text_encoder" / "config.json", **{key: value})
    with pytest.raises(ArtifactError, match=r"text_encoder/config\.json asks for the attention"):
        load_base(BaseConfig(source=str(copied_base)))


def test_pickled_weights_of_a_base_are_not_read(copied_base: Path) -> None:
    for path in copied_base.glob("unet/*.safetensors"):
        path.unlink()
    torch.save({"x": torch.ones(1)}, copied_base / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_base(BaseConfig(source=str(copied_base)))


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("unet", {"block_out_channels": [10**9, 10**9]}),
        ("unet", {"block_out_channels": "abc"}),
        ("unet", {"sample_size": 10**9}),
        ("unet", {"sample_size": None}),
        ("unet", {"down_block_types": ["Evil"]}),
        ("text_encoder", {"vocab_size": 10**12}),
        ("text_encoder", {"num_attention_heads": 0}),
        ("vae", {"latent_channels": -1}),
        ("scheduler", {"num_train_timesteps": 10**13}),
    ],
)
def test_impossible_sizes_in_a_base_are_refused(
    copied_base: Path, part: str, settings: dict[str, Any]
) -> None:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    change(copied_base / part / name, **settings)
    largest = max(map(abs, _numbers(settings)), default=0)
    message = "which no network has" if largest > MAX_NUMBER else "The base .* cannot be read"
    with pytest.raises(ArtifactError, match=message):
        load_base(BaseConfig(source=str(copied_base)))


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "[1]", "null", '{"_class_name": ["evil", "P"]}']
)
def test_a_strange_model_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(ArtifactError):
        recognise_base(BaseConfig(source=str(tmp_path)))


def test_a_single_files_configuration_names_no_other_library(
    copied_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, weights = tmp_path / "trace", tmp_path / "model.safetensors"
    (tmp_path / "evil_library.py").write_text(f"open({str(trace)!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    save_file({"cond_stage_model.x": torch.ones(1)}, weights)
    change(copied_base / "model_index.json", feature_extractor=["evil_library", "Evil"])
    with pytest.raises(ArtifactError, match="code of its own for feature_extractor"):
        load_base(BaseConfig(source=str(weights), single_file_config=copied_base))
    assert not trace.exists()


NOTE = {
    "format": "lora",
    "method": {"kind": "lora"},
    "class_noun": "dog",
    "subject": "sks dog",
    "base": {"source": "clay"},
    "base_fingerprint": "0" * 32,
    "components": ["unet"],
    "size": 64,
}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"size": 10**9}, "size"),
        ({"size": -8}, "size"),
        ({"format": "pickle"}, "format"),
        ({"components": "unet"}, "components"),
        ({"components": [["unet"]]}, "components"),
        ({"method": "lora"}, "method"),
        ({"subject": 3}, "subject"),
        ({"run": "evil"}, "run"),
    ],
)
def test_an_artifacts_note_is_checked(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    (tmp_path / "artifact.json").write_text(json.dumps(NOTE))
    assert read_artifact(tmp_path).size == 64
    (tmp_path / "artifact.json").write_text(json.dumps({**NOTE, **changes}))
    with pytest.raises(ArtifactError, match=rf"artifact\.json cannot be read: .*{named}"):
        read_artifact(tmp_path)


@pytest.mark.parametrize("name", ["../../unet", "/etc", "text_encoder_9"])
def test_an_artifacts_components_are_the_bases(tiny_base: Any, tmp_path: Path, name: str) -> None:
    note = {**NOTE, "format": "pipeline", "method": {"kind": "dreambooth"}, "components": [name]}
    note["base_fingerprint"] = tiny_base.fingerprint
    (tmp_path / "artifact.json").write_text(json.dumps(note))
    source = open_source(tmp_path)
    with (
        pytest.raises(ArtifactError, match="cannot be read"),
        attached(source, tiny_base, load_method),
    ):
        pass
    assert tiny_base.current_fingerprint() == tiny_base.fingerprint


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ({"kind": "lora", "rank": 10**9}, "rank"),
        ({"kind": "lora", "rank_pattern": {"to_q": 10**9}}, "rank_pattern"),
        ({"kind": "textual_inversion", "num_vectors": 10**9}, "num_vectors"),
        ({"kind": "os:system"}, "os:system"),
    ],
)
def test_an_artifacts_method_is_bounded(
    tiny_base: Any, tmp_path: Path, method: dict[str, Any], named: str
) -> None:
    note = {**NOTE, "method": method, "base_fingerprint": tiny_base.fingerprint}
    (tmp_path / "artifact.json").write_text(json.dumps(note))
    with (
        pytest.raises(ConfigError, match=named),
        attached(open_source(tmp_path), tiny_base, load_method),
    ):
        pass


def test_an_embedding_of_too_many_rows_is_refused(tiny_base: Any, tmp_path: Path) -> None:
    save_file({"emb_params": torch.zeros(65, 16)}, tmp_path / "word.safetensors")
    source = open_source(tmp_path / "word.safetensors")
    with pytest.raises(ConfigError, match="num_vectors"), attached(source, tiny_base, load_method):
        pass


def test_the_names_in_a_lora_lead_nowhere(tiny_base: Any, tmp_path: Path) -> None:
    path = tmp_path / "files" / "lora.safetensors"
    path.parent.mkdir()
    for name in ("lora_unet_../../x", "lora_unet_/etc/passwd", "lora_unet___class__"):
        halves = {"lora_down.weight": torch.ones(1, 4), "lora_up.weight": torch.ones(4, 1)}
        save_file({f"{name}.{half}": tensor for half, tensor in halves.items()}, path)
        with pytest.raises(ArtifactError), attached(open_source(path), tiny_base, load_method):
            pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["files"]
    assert [entry.name for entry in path.parent.iterdir()] == ["lora.safetensors"]


@pytest.mark.parametrize(
    "header",
    [
        {"ss_tag_frequency": "[" * 100_000},
        {"lora_adapter_metadata": "[" * 100_000},
        {
            "lora_adapter_metadata": json.dumps(
                {"unet.lora_alpha": 4, "unet.alpha_pattern": {"(.*)*x": 1.0}}
            )
        },
    ],
    ids=["tags", "settings", "pattern"],
)
def test_a_loras_header_cannot_crash_or_hang(
    tiny_base: Any, tmp_path: Path, header: dict[str, str]
) -> None:
    module = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    halves = {"lora_A.weight": torch.ones(1, 16), "lora_B.weight": torch.ones(16, 1)}
    tensors = {f"{module}.{half}": tensor for half, tensor in halves.items()}
    save_file(tensors, tmp_path / "lora.safetensors", header)
    source = open_source(tmp_path / "lora.safetensors")
    if "ss_tag_frequency" in header:
        assert source.subject is None
        with attached(source, tiny_base, load_method) as note:
            assert note.format == "lora"
        return
    with pytest.raises(ArtifactError, match="metadata cannot be read"):
        fit(source, tiny_base)


def test_patterns_that_could_take_hours_are_refused() -> None:
    module = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
    assert names_module(r".*attn[12]\.to_out\.0", module)
    assert names_module("to_out.0", module)
    assert not names_module("to_q", module)
    start = time.process_time()
    for hostile in (
        "(.*)*x",
        "(.+)+x",
        "(a|a)*x",
        ".*.*.*.*x",
        "[a-z.]+" * 3,
        "x" * 201,
        "(x{9}){9}",
    ):
        with pytest.raises(Exception, match="repeats"):
            names_module(hostile, module)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("name", ["..", ".", "a/b", "..\\x", "", "c:x", "a\0b"])
def test_names_in_a_configuration_stay_in_their_folder(name: str, run_values: Any) -> None:
    with pytest.raises(ConfigError, match="project"):
        validate(TrackingConfig, {"project": name}, "test")
    from finetune.compare.plan import method_runs

    data = {"photos": "photos", "class_noun": "dog"}
    values = {
        "data": data,
        "methods": {name: {"method": {"kind": "lora"}}},
        "prompts": ["{subject}"],
    }
    with pytest.raises(ConfigError, match="choose another name"):
        method_runs(validate(CompareConfig, values, "test"), load_method)


def test_a_huge_yaml_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    with path.open("wb") as file:
        file.truncate(10**12)  # a terabyte of zeros that takes no room
    with pytest.raises(ConfigError, match="larger than a megabyte"):
        read_yaml(path)


def test_yaml_tags_make_no_objects(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "run.yaml"
    for tag in ("apply:os.system", "new:os.system", "object/apply:os.mkdir"):
        path.write_text(f"data: !!python/object/{tag} ['touch {trace}']\n")
        with pytest.raises(ConfigError, match="not valid YAML"):
            read_yaml(path)
    assert not trace.exists()


def test_nothing_of_a_photos_metadata_or_name_is_in_what_is_written(
    tiny_base: Any, run_values: Any, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    exif = Image.Exif()
    exif[0x010F] = "SECRETCAMERA"
    exif[0x9286] = "SECRETCOMMENT"
    exif.get_ifd(0x8825).update({1: "N", 2: (51.0, 30.0, 26.0), 29: "SECRETPLACE"})
    for index in range(2):
        picture = Image.radial_gradient("L").resize((24, 24 + index)).convert("RGB")
        picture.save(photos / f"SECRETNAME{index}.jpg", exif=exif, comment=b"SECRETTEXT")
    config = build_run_config(
        run_values(
            "lora", data={"photos": str(photos)}, samples={"every": 2},
            training={"num_steps": 2, "checkpoint_every": 1},
        ),
        load_method,
        "test",
    )  # fmt: skip
    prepare_folder(config, resume=False, overwrite=False)
    method = load_method("lora")(config.method)
    run_training(tiny_base, method, config)
    save_artifact(tiny_base, method, config, tmp_path / "again")
    method.detach(tiny_base)
    written = [
        path
        for folder in (config.output, tmp_path / "again", tmp_path / "cache")
        for path in folder.rglob("*")
        if path.is_file()
    ]
    assert {".png", ".safetensors", ".json", ".jsonl", ".yaml"} <= {path.suffix for path in written}
    for path in written:
        assert b"SECRET" not in path.read_bytes(), path
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert not picture.info
                assert not picture.getexif()


def test_shared_files_name_a_local_base_without_its_folders(tmp_path: Path) -> None:
    from finetune.export.headers import public_name

    for source, expected in (
        ("/home/anna/models/toy", "toy"),
        ("~/models/toy.safetensors", "toy.safetensors"),
        ("../models/toy", "toy"),
        ("models/anna/toy", "toy"),
        ("owner/name", "owner/name"),
        ("clay", "clay"),
    ):
        (tmp_path / "artifact.json").write_text(json.dumps({**NOTE, "base": {"source": source}}))
        assert public_name(read_artifact(tmp_path)) == expected
