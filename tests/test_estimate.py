"""What a dry run says, beside the same run done: counts and operations exactly, memory nearly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from finetune.base import load_base, skeleton_of
from finetune.cli import app
from finetune.config import build_run_config
from finetune.errors import ConfigError
from finetune.estimate import ATTENTION_FLOPS, LiveMemory, estimate
from finetune.loss import Objective
from finetune.run import build_data, preflight, prepare_folder, run_training
from methods import load_method

CPU = torch.device("cpu")
CASES = [
    ("sd", "lora", {"rank": 4, "train_text_encoder": True}),
    ("sd", "dreambooth", {}),
    ("sd", "textual_inversion", {}),
    ("sdxl", "lora", {"use_dora": True}),
    ("sdxl", "textual_inversion", {"num_vectors": 1}),
    ("sd3", "lora", {"train_text_encoder": True}),
    ("flux", "dreambooth", {}),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}: {case[1]}")
def run(
    request: pytest.FixtureRequest, tiny_folder: Path, family_folders: Any, run_values: Any
) -> tuple[Any, Any]:
    family, kind, settings = request.param
    folder = tiny_folder if family == "sd" else family_folders(family)
    values = run_values(
        kind, base={"source": str(folder)}, method=settings, prior={"kind": "none"},
        training={"num_steps": 1}, data={"flip_probability": 0.0, "crop": "center"},
    )  # fmt: skip
    config = build_run_config(values, load_method, "test")
    return config, load_method(kind)(config.method)


def tensor_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as content:
            total += sum(content.get_tensor(key).nbytes for key in content.keys())  # noqa: SIM118
    return total


def test_counts_are_those_of_the_run(run: tuple[Any, Any]) -> None:
    """Trainable numbers and artifact exactly, operations exactly, memory within a tenth."""
    config, method = run
    skeleton = skeleton_of(config.base)
    assert {p.device.type for m in skeleton.modules.values() for p in m.parameters()} == {"meta"}
    told = estimate(skeleton, method, config, device=CPU)
    base = load_base(config.base)
    prepare_folder(config, resume=False, overwrite=False)
    run_training(base, method, config)
    groups = method.parameter_groups(base)
    assert told.trainable_parameters == {
        g.name: sum(p.numel() for p in g.parameters.values()) for g in groups
    }
    assert told.artifact_bytes == tensor_bytes(config.output / "artifact")
    state = 8 * sum(told.trainable_parameters.values())
    assert told.state_bytes == state
    method.detach(base)

    data = build_data(base, method, config)
    whole = (t for m in base.modules.values() for t in m.state_dict(keep_vars=True).values())
    own = sum(t.nbytes for t in {id(t): t for t in whole}.values())  # the T5 shares a table
    with LiveMemory() as prepared:
        prepared.ignore(p for m in base.modules.values() for p in m.parameters())
        method.prepare(base)
    batch = data.micro_batch(0, num_micro=1, micro=0)
    if base.text_is_frozen:
        base.encode_prompts(batch.prompts)
    known = [t for m in base.modules.values() for t in m.state_dict(keep_vars=True).values()]
    flops = FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS)
    with flops, LiveMemory() as memory:
        memory.ignore(known)
        method.compute_loss(base, batch, Objective(config.loss, 0)).loss.backward()
    assert told.step_flops == flops.get_total_flops()
    floor = 2 * 4 * sum(told.trainable_parameters.values())
    assert told.step_bytes == pytest.approx(max(memory.peak, floor), rel=0.1)
    assert told.weights_bytes == pytest.approx(own + prepared.live, rel=0.02)
    method.detach(base)


def changed(config: Any, **training: Any) -> Any:
    part = config.training.model_copy(update=training)
    return config.model_copy(update={"training": part})


def told_of(config: Any) -> Any:
    method = load_method(config.method.kind)(config.method)
    return estimate(skeleton_of(config.base), method, config, device=CPU)


def test_options_move_the_estimate_as_they_should(run_values: Any) -> None:
    config = build_run_config(run_values("lora", prior={"kind": "none"}), load_method, "test")
    plain = told_of(config)
    checkpointing = told_of(changed(config, gradient_checkpointing=True))
    assert checkpointing.step_bytes < 0.8 * plain.step_bytes
    assert 1.1 * plain.step_flops < checkpointing.step_flops < 1.5 * plain.step_flops
    parts = told_of(changed(config, gradient_accumulation_steps=2))
    assert parts.step_bytes < 0.7 * plain.step_bytes
    assert parts.step_flops == plain.step_flops
    average = told_of(changed(config, ema_decay=0.9))
    trained = sum(plain.trainable_parameters.values())
    assert average.state_bytes - plain.state_bytes == 4 * trained
    optimizer = config.optimizer.model_copy(update={"name": "adamw8bit"})
    assert told_of(config.model_copy(update={"optimizer": optimizer})).state_bytes == 2 * trained
    method = load_method("lora")(config.method)
    away = estimate(skeleton_of(config.base), method, config, device=torch.device("cuda"))
    others = sum(
        p.nbytes
        for n in ("vae", "text_encoder")
        for p in skeleton_of(config.base).modules[n].parameters()
    )
    assert plain.weights_bytes - away.weights_bytes == pytest.approx(others, rel=0.02)


def test_quantised_weights_count_with_their_bits(family_folders: Any, run_values: Any) -> None:
    """Of FLUX's transformer and T5: one byte a weight of a linear layer instead of two."""
    sizes, linear = {}, 0
    for quantization in (None, "int8"):
        settings = {"source": str(family_folders("flux")), "dtype": "bfloat16"}
        values = run_values(
            "lora", base={**settings, "quantization": quantization}, prior={"kind": "none"}
        )
        config = build_run_config(values, load_method, "test")
        skeleton = skeleton_of(config.base)
        sizes[quantization] = told_of(config).weights_bytes
        linear = sum(
            module.weight.numel()
            for name in ("transformer", "text_encoder_2")
            for module in skeleton.modules[name].modules()
            if isinstance(module, torch.nn.Linear)
        )
    assert sizes[None] - sizes["int8"] == linear


def without_weights(folder: Path, target: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            copy = target / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return target


def test_dry_run_reads_no_weights_and_writes_nothing(
    family_folders: Any, run_values: Any, tmp_path: Path
) -> None:
    folder = without_weights(family_folders("sdxl"), tmp_path / "configurations")
    values = run_values("lora", base={"source": str(folder)})
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(values))
    result = CliRunner().invoke(app, ["train", str(path), "--dry-run"])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert f"Trainable parameters: {told_of_values(values):,} (unet" in text
    for word in ("MiB of weights", "GiB (weights", "TFLOP per optimizer step"):
        assert word in text
    assert not Path(values["output"]).exists()
    result = CliRunner().invoke(app, ["train", str(path)])
    assert result.exit_code == 2
    assert "cannot be read" in result.output


def told_of_values(values: dict[str, Any]) -> int:
    config = build_run_config(values, load_method, "test")
    return sum(told_of(config).trainable_parameters.values())


@pytest.mark.parametrize(
    ("method", "size", "message"),
    [
        (
            {"rank": 17},
            16,
            r"method\.rank: 17 is more than unet\..* a layer of \d+ × \d+\. At most",
        ),
        (
            {"rank": 4, "rank_pattern": {"attn2.to_k": 40}},
            16,
            r"40 is more than unet\..*attn2\.to_k",
        ),
        ({"rank": 4, "target_modules": ["nothing"]}, 16, "target_modules"),
        ({"rank": 4}, 24, None),
        ({"rank": 4}, 9, r"data\.size"),
    ],
)
def test_mistakes_come_out_before_weights_are_read(
    run_values: Any, method: dict[str, Any], size: int, message: str | None
) -> None:
    values = run_values("lora", method=method, data={"size": size})
    if message is not None and "size" in message:
        with pytest.raises(ConfigError, match=message):
            build_run_config(values, load_method, "test")
        return
    config = build_run_config(values, load_method, "test")
    skeleton, made = skeleton_of(config.base), load_method("lora")(config.method)
    if message is None:
        preflight(skeleton, made, config)
        return
    with pytest.raises(ConfigError, match=message):
        preflight(skeleton, made, config)


def test_sizes_that_a_family_cannot_cut_are_refused(family_folders: Any, run_values: Any) -> None:
    values = run_values("lora", base={"source": str(family_folders("flux"))})
    config = build_run_config(values, load_method, "test")
    data = config.data.model_copy(update={"size": 18})
    with pytest.raises(ConfigError, match=r"data\.size 18 is not a multiple of 4.*; 16 is"):
        preflight(
            skeleton_of(config.base),
            load_method("lora")(config.method),
            config.model_copy(update={"data": data}),
        )
