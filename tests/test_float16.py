"""Training in float16: small gradients survive by a scaled loss, whose scale belongs to the run's state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.base import BaseConfig, load_base
from finetune.checkpoint import latest_checkpoint, load_checkpoint
from finetune.config import build_run_config
from finetune.errors import ConfigError
from finetune.run import prepare_folder, run_training
from methods import load_method
from methods.lora import LoRA

HALF = {"base": {"dtype": "float16"}, "training": {"num_steps": 1}, "prior": {"kind": "none"}}


class Faint(LoRA):  # type: ignore[misc]
    """Its loss is a hundred-thousandth of LoRA's, so that its gradients are below float16's range."""

    def compute_loss(self, base: Any, batch: Any, objective: Any) -> Any:
        output = super().compute_loss(base, batch, objective)
        return type(output)(output.loss * 1e-5, output.metrics)


def learnt(base: Any, values: dict[str, Any], kind: Any = LoRA, *, resume: bool = False) -> Any:
    config = build_run_config(values, load_method, "test")
    method = kind(config.method)
    prepare_folder(config, resume=resume, overwrite=False)
    try:
        run_training(base, method, config, resume=resume)
        return {name: tensor.clone() for name, tensor in method.state_dict(base).items()}
    finally:
        method.detach(base)


def test_a_faint_loss_teaches_what_a_strong_one_does(
    tiny_folder: Path, run_values: Any, tmp_path: Path
) -> None:
    """AdamW's first step is the sign of the gradient times the rate, however small the gradient."""
    base = load_base(BaseConfig(source=str(tiny_folder), dtype="float16"))
    tiny_eps = {"eps": 1e-30, "max_grad_norm": 1e9}
    strong, faint = (
        learnt(base, run_values("lora", **HALF, optimizer=tiny_eps, output=str(tmp_path / name)), k)
        for name, k in (("strong", LoRA), ("faint", Faint))
    )
    moved = [name for name in strong if "lora_B" in name]
    ours = torch.cat([faint[name].flatten() for name in moved])
    expected = torch.cat([strong[name].flatten() for name in moved])
    assert float((expected != 0).float().mean()) > 0.9
    assert float(((ours - expected).abs() < 1e-5).float().mean()) > 0.97


def test_the_scale_is_resumed(tiny_folder: Path, run_values: Any, tmp_path: Path) -> None:
    base = load_base(BaseConfig(source=str(tiny_folder), dtype="float16"))

    def values(name: str, num_steps: int) -> dict[str, Any]:
        training = {"num_steps": num_steps, "checkpoint_every": 2, "max_non_finite_steps": 50}
        output = str(tmp_path / name)
        return run_values("lora", **{**HALF, "training": training}, output=output)  # type: ignore[no-any-return]

    class Loud(LoRA):  # type: ignore[misc]
        """Its first scaled gradients overflow, so the scale has come down when the run is cut."""

        def compute_loss(self, base: Any, batch: Any, objective: Any) -> Any:
            output = super().compute_loss(base, batch, objective)
            return type(output)(output.loss * 1e3, output.metrics)

    whole = learnt(base, values("whole", 6), Loud)
    learnt(base, values("cut", 4), Loud)
    folder = tmp_path / "cut"
    checkpoint, _ = latest_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    _, state = load_checkpoint(checkpoint)
    assert 0 < state["loss_scale"]["scale"] < 65536
    (folder / "artifact" / "artifact.json").unlink()
    config = (folder / "config.yaml").read_text().replace("num_steps: 4", "num_steps: 6", 1)
    (folder / "config.yaml").write_text(config)
    resumed = learnt(base, values("cut", 6), Loud, resume=True)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    assert [row["grad_norm"] for row in rows[0]] == [row["grad_norm"] for row in rows[1]]
    assert any(row["grad_norm"] is None for row in rows[0])


def test_two_half_precisions_are_refused(run_values: Any) -> None:
    values = run_values("lora", base={"dtype": "float16"}, training={"precision": "bfloat16"})
    with pytest.raises(ConfigError, match="two half precisions; take one of them"):
        build_run_config(values, load_method, "test")
