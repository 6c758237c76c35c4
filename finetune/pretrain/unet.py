"""The network of stage 3, its forward process, and the head that aligns it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn


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


def build_unet(
    latent_shape: tuple[int, ...],
    *,
    text_size: int,
    block_out_channels: tuple[int, ...],
    layers_per_block: int,
) -> Any:
    """A `UNet2DConditionModel` for latents of `latent_shape` [C, h, w], from random weights."""
    levels = len(block_out_channels)
    unet = UNet2DConditionModel(
        sample_size=latent_shape[-1],
        in_channels=latent_shape[0],
        out_channels=latent_shape[0],
        block_out_channels=block_out_channels,
        layers_per_block=layers_per_block,
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
