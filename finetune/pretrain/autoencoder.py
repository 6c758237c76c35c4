"""Stage 1: the autoencoder, reconstruction and KL (Kingma & Welling 2014; Rombach et al. 2022, §3.1).

Sixteen by sixteen pixels become 32 numbers: as many in all as Stable Diffusion's 8 × 8 to 8 would give,
on a quarter of the positions, which is what the denoiser's time goes with.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from pydantic import Field, model_validator
from torch import Tensor, nn

from finetune.errors import ConfigError
from finetune.files import atomic_folder
from finetune.pretrain.data import Pictures
from finetune.pretrain.linear_start import start_linear
from finetune.pretrain.stage import CPU, StageConfig, save_rows, to_uint8


class AutoencoderConfig(StageConfig):
    """Shape and training of the autoencoder."""

    block_out_channels: tuple[int, ...] = (32, 64, 96, 128, 128)
    """Channels at full, half, quarter ... resolution, the last that of the latents; what the linear
    start asks of them is said where they do not do, and a second of 48 keeps all of 4 x 4 pixels."""
    latent_channels: int = Field(32, gt=0)
    """Channels of the latents."""
    crop_size: int = Field(64, gt=0)
    """Training works on square crops of this many pixels, whole latents in either direction."""
    kl_weight: float = Field(1e-3, ge=0)
    """Weight of the KL divergence to N(0, 1), averaged over latent elements."""
    gradient_weight: float = Field(0.5, ge=0)
    """Weight of the absolute error of horizontal and vertical pixel differences: sharp edges."""

    @model_validator(mode="after")
    def _room_for_a_linear_start(self) -> AutoencoderConfig:
        channels, latents = self.block_out_channels, self.latent_channels
        if len(channels) < 3 or any(number % 2 for number in channels):
            raise ValueError("block_out_channels must be three or more even numbers")
        first, second, *_, before_last, last = *channels[:2], *channels[-2:]
        if not 10 <= first < second or list(channels) != sorted(channels):
            raise ValueError(
                "block_out_channels must begin with 10 at least and a larger number, and never fall, for the "
                "linear start"
            )
        kept = 3  # components that go on, of 4 times as many numbers each time
        for number in (*channels[:-2], before_last - 4):  # constants have four beside them
            kept = min(4 * kept, number)
        if min(kept, second) < latents:
            raise ValueError(
                f"block_out_channels leave room for {min(kept, second)} latent channels, fewer than "
                f"latent_channels {latents}"
            )
        least, most = 2 * (latents + 2), 2 * (before_last - 2)
        if not least <= last <= most:
            raise ValueError(
                f"the last of block_out_channels must be {least} to {most}, for the linear start: twice "
                "latent_channels and four more, at most twice the one before it less four"
            )
        if self.crop_size % 2 ** (len(channels) - 1):
            raise ValueError(
                f"crop_size must be a multiple of {2 ** (len(channels) - 1)}, the pixels of a latent"
            )
        return self


def picture_error(decoded: Tensor, pixels: Tensor, gradient_weight: float) -> tuple[Tensor, Tensor]:
    """The error of decoded pictures [B, 3, H, W], and its first part alone.

    That is the mean absolute error of pixels; to it comes `gradient_weight` times that of their horizontal
    and vertical differences.
    """
    error = decoded - pixels
    absolute = error.abs().mean()
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return absolute + gradient_weight * edges, absolute


class AutoencoderStage:
    """Trains an `AutoencoderKL` on crops of pictures."""

    name = "autoencoder"
    networks: tuple[str, ...] = ("vae",)

    def __init__(
        self, config: AutoencoderConfig, pictures: Pictures, *, device: torch.device = CPU
    ) -> None:
        size = pictures.pixels.shape[1]
        if config.crop_size > size:
            raise ConfigError(
                f"autoencoder.crop_size: {config.crop_size} is more than the {size} pixels of the pictures."
            )
        torch.manual_seed(config.seed)
        self.config, self.pictures, self.device = config, pictures, device
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(config.block_out_channels),
            up_block_types=("UpDecoderBlock2D",) * len(config.block_out_channels),
            block_out_channels=config.block_out_channels,
            layers_per_block=1,
            latent_channels=config.latent_channels,
            norm_num_groups=2,
            sample_size=size,
        )
        first = torch.arange(0, len(pictures.pixels), max(1, len(pictures.pixels) // 1000))
        start_linear(self.vae, pictures.pixel_values(first[:1000]))
        self.vae.to(memory_format=torch.channels_last)
        self.modules = nn.ModuleDict({"vae": self.vae}).to(device)
        self.made_of = {"pictures": pictures.fingerprint}

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean absolute error of pixels and of their differences, and the KL divergence."""
        size, config = self.config.crop_size, self.config
        indices = torch.randint(
            len(self.pictures.pixels), (config.batch_size,), generator=generator
        )
        corner = self.pictures.pixels.shape[1] - size
        top, left = torch.randint(corner + 1, (2,), generator=generator).tolist()
        pixels = self.pictures.pixel_values(indices)[:, :, top : top + size, left : left + size]
        if torch.rand((), generator=generator) < 0.5:
            pixels = pixels.flip(3)
        pixels = pixels.contiguous(memory_format=torch.channels_last).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            posterior = self.vae.encode(pixels).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            noise = torch.randn(mean.shape, generator=generator).to(self.device)
            decoded = self.vae.decode(mean + (0.5 * logvar).exp() * noise).sample
        error, absolute = picture_error(decoded.float(), pixels, config.gradient_weight)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        total = error + config.kl_weight * divergence
        return {"loss": total, "l1": absolute.detach(), "kl": divergence.detach()}

    @torch.no_grad()
    def sample(self, path: Path) -> None:
        """Twelve pictures above their reconstructions."""
        shown = list(range(0, min(36, len(self.pictures.pixels)), 3))
        pixels = self.pictures.pixel_values(shown).to(self.device)
        decoded = self.vae.decode(self.vae.encode(pixels).latent_dist.mode()).sample
        save_rows([to_uint8(pixels), to_uint8(decoded)], path)

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """Write `vae` with the scaling factor that gives its latents unit variance."""
        count = len(self.pictures.pixels)
        chosen = torch.arange(0, count, max(1, count // 512))
        latents = torch.cat(
            [
                self.vae.encode(self.pictures.pixel_values(part).to(self.device)).latent_dist.mean
                for part in chosen.split(64)
            ]
        )
        self.vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
        with atomic_folder(folder / "vae") as target:
            self.vae.save_pretrained(target)
