"""Stage 2: text-image contrast (CLIP; Radford et al. 2021), from which scores and text come.

Two things make a small data set go further. Pictures whose captions agree are positives of each
other (UniCL; Yang et al. 2022, eq. 2-4). And each batch tells its captions at one of several levels of
detail, from "a photo of a dog" to everything: with full captions alone, colour and place tell
nearly all pictures of a batch apart, and nothing asks the encoders for the class.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTokenizer, ResNetConfig

from data_prep.clay.world import ATTRIBUTES, caption, untold_by
from finetune.dual_encoder import DualEncoder
from finetune.errors import ConfigError
from finetune.files import atomic_folder
from finetune.pretrain.data import Pictures
from finetune.pretrain.stage import CPU, StageConfig, check_stages, save_nearest
from finetune.pretrain.tokenizer import tokenize

LEVELS = (
    frozenset({"style"}),
    frozenset({"style", "color"}),
    frozenset({"style", "place", "time"}),
    frozenset({"style", "accessory"}),
    frozenset({"style", "color", "pattern"}),
    ATTRIBUTES,
    ATTRIBUTES,
)
"""What the captions of a batch tell besides the class; equally likely."""


class ContrastConfig(StageConfig):
    """Shape and training of the two encoders."""

    hidden_size: int = Field(192, gt=0)
    """Width of the text transformer; the denoiser's cross-attention sees it."""
    text_layers: int = Field(4, gt=0)
    """Layers of the text encoder."""
    image_channels: tuple[int, ...] = (48, 96, 192, 320)
    """Channels of the image encoder's stages, a ResNet whose pictures shrink by 4, 8, 16, 32."""
    image_depths: tuple[int, ...] = (1, 2, 2, 1)
    """Residual blocks of the stages."""
    projection_dim: int = Field(128, gt=0)
    """Dimensions of the space in which pictures and captions are compared."""
    max_shift: int = Field(8, ge=0)
    """Pictures are moved by up to this many pixels, edges repeated, and flipped at random."""

    @property
    def num_heads(self) -> int:
        """Attention heads of the text encoder, of 48 numbers or a few more."""
        return max(1, self.hidden_size // 48)

    @model_validator(mode="after")
    def _shapes_fit(self) -> ContrastConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size must be a multiple of its {self.num_heads} heads")
        check_stages("image_channels", self.image_channels, "image_depths", self.image_depths)
        return self


def contrastive_loss(
    image_embeds: Tensor, text_embeds: Tensor, matches: Tensor, scale: Tensor
) -> Tensor:
    """UniCL of B pictures and U different captions; `matches` [B] is each picture's caption.

    Cross-entropy of a picture among captions, and of a caption among pictures, where all pictures
    that share it are equally right. With U = B it is CLIP's loss. Embeddings [., D] are unit.
    """
    logits = scale * image_embeds @ text_embeds.T  # [B, U]
    is_match = F.one_hot(matches, len(text_embeds)).float()
    to_text = F.cross_entropy(logits, matches)
    to_image = F.cross_entropy(logits.T, (is_match / is_match.sum(0)).T)
    return 0.5 * (to_text + to_image)


class ContrastStage:
    """Trains a `DualEncoder` on pictures and captions."""

    name = "contrast"
    networks: tuple[str, ...] = ("clip",)

    def __init__(
        self,
        config: ContrastConfig,
        pictures: Pictures,
        tokenizer: CLIPTokenizer,
        *,
        device: torch.device = CPU,
    ) -> None:
        if config.batch_size > len(pictures.pixels):
            raise ConfigError(
                f"contrast.batch_size: {config.batch_size} is more than the {len(pictures.pixels)} pictures."
            )
        torch.manual_seed(config.seed)
        self.config, self.pictures, self.tokenizer = config, pictures, tokenizer
        self.device = device
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=4 * config.hidden_size,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        vision = ResNetConfig(
            embedding_size=config.image_channels[0],
            hidden_sizes=list(config.image_channels),
            depths=list(config.image_depths),
            layer_type="basic",
        )
        self.clip = DualEncoder(
            vision=vision,
            text=text,
            image_size=pictures.pixels.shape[1],
            projection_dim=config.projection_dim,
        ).train()
        self.clip.vision_model.to(memory_format=torch.channels_last)
        self.modules = nn.ModuleDict({"clip": self.clip}).to(device)
        self.made_of = {"pictures": pictures.fingerprint}

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Contrastive loss of one batch, and how many pictures found their caption."""
        count, shift = self.config.batch_size, self.config.max_shift
        indices = torch.randperm(len(self.pictures.pixels), generator=generator)[:count]
        told = LEVELS[int(torch.randint(len(LEVELS), (), generator=generator))]
        truths = [self.pictures.truths[index] for index in indices.tolist()]
        texts = [
            caption(identity, view, told=told - untold_by(view.style)) for identity, view in truths
        ]
        different = list(dict.fromkeys(texts))
        matches = torch.tensor([different.index(text) for text in texts]).to(self.device)
        input_ids = tokenize(self.tokenizer, different).to(self.device)
        pixels = self.pictures.pixel_values(indices)
        top, left = torch.randint(2 * shift + 1, (2,), generator=generator).tolist()
        size = pixels.shape[-1]
        padded = F.pad(pixels, (shift,) * 4, mode="replicate")
        pixels = padded[:, :, top : top + size, left : left + size]
        flip = torch.rand(count, generator=generator) < 0.5
        pixels = torch.where(flip[:, None, None, None], pixels.flip(3), pixels)
        pixels = pixels.contiguous(memory_format=torch.channels_last).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            image_embeds = self.clip.get_image_features(pixels)
            text_embeds = self.clip.get_text_features(input_ids)
        image_embeds = F.normalize(image_embeds.float(), dim=-1)
        text_embeds = F.normalize(text_embeds.float(), dim=-1)
        scale = self.clip.logit_scale.exp().clamp(max=100)
        loss = contrastive_loss(image_embeds, text_embeds, matches, scale)
        hits = ((image_embeds @ text_embeds.T).argmax(1) == matches).float().mean()
        return {"loss": loss, "top1": hits}

    def sample(self, path: Path) -> None:
        """Pictures in the first row, below each the five nearest others."""
        self.clip.eval()
        with torch.no_grad():
            pixels = self.pictures.pixel_values(list(range(min(300, len(self.pictures.pixels)))))
            embeds = self.clip.get_image_features(pixels.to(self.device))
        self.clip.train()
        save_nearest(pixels, embeds, path)

    def save(self, folder: Path) -> None:
        """Write `clip`."""
        with atomic_folder(folder / "clip") as target:
            self.clip.save_pretrained(target)
