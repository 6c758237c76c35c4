"""What goes wrong on the way: steps that are not finite, plain pictures, no memory, failing trackers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.config import RunConfig, build_run_config
from finetune.errors import UserError
from finetune.generate import SamplingConfig
from finetune.guards import memory_advice, picture_memory_advice, remarks_on_pictures
from finetune.run import prepare_folder, run_training
from finetune.train import TrainResult
from methods import load_method
from methods.lora import LoRA


def config_of(values: dict[str, Any]) -> RunConfig:
    return build_run_config(values, load_method, "test")


def run(base: Any, values: dict[str, Any], method_class: type[LoRA] = LoRA) -> TrainResult:
    config = config_of(values)
    prepare_folder(config, resume=False, overwrite=False)
    method = method_class(config.method)
    try:
        return run_training(base, method, config)
    finally:
        method.detach(base)


class Spoilt(LoRA):  # type: ignore[misc]
    """Its loss is no number in chosen steps."""

    steps: tuple[int, ...] = ()
    seen: list[torch.Tensor]

    def compute_loss(self, base: Any, batch: Any, objective: Any) -> Any:
        output = super().compute_loss(base, batch, objective)
        self.seen.append(next(iter(base.trainable_parameters().values())).detach().clone())
        factor = float("nan") if batch.step in self.steps else 1.0
        metrics = {name: figure * factor for name, figure in output.metrics.items()}
        return type(output)(output.loss * factor, metrics)


def spoilt(*steps: int) -> type[Spoilt]:
    return type("SpoiltAt", (Spoilt,), {"steps": steps, "seen": []})


def test_a_step_that_is_not_finite_is_skipped_and_the_run_goes_on(
    tiny_base: Any, run_values: Any
) -> None:
    kind = spoilt(1, 2, 4)
    values = run_values("lora", training={"num_steps": 6, "max_non_finite_steps": 3})
    result = run(tiny_base, values, kind)
    assert (result.step, result.finished) == (6, True)
    metrics = Path(values["output"], "metrics.jsonl")
    moved = [not torch.equal(a, b) for a, b in zip(kind.seen, kind.seen[1:], strict=False)]
    assert moved == [True, False, False, True, False]
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["loss"] is None for row in rows] == [False, True, True, False, True, False]


def test_too_many_in_a_row_end_the_run_with_what_to_try(tiny_base: Any, run_values: Any) -> None:
    values = run_values(
        "lora",
        training={"num_steps": 9, "max_non_finite_steps": 3, "precision": "bfloat16"},
        method={"learning_rate": 0.25},
    )
    with pytest.raises(UserError, match=r"in 3 steps in a row \(up to step 5\)") as caught:
        run(tiny_base, values, spoilt(2, 3, 4))
    assert "method.learning_rate (0.25)" in str(caught.value)
    assert "training.precision=float32" in str(caught.value)
    assert "base.dtype" not in str(caught.value)  # stands in float32 already


def test_a_rate_that_is_far_too_high_ends_so_too(tiny_base: Any, run_values: Any) -> None:
    values = run_values("lora", training={"num_steps": 40}, method={"learning_rate": 1e30})
    with pytest.raises(UserError, match="lower method.learning_rate"):
        run(tiny_base, values)


def test_plain_pictures_are_told_from_others() -> None:
    def plain(*color: int) -> Image.Image:
        return Image.new("RGB", (8, 8), color)

    noise = Image.fromarray(np.random.RandomState(0).randint(0, 255, (8, 8, 3), np.uint8))
    dark = Image.fromarray(np.random.RandomState(0).randint(0, 6, (8, 8, 3), np.uint8))
    assert remarks_on_pictures([noise, dark]) == []
    (remark,) = remarks_on_pictures([noise, plain(0, 0, 0), plain(1, 2, 0)])
    assert remark.startswith("2 of 3 pictures are black.")
    (remark,) = remarks_on_pictures([plain(0, 0, 0), plain(90, 120, 20)])
    assert remark.startswith("2 of 2 pictures are of a single colour.")
    assert "method.learning_rate" in remark


def test_plain_samples_are_said_once_and_stop_nothing(
    tiny_base: Any, run_values: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with torch.no_grad():
        tiny_base.components.vae.decoder.conv_out.weight.zero_()
    values = run_values("lora", samples={"every": 1, "prompts": ["a {subject}"]})
    assert run(tiny_base, values).finished
    errors = capfd.readouterr().err
    assert errors.count("pictures are of a single colour") == 1
    assert "At step 1: 1 of 1" in errors
    assert len(list(Path(values["output"], "samples").iterdir())) == 3


def test_samples_that_cannot_be_written_stop_nothing(
    tiny_base: Any, run_values: Any, capfd: pytest.CaptureFixture[str], files_up_to: Any
) -> None:
    values = run_values("textual_inversion", samples={"every": 1, "prompts": ["a {subject}"] * 8})
    config = config_of(values)
    prepare_folder(config, resume=False, overwrite=False)
    method = load_method("textual_inversion")(config.method)
    with files_up_to(1900):  # enough for a checkpoint's files, too little for a grid
        result = run_training(tiny_base, method, config)
    method.detach(tiny_base)
    assert result.finished
    assert capfd.readouterr().err.count("could not be written") == 1


@pytest.mark.parametrize(
    ("kind", "sections", "expected"),
    [
        (
            "dreambooth",
            {"training": {"batch_size": 4}, "samples": {"every": 9}},
            [
                "training.gradient_checkpointing=true",
                "training.gradient_accumulation_steps=4",
                "prior.batch_size=1",
                "sampling.batch_size=1",
                "base.dtype=bfloat16",
                "training.precision=bfloat16",
                "prior.kind=base_prediction",
                "sampling.cpu_offload=true",
                "optimizer.name=adafactor",
                "method.kind=lora",
                "a data.size below 16",
            ],
        ),
        (
            "textual_inversion",
            {
                "training": {
                    "batch_size": 1,
                    "precision": "bfloat16",
                    "offload": False,
                    "ema_decay": 0.9,
                },
                "base": {"dtype": "bfloat16"},
            },
            [
                "training.gradient_checkpointing=true",
                "training.offload=true",
                "training.ema_decay=null",
                "a data.size below 16",
            ],
        ),
    ],
)
def test_without_memory_the_settings_that_need_less_are_named(
    run_values: Any, kind: str, sections: dict[str, Any], expected: list[str]
) -> None:
    config = config_of(run_values(kind, **sections))
    method = load_method(kind)(config.method)
    with pytest.raises(UserError) as caught, memory_advice(config, method):
        torch.empty(2**46)  # the allocator's own error
    named = str(caught.value).partition("in this order: ")[2].removesuffix(".").split(", ")
    assert [remedy.partition(" (")[0] for remedy in named] == expected
    assert "machine" in str(caught.value)
    with pytest.raises(UserError, match="accelerator"), memory_advice(config, method):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(RuntimeError, match="shapes"), memory_advice(config, method):
        raise RuntimeError("shapes do not match")


def test_pictures_of_a_comparison_have_settings_of_their_own_that_need_less() -> None:
    sampling = SamplingConfig(batch_size=8, size=64)
    with pytest.raises(UserError) as caught, picture_memory_advice(sampling, "float32"):
        torch.empty(2**46)
    named = str(caught.value).partition("in this order: ")[2].removesuffix(".").split(", ")
    assert named == [
        "shared.sampling.batch_size=1",
        "shared.sampling.cpu_offload=true (with an accelerator)",
        "base.dtype=bfloat16",
        "a data.size below 64",
    ]
    small = sampling.model_copy(update={"batch_size": 1, "cpu_offload": True})
    only = pytest.raises(UserError, match=r"in this order: a data\.size below 64\.")
    with only, picture_memory_advice(small, "float16"):
        raise MemoryError
