"""Optimizer steps per second of each method, beside a plain reading of the same step.

The plain step is what the field's example scripts do: encode the photos and the prompts in every step,
one forward pass over instance and class halves, AdamW. Both work on the same base, batch and
precision, and take turns in one run, so that a noisy machine hits both; read the ratio.

    python benchmarks/steps.py [--steps 10] [--rounds 4] [--output benchmarks/steps.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from data_prep.cache import TensorCache
from data_prep.decode import decode_each
from data_prep.sources import read_records
from data_prep.transforms import crop_square, to_pixel_values
from finetune.base import BaseConfig, BasePipeline, load_base
from finetune.config import apply_overrides, build_run_config, read_yaml
from finetune.examples import build_data
from finetune.generate import SamplingConfig, generate, generate_latents
from finetune.loss import Objective
from finetune.optim import build_adamw
from methods import load_method

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "clay"
Step = Callable[[int], None]


def run_config(kind: str, changes: list[str]) -> Any:
    values = apply_overrides(read_yaml(CONFIGS / f"{kind}.yaml"), changes)
    return build_run_config(values, load_method, kind)


def our_step(base: BasePipeline, method: Any, config: Any, data: Any) -> Step:
    """One optimizer step as `finetune.train` takes it."""
    groups = method.parameter_groups(base)
    parameters = [p for group in groups for p in group.parameters.values()]
    optimizer = build_adamw(
        [{"params": parameters, "lr": 1e-5, "weight_decay": 0.01}], betas=(0.9, 0.999), eps=1e-8
    )
    objective = Objective(config.loss, 0)

    def step(index: int) -> None:
        batch = data.micro_batch(index, num_micro=1, micro=0)
        method.compute_loss(base, batch, objective).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def plain_step(
    base: BasePipeline, method: Any, config: Any, pixels: torch.Tensor, class_pixels: torch.Tensor
) -> Step:
    """The same step in the style of the example scripts: nothing is cached."""
    parts = base.components
    tokenizer, encoder = parts.tokenizers["tokenizer"], parts.text_encoders["text_encoder"]
    parameters = list(base.trainable_parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.01)
    with_prior = config.prior.kind != "none"
    prompt = f"a photo of a {method.subject_phrase('dog')}"
    count = config.training.batch_size

    def step(index: int) -> None:
        rows = torch.randint(len(pixels), (count,))
        chosen, prompts = pixels[rows], [prompt] * count
        if with_prior:
            rows = torch.randint(len(class_pixels), (count,))
            chosen = torch.cat([chosen, class_pixels[rows]])
            prompts += ["a photo of a dog"] * count
        with torch.no_grad():
            latents = (
                parts.vae.encode(chosen).latent_dist.sample() * parts.vae.config.scaling_factor
            )
        noise = torch.randn_like(latents)
        timesteps = torch.randint(1000, (len(latents),))
        noisy = parts.scheduler.add_noise(latents, noise, timesteps)
        ids = tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
        output = parts.denoiser(noisy, timesteps, encoder(ids).last_hidden_state).sample
        target = parts.scheduler.get_velocity(latents, noise, timesteps)
        if with_prior:
            output, prior_output = output.chunk(2)
            target, prior_target = target.chunk(2)
            loss = F.mse_loss(output, target) + F.mse_loss(prior_output, prior_target)
        else:
            loss = F.mse_loss(output, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def seconds(step: Step, steps: int) -> float:
    started = time.perf_counter()
    for index in range(steps):
        step(index)
    return (time.perf_counter() - started) / steps


def profile_share(base: BasePipeline, step: Step) -> dict[str, float]:
    """Share of a step spent in the denoiser's forward pass, and in everything else."""
    spent = 0.0
    started = 0.0

    def before(*_: Any) -> None:
        nonlocal started
        started = time.perf_counter()

    def after(*_: Any) -> None:
        nonlocal spent
        spent += time.perf_counter() - started

    hooks = [
        base.denoiser.register_forward_pre_hook(before),
        base.denoiser.register_forward_hook(after),
    ]
    total = seconds(step, 10) * 10
    for hook in hooks:
        hook.remove()
    return {"denoiser forward": spent / total, "backward, optimizer, rest": 1 - spent / total}


VARIANTS: tuple[tuple[str, str, list[str]], ...] = (
    ("lora", "lora", ["method.train_text_encoder=false"]),
    ("lora, text encoder too", "lora", ["method.train_text_encoder=true"]),
    ("textual_inversion", "textual_inversion", []),
    ("dreambooth", "dreambooth", ["method.train_text_encoder=false"]),
    ("dreambooth, text encoder too", "dreambooth", ["method.train_text_encoder=true"]),
)
"""(label, method, changes to its configuration for the embedded base)."""


def bench_methods(base: BasePipeline, steps: int, rounds: int) -> list[dict[str, Any]]:
    results = []
    for label, kind, changes in VARIANTS:
        for batch_size in (1, 4):
            config = run_config(kind, [*changes, f"training.batch_size={batch_size}"])
            method = load_method(kind)(config.method)
            data = build_data(base, method, config)
            photos = decode_each(read_records(config.data))
            pixels = torch.stack([to_pixel_values(crop_square(p.image, 128)[0]) for p in photos])
            latents = data.class_moments.mean[:8] if data.class_moments else None
            class_pixels = pixels if latents is None else base.decode_latents(latents)
            method.prepare(base)
            ours = our_step(base, method, config, data)
            plain = plain_step(base, method, config, pixels, class_pixels)
            times: dict[str, list[float]] = {"ours": [], "plain": []}
            for _ in range(rounds + 1):  # the first round warms up
                times["ours"].append(seconds(ours, steps))
                times["plain"].append(seconds(plain, steps))
            share = profile_share(base, ours)
            method.detach(base)
            mine, theirs = (statistics.median(times[name][1:]) for name in ("ours", "plain"))
            results.append(
                {
                    "method": label,
                    "batch_size": batch_size,
                    "prior": config.prior.kind,
                    "ours_ms": 1e3 * mine,
                    "plain_ms": 1e3 * theirs,
                    "ours_steps_per_second": 1 / mine,
                    "speedup": theirs / mine,
                    "where_the_time_goes": share,
                }
            )
            print(
                f"{label:28} batch {batch_size}  ours {1e3 * mine:6.0f} ms  plain {1e3 * theirs:6.0f} ms  "
                f"x{theirs / mine:.2f}  (denoiser forward {share['denoiser forward']:.0%})",
                flush=True,
            )
    return results


def bench_class_images(base: BasePipeline, count: int = 16) -> dict[str, float]:
    """Making class pictures: kept as latents, against made, saved, decoded and encoded again."""
    prompts, seeds = ["a photo of a dog"] * count, list(range(count))
    ours = SamplingConfig(num_steps=20, guidance_scale=3.0, batch_size=16)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = TensorCache(Path(folder))

        def keep() -> None:
            cache.put("0" * 32, {"latents": generate_latents(base, prompts, seeds, ours)})

        def through_files(sampling: SamplingConfig) -> None:
            for index, image in enumerate(generate(base, prompts, seeds, sampling)):
                image.save(Path(folder) / f"{index}.jpg")
            from PIL import Image

            for index in range(count):
                opened = Image.open(Path(folder) / f"{index}.jpg")
                base.encode_images(to_pixel_values(opened)[None])

        same = ours
        scripts = SamplingConfig(
            scheduler="ddim", num_steps=50, guidance_scale=7.5, batch_size=4
        )  # the defaults of the field's example scripts: 50 steps, four at a time
        for name, job in (
            ("latents kept", keep),
            ("through files, same sampler", lambda: through_files(same)),
            ("through files, 50 steps, batch 4", lambda: through_files(scripts)),
        ):
            started = time.perf_counter()
            job()
            results[name] = (time.perf_counter() - started) / count
            print(f"class picture, {name}: {1e3 * results[name]:.0f} ms", flush=True)
    return results


def bench_pictures(base: BasePipeline) -> dict[str, float]:
    results = {}
    for batch_size in (1, 8):
        sampling = SamplingConfig(num_steps=20, guidance_scale=5.0, batch_size=batch_size)
        started = time.perf_counter()
        generate(base, ["a photo of a dog"] * 8, list(range(8)), sampling)
        results[f"batch {batch_size}"] = (time.perf_counter() - started) / 8
        print(f"picture, 20 steps with guidance, batch {batch_size}: "
              f"{results[f'batch {batch_size}']:.2f} s", flush=True)  # fmt: skip
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/steps.json"))
    arguments = parser.parse_args()
    base = load_base(BaseConfig(source="clay"))
    results = {
        "threads": torch.get_num_threads(),
        "pictures_seconds": bench_pictures(base),
        "class_pictures_seconds": bench_class_images(base),
        "methods": bench_methods(base, arguments.steps, arguments.rounds),
    }
    arguments.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
