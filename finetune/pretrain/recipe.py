"""The whole recipe of a base: stages one after the other, then an ordinary diffusers folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from pydantic import Field
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from data_prep.clay.world import all_words
from data_prep.config import Section
from finetune.dual_encoder import DualEncoder
from finetune.errors import ArtifactError
from finetune.files import atomic_folder, read_json, sha256_of
from finetune.judge import Judge
from finetune.pretrain.autoencoder import AutoencoderConfig, AutoencoderStage
from finetune.pretrain.contrast import ContrastConfig, ContrastStage
from finetune.pretrain.data import Pictures, load_pictures
from finetune.pretrain.decoder import DecoderConfig, DecoderStage
from finetune.pretrain.denoiser import (
    DenoiserConfig,
    DenoiserStage,
    Encoded,
    encode,
    noise_scheduler,
)
from finetune.pretrain.judge import JudgeConfig, JudgeStage
from finetune.pretrain.stage import MADE_OF, Stage, run_stage
from finetune.pretrain.tokenizer import build_tokenizer

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


class _Made:
    """What finished stages left in the work folder. Raises `ArtifactError` that names a missing stage."""

    def __init__(self, work_folder: Path) -> None:
        self.work_folder = work_folder

    def folder(self, stage: str, name: str) -> Path:
        folder = self.work_folder / stage / name
        if not any(folder.glob("*.json")):
            raise ArtifactError(f"There is no finished {name} in {folder}; run --stage {stage}.")
        return folder

    def fingerprint(self, stage: str, name: str) -> str:
        """SHA-256 over the files of a network or tokenizer."""
        files = sorted(self.folder(stage, name).iterdir())
        return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()

    def fingerprints(self, stages: Sequence[str]) -> dict[str, str]:
        """What the networks of `stages` are now, by the names that `made_of` gives them."""
        places = {
            "autoencoder": {"autoencoder": "vae"},
            "contrast": {"CLIP": "clip", "tokenizer": "tokenizer"},
            "denoiser": {"denoiser": "unet", "text encoder": "text_encoder"},
        }
        return {
            title: self.fingerprint(stage, name)
            for stage in stages
            for title, name in places[stage].items()
        }

    def check(self, stage: str, stages: Sequence[str]) -> None:
        """Raise `ArtifactError` where a finished stage learnt from other networks than those of `stages`."""
        path = self.work_folder / stage / MADE_OF
        if not path.is_file():
            raise ArtifactError(
                f"There is no finished {stage} in {path.parent}; run --stage {stage}."
            )
        learnt_from = read_json(path)
        for title, fingerprint in self.fingerprints(stages).items():
            if learnt_from.get(title) != fingerprint:
                raise ArtifactError(
                    f"The {stage} in {path.parent} learnt from another {title} than there is now. Remove "
                    f"{path.parent} and run --stage {stage}."
                )

    def vae(self, stage: str) -> AutoencoderKL:
        return AutoencoderKL.from_pretrained(self.folder(stage, "vae")).eval()

    def clip(self) -> DualEncoder:
        return DualEncoder.from_pretrained(self.folder("contrast", "clip"))

    def tokenizer(self) -> CLIPTokenizer:
        return CLIPTokenizer.from_pretrained(self.folder("contrast", "tokenizer"))

    def text_encoder(self) -> CLIPTextModel:
        return CLIPTextModel.from_pretrained(self.folder("denoiser", "text_encoder")).eval()

    def unet(self) -> UNet2DConditionModel:
        return UNet2DConditionModel.from_pretrained(self.folder("denoiser", "unet")).eval()

    def judge(self) -> Judge:
        return Judge.from_pretrained(self.folder("judge", "network"))

    def encoded(self, vae: AutoencoderKL, clip: DualEncoder, pictures: Pictures) -> Encoded:
        """Latents and features of `pictures`, made once per autoencoder and CLIP."""
        networks = [self.fingerprint("autoencoder", "vae"), self.fingerprint("contrast", "clip")]
        origin = " ".join([*networks, pictures.fingerprint])
        path = self.work_folder / "encoded.safetensors"
        kept = Encoded.load(path, origin)
        if kept is None:
            kept = encode(vae, clip, pictures)
            kept.save(path, origin)
        return kept


def _denoiser_stage(config: PretrainConfig, made: _Made, pictures: Pictures) -> DenoiserStage:
    vae, clip = made.vae("autoencoder").requires_grad_(False), made.clip()
    return DenoiserStage(
        config.denoiser,
        pictures.captions,
        made.encoded(vae, clip, pictures),
        vae,
        text_encoder_of(clip),
        made.tokenizer(),
        {"pictures": pictures.fingerprint, **made.fingerprints(("autoencoder", "contrast"))},
    )


def _decoder_stage(config: PretrainConfig, made: _Made, pictures: Pictures) -> DecoderStage:
    vae = made.vae("autoencoder")
    unet = made.unet()
    return DecoderStage(
        config.decoder,
        pictures,
        made.encoded(vae, made.clip(), pictures),
        vae,
        unet,
        made.text_encoder(),
        made.tokenizer(),
        {"pictures": pictures.fingerprint, **made.fingerprints(("autoencoder", "denoiser"))},
    )


def build_stage(name: str, config: PretrainConfig) -> Stage:
    """A stage on what the stages before it made. Raises `ArtifactError` where one of those is missing."""
    made = _Made(config.work_folder)
    if name == "denoiser":
        made.folder("autoencoder", "vae")
        made.folder("contrast", "clip")
    if name == "decoder":
        made.check("denoiser", ("autoencoder", "contrast"))
    pictures = load_pictures(config.pictures)
    if name == "autoencoder":
        return AutoencoderStage(config.autoencoder, pictures)
    if name == "contrast":
        return ContrastStage(config.contrast, pictures, build_tokenizer(all_words()))
    if name == "judge":
        return JudgeStage(config.judge, pictures)
    if name == "denoiser":
        return _denoiser_stage(config, made, pictures)
    return _decoder_stage(config, made, pictures)


def _train(stage: Stage, folder: Path, max_minutes: float | None) -> bool:
    """Whether the stage is finished."""
    steps = run_stage(stage, folder, max_minutes=max_minutes)
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
) -> None:
    """Run `stages` in order; stops after one that `max_minutes` cut short."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    for name in stages:
        announce(f"stage: {name}")
        if name == "assemble":
            assemble(config)
            continue
        stage, folder = build_stage(name, config), config.work_folder / name
        if not _train(stage, folder, max_minutes):
            announce(f"{name} is not finished; run the same command again to go on.")
            return


def text_encoder_of(clip: DualEncoder) -> CLIPTextModel:
    """A `CLIPTextModel` with the weights of the dual encoder's text side."""
    encoder = CLIPTextModel(clip.text_model.config)
    encoder.load_state_dict(clip.text_model.state_dict())
    return encoder


def assemble(config: PretrainConfig) -> None:
    """Write the finished base, CLIP and judge from the stages' networks, weights in float16."""
    made = _Made(config.work_folder)
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
    with atomic_folder(config.output) as folder:
        pipe.save_pretrained(folder, safe_serialization=True)
        _store_in_float16(folder)
    with atomic_folder(config.scorer_output) as folder:
        clip.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _store_in_float16(folder)
    with atomic_folder(config.judge_output) as folder:
        judge.save_pretrained(folder)
        _store_in_float16(folder)


def _store_in_float16(folder: Path) -> None:
    """Halve the weight files; configurations keep naming float32, so a plain load gives float32."""
    for path in folder.rglob("*.safetensors"):
        tensors = load_file(path)
        halved = {k: v.half() if v.dtype == torch.float32 else v for k, v in tensors.items()}
        save_file(halved, path, metadata={"format": "pt"})
