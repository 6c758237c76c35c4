"""Two processes (gloo, CPU) learn what one learns from the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

WORKER = """
import sys
from accelerate import Accelerator
assert Accelerator().num_processes == int(sys.argv[1])
from pathlib import Path
from finetune.base import load_base
from finetune.config import build_run_config, read_yaml
from finetune.run import prepare_training
from finetune.train import train
from methods import load_method
config = build_run_config(read_yaml(Path(sys.argv[2])), load_method, "test")
base, method = load_base(config.base), load_method(config.method.kind)(config.method)
data = prepare_training(base, method, config)
folder = Path(sys.argv[3])
folder.mkdir(exist_ok=True)
train(base, method, data, config, folder)
"""


@pytest.mark.slow
def test_two_processes_equal_one(run_values: Any, tmp_path: Path) -> None:
    values = run_values(
        "lora",
        training={"num_steps": 3, "batch_size": 2, "checkpoint_every": 3},
        optimizer={"eps": 1e-3},  # keeps AdamW from blowing up rounding of tiny gradients
    )
    config, worker = tmp_path / "run.yaml", tmp_path / "worker.py"
    config.write_text(yaml.safe_dump(values))
    worker.write_text(WORKER)
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    learnt = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        done = subprocess.run(
            [
                *launcher,
                f"--nproc_per_node={count}",
                str(worker),
                str(count),
                str(config),
                str(folder),
            ],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        learnt.append(load_file(folder / "checkpoints" / "step-000003" / "tensors.safetensors"))
    for key, value in learnt[0].items():
        torch.testing.assert_close(learnt[1][key], value, atol=1e-6, rtol=1e-4, msg=key)
