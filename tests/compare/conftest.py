"""A tiny comparison: a random pipeline, two subjects of three photos, two rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.compare.assemble import assembled
from finetune.compare.config import CompareConfig
from finetune.compare.measure import Scorers, load_judges
from finetune.compare.planned import plan
from finetune.compare.run import make_cells
from finetune.config import merge, validate
from finetune.results import Results, write_results
from methods import load_method

Values = Callable[..., dict[str, Any]]
Compare = Callable[..., Results]


def write_photos(folder: Path, *, shift: int, count: int = 3) -> None:
    """Ramps of colour, each another."""
    folder.mkdir(parents=True)
    ramp = np.linspace(0, 255, 20 * 20 * 3).reshape(20, 20, 3)
    for index in range(count):
        pixels = np.roll(ramp, 37 * index + shift).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")


@pytest.fixture(scope="session")
def suite_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects: a dog `rex`, and a thing `cup` of which there is one photo."""
    folder = tmp_path_factory.mktemp("suite")
    write_photos(folder / "rex", shift=0)
    write_photos(folder / "cup", shift=500, count=1)
    (folder / "subjects.yaml").write_text("rex: {class_noun: dog, kind: live}\ncup: mug\n")
    return folder


@pytest.fixture
def values(tiny_folder: Path, suite_folder: Path, tmp_path: Path) -> Values:
    """Values of a small comparison of one subject, with sections laid over."""

    def build(**sections: Any) -> dict[str, Any]:
        smallest = {
            "base": {"source": str(tiny_folder)},
            "data": {"photos": str(suite_folder / "rex"), "class_noun": "dog", "size": 16},
            "shared": {
                "training": {"num_steps": 2},
                "sampling": {"num_steps": 2, "scheduler": "ddim"},
            },
            "methods": {
                "low": {"method": {"kind": "lora", "rank": 2, "learning_rate": 1e-3}},
                "high": {"method": {"kind": "lora", "rank": 2, "learning_rate": 1e-2}},
            },
            "scorers": {"subject": ["clay-clip"], "prompt": "clay-clip"},
            "prompts": ["a {subject} on the beach", "a {subject} at night"],
            "unrelated_prompts": ["a red car"],
            "num_images": 2,
            "output": str(tmp_path / "out"),
        }
        return merge(smallest, sections)

    return build


@pytest.fixture(scope="session")
def clay_scorers() -> Scorers:
    from finetune.encoders import ScorersConfig

    return Scorers.load(ScorersConfig(subject=("clay-clip",), prompt="clay-clip"))


@pytest.fixture
def run_comparison(tiny_base: Any, clay_scorers: Scorers) -> Compare:
    """Makes and writes a whole comparison; `said` collects what it announces."""

    def run(values: dict[str, Any], *, said: list[str] | None = None, **options: Any) -> Results:
        config = validate(CompareConfig, values, "test")
        announce = (said if said is not None else []).append
        load = options.pop("load_method", load_method)
        planned = plan(config, tiny_base, load)
        judges = load_judges(config, clay_scorers)
        made = make_cells(planned, tiny_base, load, judges=judges, announce=announce, **options)
        results = assembled(made, tiny_base, clay_scorers, command="finetune compare")
        write_results(results, config.output)
        return results

    return run
