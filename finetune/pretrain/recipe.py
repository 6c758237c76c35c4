"""The whole recipe of a base: three stages one after the other, then an ordinary diffusers folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from pydantic import Field
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from data_prep.clay.world import all_words
from data_prep.config import Section
from finetune.dual_encoder import CONFIG as DUAL_ENCODER_CONFIG
from finetune.dual_encoder import DualEncoder
from finetune.errors import ArtifactError
from finetune.files import atomic_folder
from finetune.pretrain.autoencoder import AutoencoderConfig, AutoencoderStage
from finetune.pretrain.contrast import ContrastConfig, ContrastStage
from finetune.pretrain.data import Pictures, load_pictures
from finetune.pretrain.denoiser import (
    DenoiserConfig,
    DenoiserStage,
    encode_latents,
    noise_scheduler,
)
from finetune.pretrain.stage import Stage, StageConfig, run_stage
from finetune.pretrain.tokenizer import build_tokenizer

STAGES = ("autoencoder", "contrast", "denoiser", "assemble")


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
    num_threads: int | None = Field(None, gt=0)
    """Threads of torch; null takes its default."""
    autoencoder: AutoencoderConfig
    """Stage 1."""
    contrast: ContrastConfig
    """Stage 2."""
    denoiser: DenoiserConfig
    """Stage 3."""


def _latents(config: PretrainConfig, vae: AutoencoderKL) -> tuple[torch.Tensor, torch.Tensor]:
    path = config.work_folder / "latents.safetensors"
    if not path.is_file():
        means, deviations = encode_latents(vae, load_pictures(config.pictures))
        save_file({"means": means, "deviations": deviations}, path)
    stored = load_file(path)
    return stored["means"], stored["deviations"]


def _read_vae(folder: Path) -> AutoencoderKL:
    if not (folder / "config.json").is_file():
        raise ArtifactError(
            f"There is no finished autoencoder in {folder}; run --stage autoencoder."
        )
    return AutoencoderKL.from_pretrained(folder).eval().requires_grad_(False)


def _train(stage: Stage, config: StageConfig, folder: Path, max_minutes: float | None) -> bool:
    steps = list(run_stage(stage, config, folder, max_minutes=max_minutes))
    return not steps or steps[-1] == config.num_steps


def run_stages(
    config: PretrainConfig,
    stages: Sequence[str],
    *,
    max_minutes: float | None,
    announce: Callable[[str], None],
) -> None:
    """Run `stages` in order; stops after one that `max_minutes` cut short."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    work = config.work_folder
    for name in stages:
        announce(f"stage: {name}")
        finished = True
        if name == "autoencoder":
            pictures = load_pictures(config.pictures)
            autoencoder = AutoencoderStage(config.autoencoder, pictures)
            finished = _train(autoencoder, config.autoencoder, work / name, max_minutes)
            if finished:
                _save_vae(autoencoder.vae, pictures, work / name / "vae")
        elif name == "contrast":
            tokenizer = build_tokenizer(all_words())
            contrast = ContrastStage(config.contrast, load_pictures(config.pictures), tokenizer)
            finished = _train(contrast, config.contrast, work / name, max_minutes)
            if finished:
                contrast.clip.save_pretrained(work / name / "clip")
                tokenizer.save_pretrained(work / name / "tokenizer")
        elif name == "denoiser":
            denoiser = _denoiser_stage(config)
            finished = _train(denoiser, config.denoiser, work / name, max_minutes)
            denoiser.unet.save_pretrained(work / name / "unet")
            denoiser.text_encoder.save_pretrained(work / name / "text_encoder")
        else:
            assemble(config)
        if not finished:
            announce(f"{name} is not finished; run the same command again to go on.")
            return


@torch.no_grad()
def _save_vae(vae: AutoencoderKL, pictures: Pictures, folder: Path) -> None:
    """Write the autoencoder with the scaling factor that gives its latents unit variance."""
    chosen = torch.arange(0, len(pictures.pixels), max(1, len(pictures.pixels) // 512))
    latents = torch.cat(
        [vae.encode(pictures.pixel_values(part)).latent_dist.mean for part in chosen.split(64)]
    )
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
    vae.save_pretrained(folder)


def _denoiser_stage(config: PretrainConfig) -> DenoiserStage:
    vae = _read_vae(config.work_folder / "autoencoder" / "vae")
    clip_folder = config.work_folder / "contrast" / "clip"
    if not (clip_folder / DUAL_ENCODER_CONFIG).is_file():
        raise ArtifactError(f"There is no finished CLIP in {clip_folder}; run --stage contrast.")
    tokenizer = CLIPTokenizer.from_pretrained(config.work_folder / "contrast" / "tokenizer")
    latents = _latents(config, vae)
    return DenoiserStage(
        config.denoiser,
        load_pictures(config.pictures).captions[: len(latents[0])],
        latents,
        vae,
        text_encoder_of(DualEncoder.from_pretrained(clip_folder)),
        tokenizer,
    )


def text_encoder_of(clip: DualEncoder) -> CLIPTextModel:
    """A `CLIPTextModel` with the weights of the dual encoder's text side."""
    encoder = CLIPTextModel(clip.text_model.config)
    encoder.load_state_dict(clip.text_model.state_dict())
    return encoder


def assemble(config: PretrainConfig) -> None:
    """Write the finished base and scorer from the stages' networks, weights in float16."""
    work = config.work_folder
    tokenizer = CLIPTokenizer.from_pretrained(work / "contrast" / "tokenizer")
    pipe = StableDiffusionPipeline(
        vae=_read_vae(work / "autoencoder" / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(work / "denoiser" / "text_encoder"),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_pretrained(work / "denoiser" / "unet"),
        scheduler=noise_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with atomic_folder(config.output) as folder:
        pipe.save_pretrained(folder, safe_serialization=True)
        _store_in_float16(folder)
    clip = DualEncoder.from_pretrained(work / "contrast" / "clip")
    with atomic_folder(config.scorer_output) as folder:
        clip.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _store_in_float16(folder)


def _store_in_float16(folder: Path) -> None:
    """Halve the weight files; configurations keep naming float32, so a plain load gives float32."""
    for path in folder.rglob("*.safetensors"):
        tensors = load_file(path)
        halved = {k: v.half() if v.dtype == torch.float32 else v for k, v in tensors.items()}
        save_file(halved, path, metadata={"format": "pt"})
