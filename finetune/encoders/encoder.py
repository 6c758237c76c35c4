"""What an encoder is to the scores: pictures, and perhaps texts, to unit vectors, with a record of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from finetune.errors import ConfigError
from finetune.results import EncoderInfo

COSINE = "cosine of unit embeddings, -1 … 1, neither multiplied nor cut off"


@dataclass(frozen=True)
class Network:
    """A loaded network as functions; what a kind of encoder has to offer."""

    module: nn.Module
    """Moved to the device; frozen and in eval mode."""
    dimensions: int
    preprocessing: str
    to_pixels: Callable[[Image.Image], Float[Tensor, "3 height width"]]
    image_features: Callable[[Float[Tensor, "batch 3 height width"]], Float[Tensor, "batch dim"]]
    tokenize: Callable[[Sequence[str]], Int[Tensor, "batch tokens"]] | None = None
    text_features: Callable[[Int[Tensor, "batch tokens"]], Float[Tensor, "batch dim"]] | None = None


class Encoder:
    """A network with its record; gives unit embeddings, float32, on the CPU."""

    def __init__(
        self, card: EncoderInfo, network: Network, *, device: str | torch.device = "cpu"
    ) -> None:
        self.card = card
        self._network, self._device = network, torch.device(device)
        network.module.to(self._device)

    def require_texts(self) -> None:
        """Raise `ConfigError` unless `embed_texts` can be called."""
        if self._network.tokenize is None or self._network.text_features is None:
            raise ConfigError(
                f"The scorer '{self.card.name}' ({self.card.kind}) reads no texts, so it cannot tell how "
                "well pictures fit their prompts. Choose one of the kind CLIP, for instance clip-b32."
            )

    @torch.no_grad()
    def embed_images(
        self, images: Sequence[Image.Image], *, batch_size: int = 64
    ) -> Float[Tensor, "count dimensions"]:
        """Unit embeddings of pictures."""
        network, parts = self._network, []
        for start in range(0, len(images), batch_size):
            pixels = [network.to_pixels(image) for image in images[start : start + batch_size]]
            parts.append(network.image_features(torch.stack(pixels).to(self._device)).cpu())
        return self._unit(parts)

    @torch.no_grad()
    def embed_texts(
        self, texts: Sequence[str], *, batch_size: int = 256
    ) -> Float[Tensor, "count dimensions"]:
        """Unit embeddings of texts; what exceeds the encoder's context is cut off. Raises `ConfigError`."""
        self.require_texts()
        tokenize, features = self._network.tokenize, self._network.text_features
        assert tokenize is not None
        assert features is not None
        parts = [
            features(tokenize(texts[start : start + batch_size]).to(self._device)).cpu()
            for start in range(0, len(texts), batch_size)
        ]
        return self._unit(parts)

    def _unit(self, parts: Sequence[Tensor]) -> Float[Tensor, "count dimensions"]:
        if not parts:
            return torch.zeros(0, self.card.dimensions)
        return F.normalize(torch.cat(list(parts)).float(), dim=-1)
