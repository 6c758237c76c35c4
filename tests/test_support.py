"""Which method trains which family: the README says what the code says."""

from __future__ import annotations

from pathlib import Path

from finetune.families import FAMILIES
from finetune.method import Requirements, why_unsupported
from finetune.support import as_markdown, support_table
from methods import METHODS, load_method

ROOT = Path(__file__).resolve().parent.parent


def table() -> list[tuple[str, ...]]:
    classes = {name: load_method(name) for name in METHODS}
    return support_table({name: kind(kind.config_class()) for name, kind in classes.items()})


def test_readme_has_the_table_that_the_code_makes() -> None:
    assert f"\n\n{as_markdown(table())}\n\n" in (ROOT / "README.md").read_text("utf-8")


def test_table_says_what_is_trained_and_why_not() -> None:
    heading, *rows = table()
    assert heading == ("family", "bases", *METHODS, "trainable text encoders")
    assert [row[0] for row in rows] == [family.name for family in FAMILIES]
    cells = {row[0]: dict(zip(heading, row, strict=True)) for row in rows}
    assert all(cells[family]["lora"] == "yes" for family in cells)
    assert all(cells[family]["dreambooth"] == "yes" for family in cells)
    inversion = {family: cells[family]["textual_inversion"] for family in cells}
    assert (inversion["sd"], inversion["sdxl"]) == ("yes", "yes")
    assert inversion["flux"].startswith("no: its prompts are read by a T5")
    assert inversion["sd3"].startswith("no: its T5")


def test_a_method_may_name_its_families() -> None:
    requirements = Requirements(families=("sd",), artifact_format="lora")
    reasons = {family.name: why_unsupported(requirements, family) for family in FAMILIES}
    assert reasons.pop("sd") is None
    assert set(reasons.values()) == {"it trains sd bases only"}


def test_every_supported_combination_has_a_configuration() -> None:
    families = {"sd15": "sd", "sd21": "sd", "sdxl": "sdxl", "sd35": "sd3", "flux": "flux"}
    heading, *rows = table()
    for folder, name in families.items():
        (row,) = [row for row in rows if row[0] == name]
        supported = {
            m for m, cell in zip(heading, row, strict=True) if m in METHODS and cell == "yes"
        }
        shipped = {path.stem for path in (ROOT / "configs" / folder).glob("*.yaml")}
        assert shipped == {*supported, "compare"}
