"""A small CLIP: a ResNet for pictures and a CLIP text transformer, compared in one space.

Radford et al. 2021 train both residual networks and vision transformers as image encoders. For a few
thousand small pictures the former learns far faster; transformers has no ready class that joins its
`ResNetModel` with `CLIPTextModel`, so this one does, under the same method names as `CLIPModel`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, ResNetConfig, ResNetModel

CONFIG, WEIGHTS = "dual_encoder.json", "model.safetensors"


class DualEncoder(nn.Module):
    """Image and text encoder with projections into `projection_dim` dimensions."""

    def __init__(
        self, *, vision: ResNetConfig, text: CLIPTextConfig, image_size: int, projection_dim: int
    ) -> None:
        super().__init__()
        self.image_size, self.projection_dim = image_size, projection_dim
        self.vision_model = ResNetModel(vision)
        self.text_model = CLIPTextModel(text)
        self.visual_projection = nn.Linear(vision.hidden_sizes[-1], projection_dim, bias=False)
        self.text_projection = nn.Linear(text.hidden_size, projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def get_image_features(
        self, pixel_values: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch dimensions"]:
        """Projected, not yet unit, embeddings of pictures in [-1, 1]."""
        pooled = self.vision_model(pixel_values).pooler_output.flatten(1)
        features: Tensor = self.visual_projection(pooled)
        return features

    def get_text_features(
        self, input_ids: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch dimensions"]:
        """Projected, not yet unit, embeddings of tokenized captions."""
        features: Tensor = self.text_projection(self.text_model(input_ids).pooler_output)
        return features

    def save_pretrained(self, folder: Path) -> None:
        """Write configuration and weights into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "vision": self.vision_model.config.to_diff_dict(),
            "text": self.text_model.config.to_diff_dict(),
            "image_size": self.image_size,
            "projection_dim": self.projection_dim,
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    @staticmethod
    def from_pretrained(folder: Path) -> DualEncoder:
        """Read what `save_pretrained` wrote, as float32, in eval mode and frozen."""
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        model = DualEncoder(
            vision=ResNetConfig(**config["vision"]),
            text=CLIPTextConfig(**config["text"]),
            image_size=config["image_size"],
            projection_dim=config["projection_dim"],
        )
        model.load_state_dict(load_file(folder / WEIGHTS))
        return model.eval().requires_grad_(False)
