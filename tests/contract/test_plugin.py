"""A method of another package, found through its entry point, works like our own."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

import methods
from finetune.config import build_run_config
from finetune.errors import ConfigError
from finetune.run import prepare_folder, run_training

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cross_attention_method"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `pip install examples/cross_attention_method` would bring about."""
    import tomllib

    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]
    declared = project["entry-points"]["finetune.methods"]
    points = [EntryPoint(name, value, "finetune.methods") for name, value in declared.items()]
    points.append(EntryPoint("broken", "no_such_module:Method", "finetune.methods"))
    monkeypatch.setattr(methods, "entry_points", lambda group: points)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.delitem(sys.modules, "cross_attention_method", raising=False)


@pytest.mark.usefixtures("installed")
def test_example_trains_exactly_its_weights_and_leaves_no_trace(
    tiny_base: Any, run_values: Any
) -> None:
    config = build_run_config(run_values("cross_attention"), methods.load_method, "test")
    method = methods.load_method("cross_attention")(config.method)
    before = {k: v.clone() for k, v in tiny_base.denoiser.state_dict().items()}
    prepare_folder(config, resume=False, overwrite=False)
    run_training(tiny_base, method, config)
    changed = {
        name
        for name, value in tiny_base.denoiser.state_dict().items()
        if not torch.equal(value, before[name])
    }
    expected = {n for n in before if ".attn2.to_k." in n or ".attn2.to_v." in n}
    assert changed == expected
    method.detach(tiny_base)
    assert tiny_base.current_fingerprint() == tiny_base.fingerprint


@pytest.mark.usefixtures("installed")
def test_a_broken_plugin_breaks_only_itself() -> None:
    assert "broken" in methods.available_methods()
    methods.load_method("lora")
    with pytest.raises(ConfigError, match="broken.*cannot be imported"):
        methods.load_method("broken")


def test_example_is_about_sixty_lines() -> None:
    assert len((EXAMPLE / "cross_attention_method.py").read_text("utf-8").splitlines()) <= 70
