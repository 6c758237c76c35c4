"""Loss and gradients of one step of each family against the papers' formulas and diffusers' schedulers.

The reference reads the tiny pipeline with diffusers alone, encodes prompts and makes ids with the plain
pipeline, draws the same random numbers from their documented definition, and writes the loss out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers.training_utils import compute_loss_weighting_for_sd3

from data_prep.batch import Batch, Moments
from finetune.base import BaseConfig, load_base
from finetune.config import build_run_config
from finetune.loss import LossConfig, Objective
from methods import load_method

PROMPTS = ["a photo of a {}", "a {} in the snow"]
SIZES_HW, CORNERS = [(30, 20), (16, 16)], [(0, 4), (0, 0)]


def draw(stream: str, index: int, shape: tuple[int, ...], *, uniform: bool = False) -> torch.Tensor:
    text = f"0/{stream}/instance/0/{index}".encode()
    seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
    generator = torch.Generator().manual_seed(seed)
    maker = torch.rand if uniform else torch.randn
    return maker(shape, generator=generator)


def moments_of(shape: tuple[int, ...]) -> Moments:
    generator = torch.Generator().manual_seed(7)
    mean = torch.randn(2, *shape, generator=generator)
    return Moments(mean, torch.rand(2, *shape, generator=generator))


def sdxl_sample_loss(pipe: Any, latents: torch.Tensor, prompt: str, index: int) -> torch.Tensor:
    """||eps - eps_theta(x_t, t, c, sizes)||² (Ho et al. 2020, eq. 14; Podell et al. 2023, §2.2)."""
    noise = draw("noise", index, tuple(latents.shape))
    t = (draw("timesteps", index, (1,), uniform=True) * 1000).long()
    noisy = pipe.scheduler.add_noise(latents[None], noise[None], t)
    embeds, _, pooled, _ = pipe.encode_prompt([prompt], do_classifier_free_guidance=False)
    time_ids = pipe._get_add_time_ids(
        SIZES_HW[index], CORNERS[index], (16, 16), torch.float32, text_encoder_projection_dim=12
    )
    added = {"text_embeds": pooled, "time_ids": time_ids}
    return F.mse_loss(pipe.unet(noisy, t, embeds, added_cond_kwargs=added).sample[0], noise)


def flow_draws(pipe: Any, latents: torch.Tensor, index: int, *, logit_normal: bool) -> Any:
    """Noise, noisy latents and timestep by diffusers' scheduler, as its training scripts do it."""
    noise = draw("noise", index, tuple(latents.shape))
    uniform = draw("timesteps", index, (1,), uniform=True)
    if (
        logit_normal
    ):  # the scripts draw the normal number; here it is the inverse of its distribution
        uniform = torch.sigmoid(torch.tensor([NormalDist().inv_cdf(float(uniform))]))
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    t = scheduler.timesteps[(uniform * scheduler.config.num_train_timesteps).long()]
    noisy = scheduler.scale_noise(latents[None], t, noise[None])
    return noise, noisy, t


def sd3_sample_loss(pipe: Any, latents: torch.Tensor, prompt: str, index: int) -> torch.Tensor:
    """w(sigma) ||v_theta(x_t, t, c) - (eps - x_0)||² at x_t = (1 - sigma) x_0 + sigma eps (Esser et al.)."""
    noise, noisy, t = flow_draws(pipe, latents, index, logit_normal=True)
    embeds, _, pooled, _ = pipe.encode_prompt(
        [prompt], None, None, do_classifier_free_guidance=False
    )
    output = pipe.transformer(noisy, embeds, pooled, t).sample[0]
    weight = compute_loss_weighting_for_sd3("logit_normal", t / 1000)
    return weight[0] * F.mse_loss(output, noise - latents)


def flux_sample_loss(pipe: Any, latents: torch.Tensor, prompt: str, index: int) -> torch.Tensor:
    """The same without weight on packed latents, at guidance 1."""
    noise, noisy, t = flow_draws(pipe, latents, index, logit_normal=False)
    embeds, pooled, text_ids = pipe.encode_prompt([prompt])
    output = pipe.transformer(
        hidden_states=pipe._pack_latents(noisy, 1, 16, 8, 8),
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        timestep=t / 1000,
        img_ids=pipe._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32),
        txt_ids=text_ids,
        guidance=torch.ones(1),
    ).sample
    output = pipe._unpack_latents(output, 16, 16, pipe.vae_scale_factor)[0]
    return F.mse_loss(output, noise - latents)


FAMILIES: dict[str, tuple[str, tuple[int, int, int], Callable[..., torch.Tensor]]] = {
    "sdxl": ("StableDiffusionXLPipeline", (4, 8, 8), sdxl_sample_loss),
    "sd3": ("StableDiffusion3Pipeline", (16, 8, 8), sd3_sample_loss),
    "flux": ("FluxPipeline", (16, 8, 8), flux_sample_loss),
}
"""Family -> pipeline class, latents' shape, loss of a sample."""
TEXT = {"train_text_encoder": True}


def our_gradients(
    folder: Path, run_values: Any, kind: str, moments: Moments, **method_settings: Any
) -> tuple[float, dict[str, torch.Tensor], str]:
    values = run_values(kind, base={"source": str(folder)}, method=method_settings)
    config = build_run_config(values, load_method, "test")
    method = load_method(kind)(config.method)
    base = load_base(BaseConfig(source=str(folder)))
    subject = method.subject_phrase("dog")
    method.prepare(base)
    prompts = [prompt.format(subject) for prompt in PROMPTS]
    batch = Batch(
        moments, prompts, torch.tensor([False, False]), [0, 1], 0, SIZES_HW, CORNERS
    )  # fmt: skip
    output = method.compute_loss(base, batch, Objective(LossConfig(), seed=0))
    output.loss.backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in base.trainable_parameters().items()
    }
    return float(output.loss.detach()), gradients, subject


def reference_loss(pipe: Any, family: str, moments: Moments, subject: str) -> torch.Tensor:
    _, shape, sample_loss = FAMILIES[family]
    losses = []
    for index, prompt in enumerate(PROMPTS):
        latents = moments.mean[index] + moments.std[index] * draw("posterior", index, shape)
        losses.append(sample_loss(pipe, latents, prompt.format(subject), index))
    return torch.stack(losses).mean()


def assert_same_gradients(
    ours: dict[str, torch.Tensor], reference: dict[str, torch.Tensor], what: str
) -> None:
    assert ours.keys() == reference.keys()
    largest = max(float(g.abs().max()) for g in reference.values())
    difference = max(float((ours[n] - g).abs().max()) for n, g in reference.items())
    print(f"{what}: gradients differ by {difference / largest:.1e} of the largest")
    assert largest > 1e-6
    assert difference < 1e-5 * largest


def plain(family: str, folder: Path) -> Any:
    pipe = getattr(diffusers, FAMILIES[family][0]).from_pretrained(folder)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    return pipe


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_dreambooth_loss_and_gradients(family_folders: Any, run_values: Any, family: str) -> None:
    folder = family_folders(family)
    moments = moments_of(FAMILIES[family][1])
    loss, gradients, subject = our_gradients(folder, run_values, "dreambooth", moments, **TEXT)
    pipe = plain(family, folder)
    named = {}
    for component in {name.split(".")[0] for name in gradients}:
        network = getattr(pipe, component).requires_grad_(True)
        named |= {f"{component}.{n}": p for n, p in network.named_parameters()}
    expected = reference_loss(pipe, family, moments, subject)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    reference = {
        name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named.items()
    }
    assert_same_gradients(gradients, reference, f"{family} dreambooth")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_lora_loss_and_gradients(family_folders: Any, run_values: Any, family: str) -> None:
    """At the start B = 0: W + (alpha / r) B A has the gradient (alpha / r) dL/dW Aᵀ for B, 0 for A."""
    folder = family_folders(family)
    moments = moments_of(FAMILIES[family][1])
    torch.manual_seed(3)
    loss, gradients, subject = our_gradients(
        folder, run_values, "lora", moments, rank=2, alpha=6.0, **TEXT
    )
    values = run_values(
        "lora", base={"source": str(folder)}, method={"rank": 2, "alpha": 6.0, **TEXT}
    )
    method = load_method("lora")(build_run_config(values, load_method, "test").method)
    base = load_base(BaseConfig(source=str(folder)))
    torch.manual_seed(3)
    method.prepare(base)
    factors = {name: p.detach() for name, p in base.trainable_parameters().items()}
    pipe = plain(family, folder)
    weights = {}
    for name in gradients:
        component, _, path = name.partition(".")
        if ".lora_B." in path:
            module = getattr(pipe, component).get_submodule(path.partition(".lora_B")[0])
            weights[name] = module.weight.requires_grad_(True)
    expected = reference_loss(pipe, family, moments, subject)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    reference = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
    for name, weight in weights.items():
        if weight.grad is not None:
            down = factors[name.replace(".lora_B.", ".lora_A.")]
            reference[name] = 6.0 / 2 * weight.grad @ down.T
    assert_same_gradients(gradients, reference, f"{family} lora")


def test_textual_inversion_loss_and_gradients_of_sdxl(family_folders: Any, run_values: Any) -> None:
    folder = family_folders("sdxl")
    moments = moments_of((4, 8, 8))
    loss, gradients, subject = our_gradients(
        folder, run_values, "textual_inversion", moments, num_vectors=1
    )
    pipe = plain("sdxl", folder)
    tables = {}
    for encoder, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")):
        network, words = getattr(pipe, encoder), getattr(pipe, tokenizer)
        dog = words("dog", add_special_tokens=False).input_ids[0]
        words.add_tokens(["<subject>"])
        network.resize_token_embeddings(len(words), mean_resizing=False)
        table = network.get_input_embeddings().weight
        with torch.no_grad():
            table[-1] = table[dog]
        tables[encoder] = table.requires_grad_(True)
    expected = reference_loss(pipe, "sdxl", moments, subject)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    rows = {name.split(".")[0]: gradient for name, gradient in gradients.items()}
    reference = {encoder: table.grad[-1:] for encoder, table in tables.items()}
    assert_same_gradients(rows, reference, "sdxl textual_inversion")
