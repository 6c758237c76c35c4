"""A judge of clay pictures: which attributes a picture shows, and whose picture it is.

A residual network reads the picture; for each attribute a learned query attends to the cells of its
last map (attention pooling; Lee et al. 2019, "Set Transformer", §3.2), as hats and scarves are few cells
of many. One more query gives an embedding of the subject's identity, near for two views of one subject
and far for two subjects. What the labels are is told by its configuration alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from data_prep.transforms import crop_square, to_pixel_values
from finetune.errors import ArtifactError

CONFIG, WEIGHTS = "judge.json", "model.safetensors"


class Judge(nn.Module):
    """Attribute heads and an identity embedding over one residual network."""

    def __init__(
        self,
        *,
        labels: Mapping[str, Sequence[str]],
        image_size: int,
        channels: Sequence[int],
        depths: Sequence[int],
        identity_dim: int,
    ) -> None:
        super().__init__()
        self.labels = {name: tuple(values) for name, values in labels.items()}
        self.image_size, self.identity_dim = image_size, identity_dim
        backbone = ResNetConfig(
            embedding_size=channels[0],
            hidden_sizes=list(channels),
            depths=list(depths),
            layer_type="basic",
        )
        width = channels[-1]
        self.backbone = ResNetModel(backbone)
        self.queries = nn.Parameter(torch.randn(len(self.labels) + 1, width) * width**-0.5)
        self.positions = nn.Parameter(torch.zeros(width, 8, 8))
        self.pool = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, len(values)) for name, values in self.labels.items()}
        )
        self.identity_head = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, identity_dim)
        )

    def forward(
        self, pixel_values: Float[Tensor, "batch 3 size size"]
    ) -> tuple[dict[str, Tensor], Float[Tensor, "batch dimensions"]]:
        """Logits of each attribute, [batch, labels], and unit identity embeddings.

        Pixels are in [-1, 1].
        """
        features = self.backbone(pixel_values).last_hidden_state
        features = features + F.interpolate(self.positions[None], features.shape[-2:])
        cells = features.flatten(2).transpose(1, 2)  # [B, cells, width]
        queries = self.queries.expand(len(cells), -1, -1)
        pooled = self.norm(self.pool(queries, cells, cells, need_weights=False)[0])
        logits = {name: head(pooled[:, i]) for i, (name, head) in enumerate(self.heads.items())}
        return logits, F.normalize(self.identity_head(pooled[:, -1]).float(), dim=-1)

    def pixel_values(self, images: Sequence[Image.Image]) -> Float[Tensor, "batch 3 size size"]:
        """Pictures resized and cropped to the judge's square, in [-1, 1]."""
        squares = (crop_square(image.convert("RGB"), self.image_size)[0] for image in images)
        return torch.stack([to_pixel_values(square) for square in squares])

    def mirrored_mean(
        self, pixel_values: Float[Tensor, "batch 3 size size"]
    ) -> tuple[dict[str, Tensor], Float[Tensor, "batch dimensions"]]:
        """What `forward` gives, averaged over pictures and their mirror images; embeddings are unit."""
        logits, embeds = self(pixel_values)
        mirrored_logits, mirrored_embeds = self(pixel_values.flip(-1))
        both = {name: (values + mirrored_logits[name]) / 2 for name, values in logits.items()}
        return both, F.normalize(embeds + mirrored_embeds, dim=-1)

    @torch.no_grad()
    def _answers(
        self, images: Sequence[Image.Image], batch_size: int
    ) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for start in range(0, len(images), batch_size):
            yield self.mirrored_mean(self.pixel_values(images[start : start + batch_size]))

    def embed_images(
        self, images: Sequence[Image.Image], *, batch_size: int = 64
    ) -> Float[Tensor, "count dimensions"]:
        """Unit identity embeddings of pictures; the same of a picture and its mirror image."""
        parts = [embeds for _, embeds in self._answers(images, batch_size)]
        return torch.cat(parts) if parts else torch.empty(0, self.identity_dim)

    def tell(self, images: Sequence[Image.Image], *, batch_size: int = 64) -> list[dict[str, str]]:
        """The most likely label of each attribute; the same of a picture and its mirror image."""
        told = []
        for logits, embeds in self._answers(images, batch_size):
            chosen = {name: values.argmax(1).tolist() for name, values in logits.items()}
            for index in range(len(embeds)):
                told.append({name: self.labels[name][c[index]] for name, c in chosen.items()})
        return told

    def save_pretrained(self, folder: Path) -> None:
        """Write configuration and weights into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        backbone = self.backbone.config
        config = {
            "labels": self.labels,
            "image_size": self.image_size,
            "channels": list(backbone.hidden_sizes),
            "depths": list(backbone.depths),
            "identity_dim": self.identity_dim,
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    @staticmethod
    def from_pretrained(folder: Path) -> Judge:
        """Read what `save_pretrained` wrote, as float32, in eval mode and frozen.

        Raises `ArtifactError` where `folder` holds no judge.
        """
        try:
            config = json.loads((folder / CONFIG).read_text("utf-8"))
            judge = Judge(**config)
            judge.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(f"The judge in {folder} cannot be read: {error}") from error
        return judge.eval().requires_grad_(False)
