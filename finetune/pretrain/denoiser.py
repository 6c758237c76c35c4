"""Stage 3: the denoiser in latent space (Ho et al. 2020; Rombach et al. 2022), with guidance dropout."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
)
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from finetune.diffusion import DiscreteDiffusion
from finetune.pretrain.data import Pictures
from finetune.pretrain.stage import StageConfig, save_rows, to_uint8

SAMPLE_PROMPTS = (
    "a photo of a dog",
    "a photo of a white cat on the grass",
    "a photo of a red car on the beach",
    "a photo of a blue rabbit in the snow",
    "a photo of a yellow duck on a red carpet",
    "a photo of a green robot on a pink background",
    "a photo of a pink bear wearing a blue hat in the desert",
    "a photo of a gray horse with red stripes on a blue background",
    "a photo of a purple mug on a wooden floor",
    "a photo of an orange dog with white spots at night",
    "a pixel art of a brown bear",
    "a watercolor painting of a black cat on a white background",
)


class DenoiserConfig(StageConfig):
    """Shape and training of the U-Net; the text encoder goes on learning with it."""

    block_out_channels: tuple[int, ...] = (96, 192, 256)
    """Channels at full, half and quarter latent resolution. All but the first level attend to the
    caption; attention at full resolution would double the cost of a step."""
    layers_per_block: int = Field(1, gt=0)
    """Residual blocks per resolution on the way down; one more on the way up."""
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """Share of captions replaced by the empty one (Ho & Salimans 2022, algorithm 1)."""
    snr_gamma: float | None = Field(None, gt=0)
    """Min-SNR loss weight (Hang et al. 2023): min(snr, gamma) / (snr + 1) for v-prediction. Null weights
    all timesteps alike, which leaves more to the noisy ones, where a small base learns its shapes."""
    compile: bool = False
    """Compile the U-Net for training: a fifth faster on a CPU after minutes of compilation."""


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


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of all pictures' latents, each [N, C, h, w], in float16."""
    means, deviations = [], []
    for start in tqdm(range(0, len(pictures.pixels), 64), desc="encoding", mininterval=5):
        stop = min(start + 64, len(pictures.pixels))
        moments = vae.encode(pictures.pixel_values(list(range(start, stop)))).latent_dist
        means.append(moments.mean)
        deviations.append(moments.std)
    return torch.cat(means).half(), torch.cat(deviations).half()


class DenoiserStage:
    """Trains a `UNet2DConditionModel` and its text encoder on latents and captions."""

    name = "denoiser"

    def __init__(
        self,
        config: DenoiserConfig,
        captions: list[list[str]],
        latents: tuple[Tensor, Tensor],
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.vae, self.tokenizer = config, vae, tokenizer
        self.means, self.deviations = latents
        levels = len(config.block_out_channels)
        self.unet = UNet2DConditionModel(
            sample_size=self.means.shape[-1],
            in_channels=self.means.shape[1],
            out_channels=self.means.shape[1],
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (levels - 1),
            up_block_types=("CrossAttnUpBlock2D",) * (levels - 1) + ("UpBlock2D",),
            cross_attention_dim=text_encoder.config.hidden_size,
            attention_head_dim=4,  # the number of heads, despite the name (a diffusers quirk)
            norm_num_groups=32,
        ).to(memory_format=torch.channels_last)
        self.training_unet = torch.compile(self.unet) if config.compile else self.unet
        self.text_encoder = text_encoder
        self.scheduler = noise_scheduler()
        self.noise_process = DiscreteDiffusion(self.scheduler.alphas_cumprod, "v_prediction")
        self.modules = nn.ModuleDict({"unet": self.unet, "text_encoder": self.text_encoder})
        encoded = self._tokenize([text for texts in captions for text in texts])
        self.input_ids = encoded.view(len(captions), -1, tokenizer.model_max_length)
        self.empty = self._tokenize([""])[0]

    def _tokenize(self, texts: list[str]) -> Tensor:
        ids: Tensor = self.tokenizer(
            texts, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return ids

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Min-SNR weighted error of the velocity, and the plain mean squared error."""
        config, (num, choices, _) = self.config, self.input_ids.shape
        count = config.batch_size
        indices = torch.randint(num, (count,), generator=generator)
        mean, deviation = self.means[indices].float(), self.deviations[indices].float()
        latents = mean + deviation * torch.randn(mean.shape, generator=generator)
        latents = latents * self.vae.config.scaling_factor
        input_ids = self.input_ids[indices, torch.randint(choices, (count,), generator=generator)]
        dropped = torch.rand(count, generator=generator) < config.caption_dropout
        input_ids = torch.where(dropped[:, None], self.empty, input_ids)
        # Timesteps with a density that rises with t, as it is in noise that shapes are decided; one
        # from each of `count` equal shares of it, for less variance per batch.
        quantiles = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        timesteps = (quantiles.sqrt() * 1000).long().clamp(max=999)
        noise = torch.randn(latents.shape, generator=generator)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = self.scheduler.get_velocity(latents, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16):
            prompt_embeds = self.text_encoder(input_ids).last_hidden_state
            output = self.training_unet(noisy, timesteps, prompt_embeds).sample
        error = F.mse_loss(output.float(), target, reduction="none").mean((1, 2, 3))  # [B]
        weight = self.noise_process.loss_weight(timesteps, config.snr_gamma)
        return {"loss": (weight * error).mean(), "mse": error.detach().mean()}

    @torch.no_grad()
    def sample(self, path: Path) -> None:
        """Two pictures for each of twelve prompts: DPM-Solver++, 20 steps, guidance 4."""
        scheduler = DPMSolverMultistepScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(20)
        prompts = [prompt for prompt in SAMPLE_PROMPTS for _ in range(2)]
        ids = torch.cat([self._tokenize(prompts), self.empty.expand(len(prompts), -1)])
        prompt_embeds = self.text_encoder(ids).last_hidden_state
        shape = (len(prompts), *self.means.shape[1:])
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for timestep in scheduler.timesteps:
            output = self.unet(torch.cat([latents] * 2), timestep, prompt_embeds).sample
            prompted, empty = output.chunk(2)
            latents = scheduler.step(empty + 4 * (prompted - empty), timestep, latents).prev_sample
        pixels = to_uint8(self.vae.decode(latents / self.vae.config.scaling_factor).sample)
        save_rows([pixels[0::2], pixels[1::2]], path)
