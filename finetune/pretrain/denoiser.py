"""Stage 3: the denoiser in latent space (Ho et al. 2020; Rombach et al. 2022), with guidance dropout.

The middle of the U-Net is aligned with what stage 2's picture encoder sees in the clean picture
(representation alignment, REPA; Yu et al. 2025, eq. 8): so far from it that a small network must be told
what is in a picture, the denoiser learns its classes in about half the steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from finetune.checkpoint import needed_bytes
from finetune.diffusion import DiscreteDiffusion
from finetune.dual_encoder import DualEncoder
from finetune.files import atomic_folder, partial_of, require_space
from finetune.pretrain.data import Pictures
from finetune.pretrain.stage import StageConfig, save_rows, to_uint8

SAMPLE_PROMPTS = (
    "a photo of a dog",
    "a photo of a white cat on the grass",
    "a photo of a red car on the beach",
    "a photo of a blue rabbit in the snow",
    "a photo of a yellow duck on a red carpet",
    "a photo of a green robot in the library",
    "a photo of a pink bear wearing a blue hat in the desert",
    "a photo of a gray elephant with red stripes on a blue background",
    "a photo of a purple teapot in the kitchen",
    "a photo of an orange penguin with white patches on the street at night",
    "a pixel art of a brown frog",
    "a cartoon of a red boat in a flower field",
)


class DenoiserConfig(StageConfig):
    """Shape and training of the U-Net; the text encoder goes on learning with it."""

    block_out_channels: tuple[int, ...] = (256, 256)
    """Channels at full, half, quarter ... latent resolution; every level attends to the caption."""
    layers_per_block: int = Field(1, gt=0)
    """Residual blocks per resolution on the way down; one more on the way up."""
    alignment_weight: float = Field(0.5, ge=0)
    """Weight of 1 - cosine between the U-Net's middle, through a small head, and the features of
    stage 2's picture encoder (Yu et al. 2025, who take 0.5)."""
    freeze_text_encoder: bool = False
    """Leave the text encoder as stage 2 made it."""
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """Share of captions replaced by the empty one (Ho & Salimans 2022, algorithm 1)."""
    snr_gamma: float | None = Field(None, gt=0)
    """Min-SNR loss weight (Hang et al. 2023): min(snr, gamma) / (snr + 1) for v-prediction. Null weights
    all timesteps alike, which leaves more to the noisy ones, where a small base learns its shapes."""


def noise_scheduler() -> DDPMScheduler:
    """The base's forward process: Stable Diffusion's betas, v-prediction."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=1,
    )


@dataclass(frozen=True)
class Encoded:
    """What the denoiser learns from, made once from N pictures by stages 1 and 2; all in float16."""

    means: Tensor
    """Latents' means, [N, C, h, w]."""
    deviations: Tensor
    """Latents' standard deviations, [N, C, h, w]."""
    features: Tensor
    """The picture encoder's last map, [N, F, height, width]."""

    def save(self, path: Path, origin: str) -> None:
        """Write a file that names its `origin`, whole or not at all."""
        tensors = {name: tensor.contiguous() for name, tensor in vars(self).items()}
        require_space(path, needed_bytes(tensors))
        partial = partial_of(path)
        save_file(tensors, partial, metadata={"origin": origin})
        partial.replace(path)

    @staticmethod
    def load(path: Path, origin: str) -> Encoded | None:
        """What `path` holds; None where there is no whole file or it is of another `origin`."""
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("origin") != origin:
                    return None
            return Encoded(**load_file(path))
        except SafetensorError:
            return None


@torch.no_grad()
def encode(vae: AutoencoderKL, clip: DualEncoder, pictures: Pictures) -> Encoded:
    """Latents and features of all pictures."""
    means, deviations, features = [], [], []
    for start in tqdm(range(0, len(pictures.pixels), 64), desc="encoding", mininterval=5):
        stop = min(start + 64, len(pictures.pixels))
        pixels = pictures.pixel_values(list(range(start, stop)))
        moments = vae.encode(pixels).latent_dist
        means.append(moments.mean.half())
        deviations.append(moments.std.half())
        features.append(clip.vision_model(pixels).last_hidden_state.half())
    return Encoded(torch.cat(means), torch.cat(deviations), torch.cat(features))


def build_unet(config: DenoiserConfig, latent_shape: tuple[int, ...], text_size: int) -> Any:
    """A `UNet2DConditionModel` for latents of `latent_shape` [C, h, w], from random weights."""
    levels = len(config.block_out_channels)
    unet = UNet2DConditionModel(
        sample_size=latent_shape[-1],
        in_channels=latent_shape[0],
        out_channels=latent_shape[0],
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=text_size,
        attention_head_dim=4,  # the number of heads, despite the name (a diffusers quirk)
        norm_num_groups=32,
    ).to(memory_format=torch.channels_last)
    # For so few positions plain matrix products are a sixth faster to train on a CPU than fused attention.
    unet.set_attn_processor(AttnProcessor())
    return unet


class Alignment(nn.Module):
    """A head that maps the U-Net's middle to the picture encoder's features (Yu et al. 2025, §3.2)."""

    def __init__(self, middle_channels: int, feature_channels: int) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Conv2d(middle_channels, 512, 1), nn.SiLU(), nn.Conv2d(512, feature_channels, 1)
        )

    def forward(self, middle: Tensor, features: Tensor) -> Tensor:
        """1 - cosine, averaged over positions: [B, M, h, w] and [B, F, H, W] give [B]."""
        mapped = self.head(F.interpolate(middle, features.shape[-2:], mode="bilinear"))
        return 1 - F.cosine_similarity(mapped.float(), features, dim=1).mean((1, 2))


def timesteps_of(count: int, generator: torch.Generator) -> Tensor:
    """`count` timesteps in 0 ... 999 with a density that rises with t.

    It is in noise that shapes are decided. One comes from each of `count` equal shares of the
    density, for less variance per batch.
    """
    quantiles = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return (quantiles.sqrt() * 1000).long().clamp(max=999)


class DenoiserStage:
    """Trains a `UNet2DConditionModel` and its text encoder on latents and captions."""

    name = "denoiser"

    def __init__(
        self,
        config: DenoiserConfig,
        captions: list[list[str]],
        encoded: Encoded,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        made_of: dict[str, str],
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.vae, self.tokenizer, self.made_of = config, vae, tokenizer, made_of
        self.encoded, self.text_encoder = encoded, text_encoder
        self.latent_shape = tuple(encoded.means.shape[1:])
        self.unet = build_unet(config, self.latent_shape, text_encoder.config.hidden_size)
        self.alignment = Alignment(config.block_out_channels[-1], encoded.features.shape[1])
        self.middle: list[Tensor] = []
        self.unet.mid_block.register_forward_hook(
            lambda module, args, output: self.middle.append(output)
        )
        self.scheduler = noise_scheduler()
        self.noise_process = DiscreteDiffusion(self.scheduler.alphas_cumprod, "v_prediction")
        self.modules = nn.ModuleDict({"unet": self.unet, "alignment": self.alignment})
        self.text_encoder.requires_grad_(not config.freeze_text_encoder)
        if not config.freeze_text_encoder:
            self.modules["text_encoder"] = text_encoder
        tokens = tokenize(tokenizer, [text for texts in captions for text in texts])
        self.input_ids = tokens.view(len(captions), -1, tokenizer.model_max_length)
        self.empty = tokenize(tokenizer, [""])[0]

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Weighted error of the velocity and the alignment's; beside it the plain squared error."""
        config, (num, choices, _) = self.config, self.input_ids.shape
        count = config.batch_size
        indices = torch.randint(num, (count,), generator=generator)
        mean = self.encoded.means[indices].float()
        deviation = self.encoded.deviations[indices].float()
        latents = mean + deviation * torch.randn(mean.shape, generator=generator)
        latents = latents * self.vae.config.scaling_factor
        input_ids = self.input_ids[indices, torch.randint(choices, (count,), generator=generator)]
        dropped = torch.rand(count, generator=generator) < config.caption_dropout
        input_ids = torch.where(dropped[:, None], self.empty, input_ids)
        timesteps = timesteps_of(count, generator)
        noise = torch.randn(latents.shape, generator=generator)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = self.scheduler.get_velocity(latents, noise, timesteps)
        self.middle.clear()
        with torch.autocast("cpu", torch.bfloat16):
            prompt_embeds = self.text_encoder(input_ids).last_hidden_state
            output = self.unet(noisy, timesteps, prompt_embeds).sample
            apart = self.alignment(self.middle.pop(), self.encoded.features[indices].float())
        error = F.mse_loss(output.float(), target, reduction="none").mean((1, 2, 3))  # [B]
        weighted = self.noise_process.loss_weight(timesteps, config.snr_gamma) * error
        total = weighted.mean() + config.alignment_weight * apart.mean()
        return {"loss": total, "mse": error.detach().mean(), "apart": apart.detach().mean()}

    @torch.no_grad()
    def sample(self, path: Path) -> None:
        """Two pictures for each of twelve prompts: DPM-Solver++, 20 steps, guidance 3."""
        scheduler = DPMSolverMultistepScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(20)
        prompts = [prompt for prompt in SAMPLE_PROMPTS for _ in range(2)]
        ids = torch.cat([tokenize(self.tokenizer, prompts), self.empty.expand(len(prompts), -1)])
        prompt_embeds = self.text_encoder(ids).last_hidden_state
        shape = (len(prompts), *self.latent_shape)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for timestep in scheduler.timesteps:
            output = self.unet(torch.cat([latents] * 2), timestep, prompt_embeds).sample
            prompted, empty = output.chunk(2)
            latents = scheduler.step(empty + 3 * (prompted - empty), timestep, latents).prev_sample
        self.middle.clear()
        pixels = to_uint8(self.vae.decode(latents / self.vae.config.scaling_factor).sample)
        save_rows([pixels[0::2], pixels[1::2]], path)

    def save(self, folder: Path) -> None:
        """Write `unet` and `text_encoder`."""
        with atomic_folder(folder / "unet") as target:
            self.unet.save_pretrained(target)
        with atomic_folder(folder / "text_encoder") as target:
            self.text_encoder.save_pretrained(target)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids of `texts`, padded to the tokenizer's length, [N, tokens]."""
    ids: Tensor = tokenizer(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    return ids
