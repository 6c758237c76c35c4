"""The wheel holds the three packages with their data files, and nothing else."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    from hatchling.build import build_wheel

    folder = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        name = build_wheel(str(folder))
    with zipfile.ZipFile(folder / name) as archive:
        yield archive


def read(wheel: zipfile.ZipFile, ending: str) -> str:
    (name,) = [name for name in wheel.namelist() if name.endswith(ending)]
    return wheel.read(name).decode()


def test_only_our_packages_are_at_the_top(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "finetune",
        "methods",
        "data_prep",
    }
    assert len(tops) == 4


def test_no_tests_examples_work_or_leftovers_are_shipped(wheel: zipfile.ZipFile) -> None:
    unwanted = {"tests", "examples", "work", "runs", "benchmarks", "__pycache__", ".git"}
    for name in wheel.namelist():
        assert not unwanted & set(name.split("/")), name
        assert not name.endswith((".pyc", ".log", ".pt", ".ckpt", ".bin")), name


def test_every_module_is_shipped(wheel: zipfile.ZipFile) -> None:
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in ("finetune", "methods", "data_prep")
        for path in (ROOT / package).rglob("*.py")
    }
    shipped = {name for name in wheel.namelist() if name.endswith(".py")}
    assert shipped == modules
    assert "finetune/cli/__init__.py" in shipped


def test_every_configuration_is_shipped_inside_the_package(wheel: zipfile.ZipFile) -> None:
    sources = {
        f"finetune/configs/{path.relative_to(ROOT / 'configs').as_posix()}": path.read_bytes()
        for path in (ROOT / "configs").rglob("*.yaml")
    }
    shipped = {
        name: wheel.read(name)
        for name in wheel.namelist()
        if name.startswith("finetune/configs/") and not name.endswith("/")
    }
    assert shipped == sources
    assert "finetune/configs/clay/compare.yaml" in shipped


@pytest.mark.parametrize(
    "name",
    [
        "finetune/py.typed",
        "methods/py.typed",
        "data_prep/py.typed",
        "finetune/report/page.html.jinja",
        "finetune/report/parts.html.jinja",
        "finetune/report/settings.html.jinja",
        "finetune/report/page.css",
        "finetune/report/page.js",
        "finetune/common_words.txt",
        "finetune/prompts/dreambooth.yaml",
    ],
)
def test_data_files_are_shipped(wheel: zipfile.ZipFile, name: str) -> None:
    assert wheel.read(name) == (ROOT / name).read_bytes()


def test_every_file_of_the_embedded_networks_is_shipped(wheel: zipfile.ZipFile) -> None:
    files = [path for path in (ROOT / "finetune" / "bases").rglob("*") if path.is_file()]
    networks = {
        p.relative_to(ROOT).as_posix() for p in files if p.suffix in (".json", ".safetensors")
    }
    assert len(networks) > 8
    assert networks <= set(wheel.namelist())


def test_console_script_is_declared(wheel: zipfile.ZipFile) -> None:
    lines = read(wheel, ".dist-info/entry_points.txt").split("\n")
    assert lines[:2] == ["[console_scripts]", "finetune = finetune.cli:main"]


def test_metadata_names_the_distribution_and_its_dependencies(wheel: zipfile.ZipFile) -> None:
    metadata = Parser().parsestr(read(wheel, ".dist-info/METADATA"))
    assert metadata["Name"] == "finetune-subject"
    assert metadata["License-Expression"] == "Apache-2.0"
    required = metadata.get_all("Requires-Dist") or []
    plain = {line.split(">")[0].split("<")[0] for line in required if "extra ==" not in line}
    assert {"torch", "diffusers", "peft", "pydantic", "typer"} <= plain
    assert not {"torchvision", "pytest", "mitsuba", "hatchling"} & plain
    assert {"clay", "dev"} <= set(metadata.get_all("Provides-Extra") or [])
