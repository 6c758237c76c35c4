"""A linear start for `AutoencoderKL`: principal components in, mean colours out.

An autoencoder from random weights spends many thousand steps before its chain of strided and
normalised convolutions passes on so much as a colour. So it starts as a linear one: the encoder's
main path is a hierarchical principal component analysis of the pictures, the decoder's main path
repeats each latent's mean colour, and all residual branches are silent. Training starts from a
sharp thumbnail instead of from noise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn


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

    # Encoder: pixels -> 2 x 2 patches -> ... -> components of the patch of one latent position.
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
    # Between none and full whitening: coarse components stay larger than fine ones, as in pictures.
    spread = (deviations[:latent_channels] * deviations[0]).sqrt()
    spread = spread.clamp(min=0.05 * float(deviations[0]))
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
    color = F.avg_pool2d(pixel_values, 2 ** (len(encoder.down_blocks) - 1))
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
