"""Stage 4: the decoder goes on learning from what the denoiser really gives it.

Stage 1 taught it to decode latents of true pictures. A sampled latent is the denoiser's guess, smoother
than any of those, and decodes to smears. So the decoder is shown such guesses: a true latent, noised to
a random timestep, is estimated by the frozen denoiser, and the decoder learns to give the true
picture from it. Encoder and latent space stay as they are.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from pydantic import Field
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from finetune.diffusion import DiscreteDiffusion
from finetune.files import atomic_folder
from finetune.pretrain.autoencoder import picture_error
from finetune.pretrain.data import Encoded, Pictures
from finetune.pretrain.stage import CPU, StageConfig, save_rows, to_uint8
from finetune.pretrain.tokenizer import tokenize
from finetune.pretrain.unet import noise_scheduler


class DecoderConfig(StageConfig):
    """Training of the decoder."""

    max_timestep: int = Field(500, gt=0, le=1000)
    """Latents are noised to timesteps below this one; guesses from more noise show other pictures."""
    clean_share: float = Field(0.25, ge=0, le=1)
    """Share of each batch that is decoded from its own latents, as in stage 1."""
    gradient_weight: float = Field(0.5, ge=0)
    """Weight of the absolute error of horizontal and vertical pixel differences: sharp edges."""


class DecoderStage:
    """Trains the decoder of an `AutoencoderKL` on a denoiser's guesses."""

    name = "decoder"
    networks: tuple[str, ...] = ("vae",)

    def __init__(
        self,
        config: DecoderConfig,
        pictures: Pictures,
        encoded: Encoded,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        made_of: dict[str, str],
        *,
        device: torch.device = CPU,
    ) -> None:
        torch.manual_seed(config.seed)
        self.device = device
        self.config, self.pictures, self.encoded = config, pictures, encoded
        self.vae, self.made_of = vae.requires_grad_(False).to(device), made_of
        self.unet = unet.eval().requires_grad_(False).to(device)
        self.text_encoder = text_encoder.eval().to(device)
        self.tokenizer, self.scheduler = tokenizer, noise_scheduler()
        self.noise_process = DiscreteDiffusion(self.scheduler.alphas_cumprod, "v_prediction")
        self.vae.to(memory_format=torch.channels_last)
        self.modules = nn.ModuleDict(
            {"decoder": self.vae.decoder, "post_quant_conv": self.vae.post_quant_conv}
        ).requires_grad_(True)

    @torch.no_grad()
    def _guesses(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """The denoiser's estimates of clean latents, and a share of those themselves, [B, C, h, w]."""
        count, config = len(indices), self.config
        latents = self.encoded.means[indices].float() * self.vae.config.scaling_factor
        timesteps = torch.randint(config.max_timestep, (count,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        noisy = self.scheduler.add_noise(latents, noise, timesteps).to(self.device)
        latents, timesteps = latents.to(self.device), timesteps.to(self.device)
        texts = [self.pictures.captions[index][0] for index in indices.tolist()]
        input_ids = tokenize(self.tokenizer, texts).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            prompt_embeds = self.text_encoder(input_ids).last_hidden_state
            output = self.unet(noisy, timesteps, prompt_embeds).sample.float()
        guesses = self.noise_process.predicted_latents(noisy, output, timesteps)
        clean = torch.rand(count, generator=generator).to(self.device) < config.clean_share
        return torch.where(clean[:, None, None, None], latents, guesses)

    def _decode(self, latents: Tensor) -> Tensor:
        decoded: Tensor = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return decoded

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean absolute error of pixels and of their differences."""
        indices = torch.randint(
            len(self.pictures.pixels), (self.config.batch_size,), generator=generator
        )
        latents = self._guesses(indices, generator)
        pixels = self.pictures.pixel_values(indices).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            decoded = self._decode(latents)
        error, absolute = picture_error(decoded.float(), pixels, self.config.gradient_weight)
        return {"loss": error, "l1": absolute.detach()}

    @torch.no_grad()
    def sample(self, path: Path) -> None:
        """Twelve pictures above what is decoded from the denoiser's guesses of them."""
        indices = torch.arange(0, min(36, len(self.pictures.pixels)), 3)
        latents = self._guesses(indices, torch.Generator().manual_seed(0))
        pixels = self.pictures.pixel_values(indices)
        save_rows([to_uint8(pixels), to_uint8(self._decode(latents))], path)

    def save(self, folder: Path) -> None:
        """Write `vae`."""
        with atomic_folder(folder / "vae") as target:
            self.vae.save_pretrained(target)
