"""Who may import whom: the rules that keep methods, families and the loop apart."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("data_prep", "finetune", "methods")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

METHODS_MAY_IMPORT = {
    *(
        f"finetune.{name}"
        for name in (
            "method",
            "base",
            "loss",
            "diffusion",
            "artifact",
            "errors",
            "seeding",
            "optim",
        )
    ),
    "data_prep.batch",
    "data_prep.config",
}
FENCES: dict[str, tuple[str, ...]] = {
    "diffusers": (
        "finetune/families/",
        "finetune/pretrain/",
        "finetune/base.py",
        "finetune/artifact.py",
        "finetune/generate.py",
        "finetune/encoders/",
        "finetune/dual_encoder.py",
        "finetune/judge.py",
    ),
    "peft": ("methods/", "finetune/artifact.py"),
    "accelerate": ("finetune/train.py", "finetune/tracking.py"),
    "datasets": ("data_prep/sources.py",),
    "matplotlib": ("finetune/report/",),
    "jinja2": ("finetune/report/",),
    "filelock": ("finetune/files.py",),
    "imagehash": ("data_prep/duplicates.py",),
    "pillow_heif": ("data_prep/kinds.py",),
    "mitsuba": ("data_prep/clay/",),
    "drjit": ("data_prep/clay/",),
    "skimage": ("data_prep/clay/",),
}
FENCES["transformers"] = (*FENCES["diffusers"], "finetune/captioner.py", "finetune/optim.py")
FENCES["bitsandbytes"] = FENCES["prodigyopt"] = ("finetune/optim.py",)


def imported_modules(source: str) -> set[str]:
    """Every module that `source` imports, wherever it stands; `from a import b` counts as a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            found.add(str(node.module))
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


IMPORTS = {name_of(path): imported_modules(path.read_text("utf-8")) for path in FILES}


def imports_from(package: str, of: set[str]) -> set[str]:
    return {module for module in of if module == package or module.startswith(f"{package}.")}


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import a.b as c\ndef f():\n  from d import e\nif x:\n  import g, h"
    assert imported_modules(source) == {"a.b", "d", "d.e", "g", "h"}
    assert imports_from("a", {"a.b", "ab", "a"}) == {"a.b", "a"}
    assert {name.split("/")[0] for name in IMPORTS} == set(PACKAGES)
    assert len(IMPORTS) > 40
    # The rules below would catch these, which do stand in the sources.
    assert imports_from("peft", IMPORTS["methods/lora.py"])
    assert imports_from("datasets", IMPORTS["data_prep/sources.py"])
    assert imports_from("methods", IMPORTS["finetune/cli/training.py"])


def test_data_prep_imports_nothing_else_of_ours() -> None:
    offenders = {
        name: found
        for name, modules in IMPORTS.items()
        if name.startswith("data_prep/")
        and (found := imports_from("finetune", modules) | imports_from("methods", modules))
    }
    assert offenders == {}


def test_only_the_command_line_imports_methods() -> None:
    importers = {
        name
        for name, modules in IMPORTS.items()
        if not name.startswith("methods/") and imports_from("methods", modules)
    }
    assert {name for name in importers if not name.startswith("finetune/cli/")} == set()


def test_nothing_imports_the_command_line() -> None:
    importers = {n for n, modules in IMPORTS.items() if imports_from("finetune.cli", modules)}
    assert {name for name in importers if not name.startswith("finetune/cli/")} == set()


def test_methods_import_only_the_core_they_build_on() -> None:
    offenders = {}
    for name, modules in IMPORTS.items():
        if not name.startswith("methods/"):
            continue
        ours = imports_from("finetune", modules) | imports_from("data_prep", modules)
        # `from finetune.method import Method` counts as finetune.method and finetune.method.Method.
        wrong = {m for m in ours if ".".join(m.split(".")[:2]) not in METHODS_MAY_IMPORT}
        if wrong:
            offenders[name] = wrong
    assert offenders == {}


@pytest.mark.parametrize("library", sorted(FENCES))
def test_library_stays_behind_its_fence(library: str) -> None:
    importers = {name for name, modules in IMPORTS.items() if imports_from(library, modules)}
    assert importers, f"nothing imports {library}: the fence guards nothing"
    assert {name for name in importers if not name.startswith(FENCES[library])} == set()


def test_clay_world_needs_the_standard_library_only() -> None:
    tops = {module.split(".")[0] for module in IMPORTS["data_prep/clay/world.py"]}
    assert tops <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("library", ["torchvision", "lpips", "timm", "open_clip", "torchmetrics"])
def test_libraries_that_need_torchvision_are_not_used(library: str) -> None:
    assert {n for n, modules in IMPORTS.items() if imports_from(library, modules)} == set()


def modules_after(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nprint('MODULES', *sorted(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return set(result.stdout.rpartition("MODULES ")[2].split())


HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "datasets", "numpy", "PIL"}


def test_help_imports_no_torch() -> None:
    loaded = modules_after(
        "from typer.testing import CliRunner\n"
        "from finetune.cli import app\n"
        "result = CliRunner().invoke(app, ['--help'])\n"
        "assert result.exit_code == 0 and 'compare' in result.output, result.output"
    )
    assert "finetune.cli" in loaded
    assert loaded & HEAVY == set()


def test_method_table_imports_no_method() -> None:
    loaded = modules_after("import methods\nassert 'lora' in methods.available_methods()")
    assert loaded & {"torch", "peft", "methods.lora", "methods.dreambooth"} == set()


def test_loading_a_method_imports_no_other() -> None:
    loaded = modules_after("import methods\nmethods.load_method('dreambooth')")
    assert "methods.dreambooth" in loaded
    assert loaded & {"methods.lora", "methods.textual_inversion"} == set()
