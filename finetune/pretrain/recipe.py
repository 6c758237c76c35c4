"""The whole recipe of a base: stages one after the other, then an ordinary diffusers folder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from diffusers import StableDiffusionPipeline
from pydantic import Field
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from data_prep.clay.world import all_words
from data_prep.config import Section
from finetune.dual_encoder import DualEncoder
from finetune.errors import ConfigError
from finetune.files import atomic_folder, claimed
from finetune.pretrain.autoencoder import AutoencoderConfig, AutoencoderStage
from finetune.pretrain.contrast import ContrastConfig, ContrastStage
from finetune.pretrain.data import Pictures, load_pictures
from finetune.pretrain.decoder import DecoderConfig, DecoderStage
from finetune.pretrain.denoiser import DenoiserConfig, DenoiserStage
from finetune.pretrain.judge import JudgeConfig, JudgeStage
from finetune.pretrain.made import Made
from finetune.pretrain.stage import Stage, run_stage
from finetune.pretrain.tokenizer import build_tokenizer
from finetune.pretrain.unet import noise_scheduler

TRAINED = ("autoencoder", "contrast", "judge", "denoiser", "decoder")
STAGES = (*TRAINED, "assemble")


class PretrainConfig(Section):
    """A recipe; each stage reads what the stages before it wrote into `work_folder`."""

    pictures: Path
    """Folder that `finetune clay render` wrote."""
    work_folder: Path
    """Checkpoints, samples and the networks of each stage."""
    output: Path
    """The finished base, a diffusers folder in float16."""
    scorer_output: Path
    """The finished CLIP model, for scores."""
    judge_output: Path
    """The finished judge."""
    num_threads: int | None = Field(None, gt=0)
    """Threads of torch; null takes its default."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks are trained; `auto` takes an NVIDIA GPU where there is one. What is drawn at random is
    drawn on the CPU, so that every device sees the same pictures and noise; a stage may go on on another."""
    autoencoder: AutoencoderConfig
    """Stage 1."""
    contrast: ContrastConfig
    """Stage 2."""
    judge: JudgeConfig
    """The judge, which no other stage needs."""
    denoiser: DenoiserConfig
    """Stage 3."""
    decoder: DecoderConfig
    """Stage 4."""


def device_of(config: PretrainConfig) -> torch.device:
    """Where the networks are trained. Raises `ConfigError` for a GPU that is not there."""
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise ConfigError(
            "device: cuda needs an NVIDIA GPU, which this machine does not have. Set it to auto."
        )
    return torch.device("cuda" if has_gpu and config.device != "cpu" else "cpu")


def _made(config: PretrainConfig, command: str) -> Made:
    num_steps = {name: getattr(config, name).num_steps for name in TRAINED}
    return Made(config.work_folder, num_steps, command=command)


def _denoiser_stage(
    config: PretrainConfig, made: Made, pictures: Pictures, device: torch.device
) -> DenoiserStage:
    vae, clip = made.vae("autoencoder").requires_grad_(False), made.clip()
    return DenoiserStage(
        config.denoiser,
        pictures.captions,
        pictures.covers,
        made.encoded(vae, clip, pictures, device=device),
        vae,
        text_encoder_of(clip),
        made.tokenizer(),
        {"pictures": pictures.fingerprint, **made.fingerprints(("autoencoder", "contrast"))},
        device=device,
    )


def _decoder_stage(
    config: PretrainConfig, made: Made, pictures: Pictures, device: torch.device
) -> DecoderStage:
    vae = made.vae("autoencoder")
    return DecoderStage(
        config.decoder,
        pictures,
        made.encoded(vae, made.clip(), pictures, device=device),
        vae,
        made.unet(),
        made.text_encoder(),
        made.tokenizer(),
        {"pictures": pictures.fingerprint, **made.fingerprints(("autoencoder", "denoiser"))},
        device=device,
    )


def _contrast_tokenizer(made: Made) -> CLIPTokenizer:
    """The one that the stage began with, so that every token keeps its number when it goes on."""
    folder = made.work_folder / "contrast" / "tokenizer"
    if not folder.is_dir():
        with atomic_folder(folder) as target:
            build_tokenizer(all_words()).save_pretrained(target)
    return CLIPTokenizer.from_pretrained(folder)


COMMAND = "finetune pretrain RECIPE"


def build_stage(name: str, config: PretrainConfig, *, command: str = COMMAND) -> Stage:
    """A stage on what the stages before it made.

    Raises `ArtifactError`, which tells how to go on from `command`, where one of those is missing.
    """
    made, device = _made(config, command), device_of(config)
    if name == "denoiser":
        made.fingerprints(("autoencoder", "contrast"))
    if name == "decoder":
        made.check("denoiser", ("autoencoder", "contrast"))
        made.fingerprints(("denoiser",))
    pictures = load_pictures(config.pictures)
    if name == "autoencoder":
        return AutoencoderStage(config.autoencoder, pictures, device=device)
    if name == "contrast":
        tokenizer = _contrast_tokenizer(made)
        return ContrastStage(config.contrast, pictures, tokenizer, device=device)
    if name == "judge":
        return JudgeStage(config.judge, pictures, device=device)
    if name == "denoiser":
        return _denoiser_stage(config, made, pictures, device)
    return _decoder_stage(config, made, pictures, device)


def _train(name: str, config: PretrainConfig, *, deadline: float, command: str) -> bool:
    """Whether the stage is finished. Another process may train another one in the same work folder."""
    folder = config.work_folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder, option="work_folder=..."):
        steps = run_stage(build_stage(name, config, command=command), folder, deadline=deadline)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return bool(end.value)


def run_stages(
    config: PretrainConfig,
    stages: Sequence[str],
    *,
    max_minutes: float | None,
    announce: Callable[[str], None],
    command: str = COMMAND,
) -> None:
    """Run `stages` in order, for `max_minutes` in all; the last one begun is cut short then, to be resumed.

    `command` is what runs the recipe, for messages.
    """
    deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    for name in stages:
        announce(f"stage: {name}")
        if name == "assemble":
            assemble(config, command=command)
        elif time.monotonic() >= deadline or not _train(
            name, config, deadline=deadline, command=command
        ):
            announce(f"{name} is not finished; run the same command again to go on.")
            return


def text_encoder_of(clip: DualEncoder) -> CLIPTextModel:
    """A `CLIPTextModel` with the weights of the dual encoder's text side."""
    encoder = CLIPTextModel(clip.text_model.config)
    encoder.load_state_dict(clip.text_model.state_dict())
    return encoder


def assemble(config: PretrainConfig, *, command: str = COMMAND) -> None:
    """Write the finished base, CLIP and judge from the stages' networks, weights in float16.

    All three are prepared before one takes its place. Raises `ArtifactError` like `build_stage`.
    """
    made = _made(config, command)
    made.check("denoiser", ("autoencoder", "contrast"))
    made.check("decoder", ("autoencoder", "denoiser"))
    tokenizer, clip, judge = made.tokenizer(), made.clip(), made.judge()
    pipe = StableDiffusionPipeline(
        vae=made.vae("decoder"),
        text_encoder=made.text_encoder(),
        tokenizer=tokenizer,
        unet=made.unet(),
        scheduler=noise_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with (
        atomic_folder(config.output) as base_folder,
        atomic_folder(config.scorer_output) as scorer_folder,
        atomic_folder(config.judge_output) as judge_folder,
    ):
        pipe.save_pretrained(base_folder, safe_serialization=True)
        clip.save_pretrained(scorer_folder)
        tokenizer.save_pretrained(scorer_folder)
        judge.save_pretrained(judge_folder)
        for folder in (base_folder, scorer_folder, judge_folder):
            _store_in_float16(folder)


def _store_in_float16(folder: Path) -> None:
    """Halve the weight files; configurations keep naming float32, so a plain load gives float32."""
    for path in folder.rglob("*.safetensors"):
        tensors = load_file(path)
        halved = {k: v.half() if v.dtype == torch.float32 else v for k, v in tensors.items()}
        save_file(halved, path, metadata={"format": "pt"})
