"""Stage 1: the autoencoder, reconstruction and KL (Kingma & Welling 2014; Rombach et al. 2022, §3.1).

An `AutoencoderKL` from random weights spends many thousand steps before its chain of strided and
normalised convolutions passes on so much as a colour. So it starts as a linear one: the encoder's
main path is a hierarchical principal component analysis of the pictures, the decoder's main path
repeats each latent's mean colour, and all residual branches are silent. Training starts from a
sharp thumbnail instead of from noise.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from pydantic import Field
from torch import Tensor, nn

from finetune.pretrain.data import Pictures
from finetune.pretrain.stage import StageConfig, save_rows, to_uint8


class AutoencoderConfig(StageConfig):
    """Shape and training of the autoencoder: 8 × 8 pixels become one latent position."""

    block_out_channels: tuple[int, int, int, int] = (32, 64, 96, 96)
    """Channels at full, half, quarter and eighth resolution; the second at least 48."""
    latent_channels: int = Field(8, gt=0)
    """Channels of the latents."""
    crop_size: int = Field(64, gt=0)
    """Training works on square crops of this many pixels."""
    kl_weight: float = Field(1e-3, ge=0)
    """Weight of the KL divergence to N(0, 1), averaged over latent elements."""
    gradient_weight: float = Field(0.5, ge=0)
    """Weight of the absolute error of horizontal and vertical pixel differences: sharp edges."""


def principal_components(samples: Tensor, num_components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [D], leading directions [K, D] and standard deviations [K] of `samples` [N, D]."""
    mean = samples.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((samples - mean).T))
    order = torch.arange(len(values) - 1, len(values) - 1 - num_components, -1)
    return mean, vectors[:, order].T.contiguous(), values[order].clamp(min=0).sqrt()


_CONSTANT = 40.0
"""Size of two constant channels, +c and -c, that fix the statistics of a closing group norm."""
_OFFSET = 6.0
"""Shift that puts a channel where SiLU is a straight line."""


@torch.no_grad()
def _pass_through_norm(norm: nn.GroupNorm, out: nn.Conv2d, linear: slice, scale: float) -> Tensor:
    """Make SiLU(norm(x)) linear in the channels `linear`; returns the bias that `out` must undo.

    The group holds two constant channels ±c, so its mean is near 0 and its deviation near
    c·sqrt(2 / n) whatever the picture; the norm's weight takes that deviation back.
    """
    per_group = norm.num_channels // norm.num_groups
    deviation = _CONSTANT * (2 / per_group) ** 0.5
    norm.weight[linear] = deviation * scale
    norm.bias[linear] = _OFFSET
    nn.init.zeros_(out.weight)
    if out.bias is not None:
        nn.init.zeros_(out.bias)
    return F.silu(torch.tensor(_OFFSET))


@torch.no_grad()
def start_linear(vae: AutoencoderKL, pixel_values: Tensor) -> None:
    """Set `vae` to the linear autoencoder described above, fitted to `pixel_values` [N, 3, H, W]."""
    for module in vae.modules():
        if type(module).__name__ == "ResnetBlock2D":
            module.conv2.weight.zero_()
            module.conv2.bias.zero_()
            if module.conv_shortcut is not None:
                nn.init.dirac_(module.conv_shortcut.weight)
                module.conv_shortcut.bias.zero_()
        if type(module).__name__ == "Attention":
            module.to_out[0].weight.zero_()
            module.to_out[0].bias.zero_()
    latent_channels = vae.config.latent_channels

    # Encoder: pixels -> 2 x 2 patches -> ... -> components of 8 x 8 patches.
    encoder = vae.encoder
    encoder.conv_in.weight *= 0.1
    encoder.conv_in.weight[:3] = 0
    encoder.conv_in.weight[range(3), range(3), 1, 1] = 1
    encoder.conv_in.bias.zero_()
    features, kept = pixel_values, 3
    for block in encoder.down_blocks[:-1]:
        conv = block.downsamplers[0].conv
        patches = F.pixel_unshuffle(features, 2).permute(0, 2, 3, 1).reshape(-1, 4 * kept)
        width = min(4 * kept, conv.out_channels - (2 if block is encoder.down_blocks[-2] else 0))
        chosen = patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))]
        _, directions, deviations = principal_components(chosen[:100_000], width)
        conv.weight *= 0.1
        conv.weight[:width] = 0
        # pixel_unshuffle orders its channels (channel, row, column), as does this kernel's view.
        conv.weight[:width, :kept, :2, :2] = directions.view(width, kept, 2, 2)
        conv.bias.zero_()
        features = F.conv2d(F.pixel_unshuffle(features, 2), directions[:, :, None, None])
        kept = width
    constants = conv.weight[-2:]
    constants.zero_()
    conv.bias[-2], conv.bias[-1] = _CONSTANT, -_CONSTANT
    # Channels of one group only: move the constants into the first group, beside the components.
    per_group = encoder.conv_norm_out.num_channels // encoder.conv_norm_out.num_groups
    if per_group < latent_channels + 2:
        raise ValueError(
            f"The first group needs {latent_channels + 2} channels, it has {per_group}."
        )
    swap = torch.arange(conv.out_channels)
    swap[[per_group - 2, per_group - 1]], swap[[-2, -1]] = (
        swap[[-2, -1]].clone(),
        swap[[per_group - 2, per_group - 1]].clone(),
    )
    conv.weight.copy_(conv.weight[swap].clone())
    conv.bias.copy_(conv.bias[swap].clone())
    mean = features[:, :latent_channels].mean((0, 2, 3))
    scale = 0.5 / deviations[0]
    offset = _pass_through_norm(
        encoder.conv_norm_out, encoder.conv_out, slice(0, latent_channels), float(scale)
    )
    spread = deviations[:latent_channels].clamp(min=0.05 * float(deviations[0]))
    gain = 1 / (spread * scale)
    index = range(latent_channels)
    encoder.conv_out.weight[index, index, 1, 1] = gain
    encoder.conv_out.bias[:latent_channels] = -gain * offset - mean / spread
    encoder.conv_out.bias[latent_channels:] = -5.0
    nn.init.dirac_(vae.quant_conv.weight)
    vae.quant_conv.bias.zero_()
    nn.init.dirac_(vae.post_quant_conv.weight)
    vae.post_quant_conv.bias.zero_()

    # Decoder: repeat the latents at full resolution, then the least-squares colour of each.
    decoder = vae.decoder
    for conv in [decoder.conv_in] + [
        block.upsamplers[0].conv for block in decoder.up_blocks if block.upsamplers
    ]:
        noise = 0.1 * conv.weight.clone()
        nn.init.dirac_(conv.weight)
        conv.weight += noise
        conv.weight[:latent_channels] -= noise[:latent_channels]
        conv.bias.zero_()
    latents = features[:, :latent_channels] / spread[:, None, None] - (mean / spread)[:, None, None]
    color = F.avg_pool2d(pixel_values, 8)
    table = (
        torch.cat([latents, torch.ones_like(latents[:, :1])], 1).permute(0, 2, 3, 1).flatten(0, 2)
    )
    solution = torch.linalg.lstsq(table, color.permute(0, 2, 3, 1).flatten(0, 2)).solution
    per_group = decoder.conv_norm_out.num_channels // decoder.conv_norm_out.num_groups
    last = decoder.up_blocks[-1].resnets[0].conv_shortcut
    last.weight[:per_group] = 0
    last.weight[:3, :latent_channels, 0, 0] = solution[:-1].T
    last.bias[:3] = solution[-1]
    last.bias[per_group - 2], last.bias[per_group - 1] = _CONSTANT, -_CONSTANT
    offset = _pass_through_norm(decoder.conv_norm_out, decoder.conv_out, slice(0, 3), 1.0)
    decoder.conv_out.weight[range(3), range(3), 1, 1] = 1
    decoder.conv_out.bias.fill_(-float(offset))


class AutoencoderStage:
    """Trains an `AutoencoderKL` on crops of pictures."""

    name = "autoencoder"

    def __init__(self, config: AutoencoderConfig, pictures: Pictures) -> None:
        torch.manual_seed(config.seed)
        self.config, self.pictures = config, pictures
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=config.block_out_channels,
            layers_per_block=1,
            latent_channels=config.latent_channels,
            norm_num_groups=2,
            sample_size=pictures.pixels.shape[1],
        )
        first = torch.arange(0, len(pictures.pixels), max(1, len(pictures.pixels) // 1000))
        start_linear(self.vae, pictures.pixel_values(first[:1000]))
        self.vae.to(memory_format=torch.channels_last)
        self.modules = nn.ModuleDict({"vae": self.vae})

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
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = self.vae.encode(pixels).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            noise = torch.randn(mean.shape, generator=generator)
            decoded = self.vae.decode(mean + (0.5 * logvar).exp() * noise).sample
        error = decoded.float() - pixels
        absolute = error.abs().mean()
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        total = absolute + config.gradient_weight * edges + config.kl_weight * divergence
        return {"loss": total, "l1": absolute.detach(), "kl": divergence.detach()}

    @torch.no_grad()
    def sample(self, path: Path) -> None:
        """Twelve pictures above their reconstructions."""
        pixels = self.pictures.pixel_values(list(range(0, min(36, len(self.pictures.pixels)), 3)))
        decoded = self.vae.decode(self.vae.encode(pixels).latent_dist.mode()).sample
        save_rows([to_uint8(pixels), to_uint8(decoded)], path)
