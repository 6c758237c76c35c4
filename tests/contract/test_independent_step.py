"""One optimizer step of each method against a plain implementation that uses nothing of ours.

The reference reads the tiny pipeline with diffusers alone, draws the same random numbers from their
documented definition, and writes loss, gradient clipping and AdamW out by hand.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

LEARNING_RATE, WEIGHT_DECAY, EPS = 1e-3, 0.01, 1e-3
PRIOR_WEIGHT, GAMMA = 0.7, 5.0


def draw(stream: str, index: int, shape: tuple[int, ...], *, uniform: bool = False) -> torch.Tensor:
    text = f"0/{stream}/0/{index}".encode()
    seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
    generator = torch.Generator().manual_seed(seed)
    maker = torch.rand if uniform else torch.randn
    return maker(shape, generator=generator)


class Reference:
    """Two photos (each its own caption) and, with a prior, two class latents; one step."""

    def __init__(self, folder: Path, photos: list[Path]) -> None:
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline.from_pretrained(folder)
        self.unet, self.vae, self.text_encoder = pipe.unet, pipe.vae, pipe.text_encoder
        self.tokenizer = pipe.tokenizer
        for module in (self.unet, self.vae, self.text_encoder):
            module.requires_grad_(False)
        self.alphas_cumprod = torch.cumprod(
            1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0
        )
        self.moments = []
        for path in photos:
            pixels = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy())
            pixels = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
            with torch.no_grad():
                posterior = self.vae.encode(pixels).latent_dist
            self.moments.append((posterior.mean[0] * 0.5, posterior.std[0] * 0.5))

    def embed(self, prompt: str) -> torch.Tensor:
        ids = self.tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids
        return self.text_encoder(ids).last_hidden_state

    def sample_loss(self, mean: Any, std: Any, embeds: torch.Tensor, role: str, index: int) -> Any:
        shape = tuple(mean.shape)
        latents = mean + std * draw(f"posterior/{role}", index, shape)
        noise = draw(f"noise/{role}", index, shape)
        t = int(draw(f"timesteps/{role}", index, (), uniform=True) * 1000)
        bar = self.alphas_cumprod[t]
        noisy = bar.sqrt() * latents + (1 - bar).sqrt() * noise
        velocity = bar.sqrt() * noise - (1 - bar).sqrt() * latents
        output = self.unet(noisy[None], torch.tensor([t]), embeds).sample[0]
        snr = bar / (1 - bar)
        return snr.clamp(max=GAMMA) / (snr + 1) * F.mse_loss(output, velocity)

    def loss(self, order: list[int], subject: str, class_latents: Any, class_order: Any) -> Any:
        embeds = self.embed(f"a photo of a {subject}")
        total = sum(
            self.sample_loss(*self.moments[photo], embeds, "instance", index) / 2
            for index, photo in enumerate(order)
        )
        if class_latents is not None:
            embeds = self.embed("a photo of a dog")
            for index, picture in enumerate(class_order):
                mean = class_latents[picture]
                part = self.sample_loss(mean, torch.zeros_like(mean), embeds, "class", index)
                total = total + PRIOR_WEIGHT * part / 2
        return total


def adamw_step(parameters: list[torch.Tensor], gradients: tuple[torch.Tensor, ...]) -> None:
    """First step of AdamW (Loshchilov & Hutter 2019, algorithm 2), after clipping to norm 1."""
    norm = torch.sqrt(sum((g**2).sum() for g in gradients))
    scale = min(1.0, 1.0 / (float(norm) + 1e-6))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        g = gradient * scale
        m_hat, v_hat = g, g**2  # bias correction undoes (1 - beta) at the first step
        with torch.no_grad():
            parameter *= 1 - LEARNING_RATE * WEIGHT_DECAY
            parameter -= LEARNING_RATE * m_hat / (v_hat.sqrt() + EPS)


@pytest.fixture
def two_photos(tmp_path: Path) -> Path:
    folder = tmp_path / "two"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(2):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def ours(
    kind: str, run_values: Any, base: Any, photos: Path, **method: Any
) -> tuple[Any, Any, Any]:
    from finetune.config import build_run_config
    from finetune.examples import build_data
    from finetune.run import prepare_folder, run_training
    from methods import load_method

    values = run_values(
        kind,
        data={"photos": str(photos), "flip_probability": 0.0, "crop": "center"},
        method={"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, **method},
        loss={"prior_loss_weight": PRIOR_WEIGHT, "snr_gamma": GAMMA},
        optimizer={"eps": EPS},
        training={"num_steps": 1, "batch_size": 2},
    )
    config = build_run_config(values, load_method, "test")
    instance = load_method(kind)(config.method)
    data = build_data(base, instance, config)
    prepare_folder(config, resume=False, overwrite=False)
    run_training(base, instance, config)
    return instance, instance.state_dict(base), data


def orders(data: Any) -> tuple[list[int], list[int] | None]:
    photos = [data.order(i, 2, "instance") for i in range(2)]
    if data.class_moments is None:
        return photos, None
    return photos, [data.order(i, len(data.class_moments.mean), "class") for i in range(2)]


def test_dreambooth_step(
    tiny_base: Any, tiny_folder: Path, run_values: Any, two_photos: Path
) -> None:
    _, learnt, data = ours("dreambooth", run_values, tiny_base, two_photos)
    reference = Reference(tiny_folder, sorted(two_photos.iterdir()))
    photos, classes = orders(data)
    reference.unet.requires_grad_(True)
    loss = reference.loss(photos, "sks dog", data.class_moments.mean, classes)
    parameters = dict(reference.unet.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    adamw_step(list(parameters.values()), gradients)
    for name, value in parameters.items():
        torch.testing.assert_close(learnt[f"unet.{name}"], value, atol=2e-6, rtol=1e-5)


def test_textual_inversion_step(
    tiny_base: Any, tiny_folder: Path, run_values: Any, two_photos: Path
) -> None:
    _, learnt, data = ours("textual_inversion", run_values, tiny_base, two_photos, num_vectors=1)
    reference = Reference(tiny_folder, sorted(two_photos.iterdir()))
    tokenizer, encoder = reference.tokenizer, reference.text_encoder
    dog = tokenizer("dog", add_special_tokens=False).input_ids[0]
    tokenizer.add_tokens(["<subject>"])
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = encoder.get_input_embeddings().weight
    with torch.no_grad():
        table[-1] = table[dog]
    table.requires_grad_(True)
    photos, _ = orders(data)
    loss = reference.loss(photos, "<subject>", None, None)
    (gradient,) = torch.autograd.grad(loss, [table])
    row = table[-1].detach().clone()
    adamw_step([row], (gradient[-1],))
    torch.testing.assert_close(learnt["<subject>"], row, atol=2e-6, rtol=1e-5)


def test_lora_step(tiny_base: Any, tiny_folder: Path, run_values: Any, two_photos: Path) -> None:
    """A and B by hand: W x + (alpha / r) B A x, patched into the projections."""
    torch.manual_seed(3)
    _, learnt, data = ours("lora", run_values, tiny_base, two_photos, rank=2, alpha=6.0)
    reference = Reference(tiny_folder, sorted(two_photos.iterdir()))
    photos, classes = orders(data)
    factors: dict[str, torch.Tensor] = {}
    for key, value in learnt.items():
        if key.endswith("lora_B.weight"):
            factors[key] = torch.zeros_like(value).requires_grad_(True)
        else:
            # B is zero at first, so A has no gradient and only decays: this was its start.
            start = value / (1 - LEARNING_RATE * WEIGHT_DECAY)
            factors[key] = start.clone().requires_grad_(True)
    for key in [k for k in factors if k.endswith("lora_A.weight")]:
        path = key.removeprefix("unet.").removesuffix(".lora_A.weight")
        layer = reference.unet.get_submodule(path)

        def forward(x: Any, *_: Any, layer: Any = layer, key: str = key) -> torch.Tensor:
            a, b = factors[key], factors[key.replace("lora_A", "lora_B")]
            return F.linear(x, layer.weight, layer.bias) + 6.0 / 2 * F.linear(F.linear(x, a), b)

        layer.forward = forward
    assert len(factors) == len(learnt)
    assert factors
    loss = reference.loss(photos, "sks dog", data.class_moments.mean, classes)
    gradients = torch.autograd.grad(loss, list(factors.values()))
    adamw_step(list(factors.values()), gradients)
    moved = 0.0
    for key, value in factors.items():
        torch.testing.assert_close(learnt[key], value, atol=2e-6, rtol=1e-5)
        if "lora_B" in key:
            moved = max(moved, float(learnt[key].abs().max().detach()))
    assert moved > 1e-4
