"""Real-size models from their published configurations with random weights: time, memory, utilisation.

Nothing is downloaded: shapes are those of the published models, numbers and tokenizers are stand-ins;
networks that a family can do without (SD3's T5) are left out. Every case runs in a process of its own, so
that its peak memory is its own; the model floating-point utilisation (MFU) is operations by
`finetune.estimate` over time, against the machine's own matrix products in that precision.

    python benchmarks/real_size.py --base sd15 --methods lora textual_inversion --size 512
    python benchmarks/real_size.py --base sdxl --size 1024 --batch 1 4 --options plain compile
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from data_prep.batch import Batch, Moments
from data_prep.clay.world import all_words
from finetune.base import DTYPES, BasePipeline
from finetune.config import apply_overrides, build_run_config, read_yaml
from finetune.estimate import estimate
from finetune.families import find_family
from finetune.families.base import Reading
from finetune.families.parts import PUBLISHED, read_model_index
from finetune.loss import Objective
from finetune.optim import build_optimizer
from finetune.pretrain.tokenizer import build_tokenizer
from finetune.speed import running
from methods import load_method

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
CLIP_WORDS = 49408
"""Rows of CLIP's embedding table; new words come after them."""
OPTIONS: dict[str, list[str]] = {
    "plain": [],
    "checkpointing": ["training.gradient_checkpointing=true"],
    "compile": ["training.compile=true"],
    "checkpointing + compile": [
        "training.gradient_checkpointing=true",
        "training.compile=true",
    ],
    "math attention": ["training.attention=math"],
    "adamw8bit": ["optimizer.name=adamw8bit"],
    "no offload": ["training.offload=false"],
}


def stand_in_tokenizer(kind: str) -> Any:
    if not kind.startswith("T5"):
        tokenizer = build_tokenizer(all_words())
        tokenizer.model_max_length = 77
        tokenizer.add_tokens([f"<unused-{index}>" for index in range(CLIP_WORDS - len(tokenizer))])
        return tokenizer
    words = sorted({f"▁{word}" for word in all_words() if word.isalpha()})
    letters = [c for c in "▁abcdefghijklmnopqrstuvwxyz<>,." if c not in words]
    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    vocabulary = [*special, *((w, -2.0) for w in words), *((c, -9.0) for c in letters)]
    return transformers.T5TokenizerFast(vocab=vocabulary, extra_ids=0)


def published_folder(name: str, target: Path) -> Path:
    """The published configurations of a base, with tokenizers beside them."""
    for path in (PUBLISHED / name).rglob("*.json"):
        copy = target / path.relative_to(PUBLISHED / name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    for part, kind in read_model_index(target).items():
        if part.startswith("tokenizer"):
            stand_in_tokenizer(kind[1]).save_pretrained(target / part)
    return target


@contextlib.contextmanager
def no_initialisation() -> Iterator[None]:
    """Within the context torch's initialisers leave memory as it is; it is filled afterwards."""
    names = [name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_")]
    own = {name: getattr(nn.init, name) for name in names}
    try:
        for name in names:
            setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
        yield
    finally:
        for name, initialiser in own.items():
            setattr(nn.init, name, initialiser)


def with_weights(skeleton: BasePipeline, device: torch.device) -> BasePipeline:
    """Networks of the skeleton's kind with small random weights on `device`."""
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02
    parts = skeleton.components
    for name, shape in skeleton.modules.items():
        dtype = next(shape.parameters()).dtype
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with no_initialisation(), torch.device(device):
                build = getattr(type(shape), "from_config", None) or type(shape)
                network = build(shape.config).requires_grad_(False).eval()
        finally:
            torch.set_default_dtype(before)
        filling = block.to(device, dtype)
        for parameter in network.parameters():
            flat = parameter.data.view(-1)
            for part in flat.split(len(filling)):
                part.copy_(filling[: len(part)])
        for module in network.modules():
            if "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None:
                module.weight.data.fill_(1.0)
        if name in parts.text_encoders:
            parts.text_encoders[name] = network
        elif name == "vae":
            parts.vae = network
        else:
            parts.denoiser = network
    return BasePipeline(skeleton.family, parts, skeleton.source, "random", device)


def ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of large matrix products."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        for _ in range(8 if device.type == "cuda" else 1):
            a @ b
        synchronise(device)
        best = min(best, (time.perf_counter() - started) / (8 if device.type == "cuda" else 1))
    return 2 * size**3 / best


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def configured(case: dict[str, Any], folder: Path) -> Any:
    values = read_yaml(CONFIGS / case["base"] / f"{case['method']}.yaml")
    batch = case["batch"]
    changes = [
        f"base.source={folder}",
        f"base.dtype={case['dtype']}",
        "base.quantization=null",
        f"data.size={case['size']}",
        "prior.kind=none",
        f"training.batch_size={batch}",
        "training.gradient_accumulation_steps=1",
        "training.gradient_checkpointing=false",
        f"training.precision={'bfloat16' if case['dtype'] == 'bfloat16' else 'float32'}",
        *OPTIONS[case["option"]],
    ]
    return build_run_config(apply_overrides(values, changes), load_method, case["base"])


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """One case, in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder = published_folder(case["base"], Path(temporary))
        config = configured(case, folder)
        family = find_family(read_model_index(folder), case["base"])
        reading = Reading(DTYPES[case["dtype"]], weights=False)
        parts = family.load(folder, reading, without=family.optional_components)
        skeleton = BasePipeline(family, parts, case["base"], "", torch.device("meta"))
        method = load_method(case["method"])(config.method)
        told = estimate(skeleton, method, config, device=device)
        base = with_weights(skeleton, device)
        method.subject_phrase("dog")
        method.prepare(base)
    if config.training.offload and device.type == "cuda":
        base.rest(["vae"])
    groups = [
        {"params": list(g.parameters.values()), "lr": 1e-6, "weight_decay": g.weight_decay}
        for g in method.parameter_groups(base)
    ]
    optimizer = build_optimizer(groups, config.optimizer)
    objective, batch = Objective(config.loss, 0), batch_of(base, method, case)
    if base.text_is_frozen and config.training.offload and device.type == "cuda":
        base.encode_prompts(batch.prompts)
        base.rest(base.components.text_encoders)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    training = config.training
    autocast = torch.autocast(
        device.type, torch.bfloat16, enabled=training.precision == "bfloat16", cache_enabled=False
    )
    seconds = []
    with running(
        base,
        gradient_checkpointing=training.gradient_checkpointing,
        attention=training.attention,
        compile=training.compile,
    ):
        for _ in range(case["warm_up"] + case["steps"]):
            started = time.perf_counter()
            with autocast:
                loss = method.compute_loss(base, batch, objective).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            synchronise(device)
            seconds.append(time.perf_counter() - started)
    best = min(seconds[case["warm_up"] :])
    peak = peak_bytes(device)
    limit = ceiling(device, DTYPES["bfloat16" if training.precision == "bfloat16" else "float32"])
    return {
        **case,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "step_seconds": best,
        "samples_per_second": case["batch"] / best,
        "peak_gib": peak / 2**30,
        "estimated_peak_gib": told.peak_bytes / 2**30,
        "step_tflop": told.step_flops / 1e12,
        "ceiling_tflops": limit / 1e12,
        "mfu": told.step_flops / best / limit,
        "finite": bool(loss.isfinite()),
    }


def batch_of(base: BasePipeline, method: Any, case: dict[str, Any]) -> Batch:
    count, size = case["batch"], case["size"]
    shape = base.family.latent_shape(base.components, size)
    latents = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    prompts = [f"a photo of a {method.subject_phrase('dog')}"] * count
    sizes, corners = [(size, size)] * count, [(0, 0)] * count
    return Batch(
        Moments(latents, torch.ones_like(latents)),
        prompts,
        torch.zeros(count, dtype=torch.bool),
        list(range(count)),
        0,
        sizes,
        corners,
    )


def main() -> None:
    names = sorted(path.name for path in PUBLISHED.iterdir())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", choices=names, default="sd15")
    parser.add_argument("--methods", nargs="+", default=["lora"])
    parser.add_argument("--options", nargs="+", choices=sorted(OPTIONS), default=["plain"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/real_size.json"))
    parser.add_argument("--case", help="JSON of one case: measured in this process.")
    arguments = parser.parse_args()
    if arguments.case is not None:
        print(json.dumps(measure(json.loads(arguments.case))))
        return
    results = json.loads(arguments.output.read_text()) if arguments.output.is_file() else []
    header = ("base", "method", "option", "batch", "s/step", "samples/s", "GiB", "told", "MFU")
    print("  ".join(f"{word:>12}" for word in header), flush=True)
    for method in arguments.methods:
        for option in arguments.options:
            for batch in arguments.batch:
                case = {
                    "base": arguments.base, "method": method, "option": option, "batch": batch,
                    "size": arguments.size, "dtype": arguments.dtype, "steps": arguments.steps,
                    "warm_up": arguments.warm_up,
                }  # fmt: skip
                command = [sys.executable, __file__, "--case", json.dumps(case)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
                if done.returncode:
                    print(f"{method} {option} {batch}: failed ({done.returncode})", flush=True)
                    continue
                result = json.loads(done.stdout.splitlines()[-1])
                results = [r for r in results if any(r[k] != case[k] for k in case)] + [result]
                arguments.output.write_text(json.dumps(results, indent=1) + "\n")
                figures = (f"{result['step_seconds']:.2f}", f"{result['samples_per_second']:.3f}",
                           f"{result['peak_gib']:.2f}", f"{result['estimated_peak_gib']:.2f}",
                           f"{result['mfu']:.0%}")  # fmt: skip
                row = (arguments.base, method, option, str(batch), *figures)
                print("  ".join(f"{word:>12}" for word in row), flush=True)


if __name__ == "__main__":
    main()
