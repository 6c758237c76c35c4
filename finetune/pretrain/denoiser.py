"""Stage 3: the denoiser in latent space (Ho et al. 2020; Rombach et al. 2022), with guidance dropout.

The middle of the U-Net is aligned with what stage 2's picture encoder sees in the clean picture
(representation alignment, REPA; Yu et al. 2025, eq. 8): so far from it that a small network must be told
what is in a picture, the denoiser learns its classes in about half the steps.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from finetune.diffusion import DiscreteDiffusion
from finetune.errors import ConfigError
from finetune.files import atomic_folder
from finetune.pretrain.data import Encoded, with_share_of
from finetune.pretrain.stage import CPU, StageConfig, save_rows, to_uint8
from finetune.pretrain.tokenizer import tokenize
from finetune.pretrain.unet import Alignment, build_unet, noise_scheduler

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
    """Channels at full, half, quarter ... latent resolution, multiples of 32; every level attends to
    the caption."""
    layers_per_block: int = Field(1, gt=0)
    """Residual blocks per resolution on the way down; one more on the way up."""
    alignment_weight: float = Field(0.5, ge=0)
    """Weight of 1 - cosine between the U-Net's middle, through a small head, and the features of
    stage 2's picture encoder (Yu et al. 2025, who take 0.5)."""
    worn_share: float = Field(0.4, ge=0, le=1)
    """Share of each batch drawn from captions that tell of something worn, which only one picture in five
    shows; that is small, and learnt slowly."""
    subject_weight: float = Field(4.0, ge=0)
    """Further weight of the error where the subject is: what is best stays the same and is learnt sooner."""
    worn_weight: float = Field(8.0, ge=0)
    """Further weight of the error where something is worn."""
    freeze_text_encoder: bool = False
    """Leave the text encoder as stage 2 made it."""
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """Share of captions replaced by the empty one (Ho & Salimans 2022, algorithm 1)."""
    snr_gamma: float | None = Field(None, gt=0)
    """Min-SNR loss weight (Hang et al. 2023): min(snr, gamma) / (snr + 1) for v-prediction. Null weights
    all timesteps alike, which leaves more to the noisy ones, where a small base learns its shapes."""

    @model_validator(mode="after")
    def _channels_fit(self) -> DenoiserConfig:
        channels = self.block_out_channels
        if not channels or any(number % 32 or number < 32 for number in channels):
            raise ValueError("block_out_channels must be multiples of 32, one at least")
        return self


def timesteps_of(count: int, generator: torch.Generator) -> Tensor:
    """`count` timesteps in 0 ... 999 with a density that rises with t.

    It is in noise that shapes are decided. One comes from each of `count` equal shares of the
    density, for less variance per batch.
    """
    quantiles = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return (quantiles.sqrt() * 1000).long().clamp(max=999)


def cell_weights(config: DenoiserConfig, covers: np.ndarray, latent_hw: tuple[int, int]) -> Tensor:
    """Weights of the latents' cells, [N, h, w], of mean 1, by what of them `covers` [N, 2, ...] tells."""
    shares = F.adaptive_avg_pool2d(torch.from_numpy(covers).float() / 255, latent_hw)
    weights = 1 + config.subject_weight * shares[:, 0] + config.worn_weight * shares[:, 1]
    return weights / weights.mean()


class DenoiserStage:
    """Trains a `UNet2DConditionModel` and its text encoder on latents and captions."""

    name = "denoiser"
    networks: tuple[str, ...] = ("unet", "text_encoder")

    def __init__(
        self,
        config: DenoiserConfig,
        captions: list[list[str]],
        covers: np.ndarray,
        encoded: Encoded,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        made_of: dict[str, str],
        *,
        device: torch.device = CPU,
    ) -> None:
        side, levels = encoded.means.shape[-1], len(config.block_out_channels)
        if side < 2**levels:
            raise ConfigError(
                f"denoiser.block_out_channels: {levels} levels make less than 2 x 2 positions of latents of "
                f"{side} x {side}, and the U-Net cannot learn from one. Take fewer."
            )
        torch.manual_seed(config.seed)
        self.config, self.tokenizer, self.made_of, self.device = config, tokenizer, made_of, device
        self.encoded, self.vae, self.text_encoder = encoded, vae.to(device), text_encoder.to(device)
        channels, height, width = encoded.means.shape[1:]
        self.latent_shape = channels, height, width
        self.unet = build_unet(
            self.latent_shape,
            text_size=text_encoder.config.hidden_size,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
        )
        self.alignment = Alignment(config.block_out_channels[-1], encoded.features.shape[1])
        self.middle: list[Tensor] = []
        self.unet.mid_block.register_forward_hook(
            lambda module, args, output: self.middle.append(output)
        )
        self.scheduler = noise_scheduler()
        self.noise_process = DiscreteDiffusion(self.scheduler.alphas_cumprod, "v_prediction")
        self.modules = nn.ModuleDict({"unet": self.unet, "alignment": self.alignment})
        self.modules.to(device)
        self.text_encoder.requires_grad_(not config.freeze_text_encoder)
        if not config.freeze_text_encoder:
            self.modules["text_encoder"] = text_encoder
        tokens = tokenize(tokenizer, [text for texts in captions for text in texts])
        self.input_ids = tokens.view(len(captions), -1, tokenizer.model_max_length)
        self.empty = tokenize(tokenizer, [""])[0]
        of_worn = [
            (picture, place)
            for picture, texts in enumerate(captions)
            for place, text in enumerate(texts)
            if " wearing " in text
        ]
        self.of_worn = torch.tensor(of_worn, dtype=torch.long).view(-1, 2).T
        self.cell_weights = cell_weights(config, covers, (height, width))

    def draw(self, generator: torch.Generator) -> Tensor:
        """Numbers of pictures, and of one of each one's captions, [2, B]."""
        count, (num, choices, _) = self.config.batch_size, self.input_ids.shape
        drawn = torch.stack(
            [torch.randint(most, (count,), generator=generator) for most in (num, choices)]
        )
        return with_share_of(self.of_worn, drawn, self.config.worn_share, generator)

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Weighted error of the velocity and the alignment's; beside it the plain squared error."""
        config, count = self.config, self.config.batch_size
        indices, places = self.draw(generator)
        mean = self.encoded.means[indices].float()
        deviation = self.encoded.deviations[indices].float()
        latents = mean + deviation * torch.randn(mean.shape, generator=generator)
        latents = latents * self.vae.config.scaling_factor
        input_ids = self.input_ids[indices, places]
        dropped = torch.rand(count, generator=generator) < config.caption_dropout
        input_ids = torch.where(dropped[:, None], self.empty, input_ids)
        timesteps = timesteps_of(count, generator)
        noise = torch.randn(latents.shape, generator=generator)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = self.scheduler.get_velocity(latents, noise, timesteps)
        self.middle.clear()
        features = self.encoded.features[indices].float().to(self.device)
        weights = self.noise_process.loss_weight(timesteps, config.snr_gamma).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            prompt_embeds = self.text_encoder(input_ids.to(self.device)).last_hidden_state
            moved = (noisy.to(self.device), timesteps.to(self.device))
            output = self.unet(*moved, prompt_embeds).sample
            apart = self.alignment(self.middle.pop(), features)
        target = target.to(self.device)
        error = F.mse_loss(output.float(), target, reduction="none").mean(1)  # [B, h, w]
        weighted = weights * (error * self.cell_weights[indices].to(self.device)).mean((1, 2))
        total = weighted.mean() + config.alignment_weight * apart.mean()
        return {"loss": total, "mse": error.detach().mean(), "apart": apart.detach().mean()}

    @torch.no_grad()
    def sample(self, path: Path) -> None:
        """Two pictures for each of twelve prompts: DPM-Solver++, 20 steps, guidance 3."""
        scheduler = DPMSolverMultistepScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(20)
        prompts = [prompt for prompt in SAMPLE_PROMPTS for _ in range(2)]
        ids = torch.cat([tokenize(self.tokenizer, prompts), self.empty.expand(len(prompts), -1)])
        prompt_embeds = self.text_encoder(ids.to(self.device)).last_hidden_state
        shape = (len(prompts), *self.latent_shape)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device)
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
