"""The judge's stage: attributes and identities of renders, told apart by a network that sees nothing else.

Cross-entropy for each attribute, and a supervised contrast of identities (Khosla et al. 2020, eq. 2) over
pairs of views of one subject. Half of a batch's pairs are subjects of one class, which the class does not
tell apart. Pictures are mirrored, turned, zoomed and moved, so that small things are learnt by their looks
and not by where they were.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from data_prep.clay import world
from finetune.errors import DataError
from finetune.files import atomic_folder
from finetune.judge import Judge
from finetune.pretrain.data import Pictures, with_share_of
from finetune.pretrain.stage import CPU, StageConfig, check_stages, save_nearest

NOTHING = "none"
"""What a picture shows where nothing is worn."""
LABELS: dict[str, tuple[str, ...]] = {
    "class": world.CLASSES,
    "color": tuple(world.COLORS),
    "color2": tuple(world.COLORS),
    "pattern": tuple(world.PATTERNS),
    "accessory": (NOTHING, *world.ACCESSORIES),
    "accessory_color": tuple(world.COLORS),
    "place": world.PLACES,
    "time": tuple(world.TIMES),
    "style": tuple(world.STYLES),
}
_ONLY_COLORS = frozenset({"color", "color2", "accessory_color", "place", "time"})
"""Attributes that a style without colours hides; shapes stay."""


class JudgeConfig(StageConfig):
    """Shape and training of the judge."""

    batch_size: int = Field(gt=2)
    """Pictures per step; three of eight are a subject's first view, and as many its second."""
    channels: tuple[int, ...] = (48, 96, 192)
    """Channels of the residual stages, whose pictures shrink by 4, 8, 16."""
    depths: tuple[int, ...] = (2, 3, 4)
    """Residual blocks of the stages."""
    identity_dim: int = Field(128, gt=0)
    """Dimensions of the identity embedding."""
    contrast_weight: float = Field(0.15, ge=0)
    """Weight of the identity contrast beside the mean cross-entropy of the attributes."""
    temperature: float = Field(0.1, gt=0)
    """Of the contrast."""
    max_turn: float = Field(8.0, ge=0)
    """Pictures are turned by up to this many degrees."""
    max_zoom: float = Field(0.15, ge=0, lt=1)
    """Pictures grow or shrink by up to this share."""
    max_shift: float = Field(0.08, ge=0, lt=1)
    """Pictures are moved by up to this share of their width."""
    worn_share: float = Field(0.75, ge=0, le=1)
    """Share, of the pictures that are in no pair, drawn from those with something worn. Of all it is one in
    five, and a judge that learns so sees nothing worn where it is in doubt."""

    @model_validator(mode="after")
    def _shapes_fit(self) -> JudgeConfig:
        check_stages("channels", self.channels, "depths", self.depths)
        if self.channels[-1] % 4:
            raise ValueError("the last of channels must be a multiple of 4, for as many heads")
        return self


def truth_of(identity: world.Identity, view: world.View) -> dict[str, str | None]:
    """The true label of each attribute; None where a picture does not tell it."""
    kind, color = view.accessory or (NOTHING, None)
    truth: dict[str, str | None] = {
        "class": identity.class_noun,
        "color": identity.color,
        "color2": None if identity.pattern == "plain" else identity.color2,
        "pattern": identity.pattern,
        "accessory": kind,
        "accessory_color": color,
        "place": view.place,
        "time": view.time,
        "style": view.style,
    }
    if world.untold_by(view.style):
        truth.update(dict.fromkeys(_ONLY_COLORS))
    return truth


def targets_of(truths: list[tuple[world.Identity, world.View]]) -> dict[str, Tensor]:
    """Indices into `LABELS`, -100 where there is nothing to tell, [N] per attribute."""
    rows = [truth_of(identity, view) for identity, view in truths]
    return {
        name: torch.tensor(
            [-100 if row[name] is None else labels.index(str(row[name])) for row in rows]
        )
        for name, labels in LABELS.items()
    }


def identity_contrast(embeds: Tensor, identities: Tensor, temperature: float) -> Tensor:
    """Supervised contrast (Khosla et al. 2020, L_out): views of one identity attract each other.

    `embeds` [B, D] are unit, `identities` [B] their subjects, on the CPU; views without a partner do not
    count.
    """
    logits = embeds @ embeds.T / temperature
    itself = torch.eye(len(embeds), dtype=torch.bool)
    positive = (identities[:, None] == identities) & ~itself
    paired, count = positive.any(1).nonzero().flatten(), positive.sum(1).clamp(min=1)
    itself, positive, paired, count = (
        t.to(embeds.device) for t in (itself, positive, paired, count)
    )
    log_share = logits - logits.masked_fill(itself, -math.inf).logsumexp(1, keepdim=True)
    return (-(log_share * positive).sum(1) / count)[paired].mean()


class JudgeStage:
    """Trains a `Judge` on pictures and their truths."""

    name = "judge"
    networks: tuple[str, ...] = ("network",)

    def __init__(
        self, config: JudgeConfig, pictures: Pictures, *, device: torch.device = CPU
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.pictures, self.device = config, pictures, device
        self.targets = targets_of(pictures.truths)
        views = defaultdict(list)
        for index, (identity, view) in enumerate(pictures.truths):
            if not world.untold_by(view.style):
                views[identity].append(index)
        pairs = {identity: indices for identity, indices in views.items() if len(indices) > 1}
        if not pairs:
            raise DataError("No subject has two pictures in colour: render more pictures.")
        self.views = list(pairs.values())
        nouns = [identity.class_noun for identity in pairs]
        self.alike = [
            torch.tensor([index for index, other in enumerate(nouns) if other == noun])
            for noun in sorted(set(nouns))
        ]
        worn = [i for i, (_, view) in enumerate(pictures.truths) if view.accessory is not None]
        self.worn = torch.tensor(worn, dtype=torch.long)
        self.judge = Judge(
            labels=LABELS,
            image_size=pictures.pixels.shape[1],
            channels=config.channels,
            depths=config.depths,
            identity_dim=config.identity_dim,
        ).train()
        self.judge.backbone.to(memory_format=torch.channels_last)
        self.modules = nn.ModuleDict({"judge": self.judge}).to(device)
        self.made_of = {"pictures": pictures.fingerprint}

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Indices of pictures [B] and whose they are [B]: pairs of views, and lone ones of any style."""
        pairs = self.config.batch_size * 3 // 8
        alike = self.alike[int(torch.randint(len(self.alike), (), generator=generator))]
        near = alike[torch.randperm(len(alike), generator=generator)][: pairs // 2]
        others = torch.randperm(len(self.views), generator=generator)
        others = others[~torch.isin(others, near)][: pairs - len(near)]
        indices, identities = [], []
        for index in torch.cat([near, others]).tolist():
            views = self.views[index]
            for number in torch.randperm(len(views), generator=generator)[:2].tolist():
                indices.append(views[number])
                identities.append(index)
        alone = self.config.batch_size - len(indices)
        lone = torch.randint(len(self.pictures.pixels), (alone,), generator=generator)
        lone = with_share_of(self.worn, lone, self.config.worn_share, generator)
        return (
            torch.cat([torch.tensor(indices), lone]),
            torch.cat([torch.tensor(identities), -1 - torch.arange(alone)]),
        )

    def _moved(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Pictures [B, 3, H, W] mirrored, turned, zoomed and moved at random, edges repeated."""
        count, config = len(pixels), self.config
        turn, zoom, dx, dy = 2 * torch.rand(4, count, generator=generator) - 1
        turn, zoom = turn * math.radians(config.max_turn), 1 + zoom * config.max_zoom
        side = 1 - 2 * torch.randint(2, (count,), generator=generator)
        rows = [
            torch.stack(
                [side * zoom * turn.cos(), -zoom * turn.sin(), 2 * dx * config.max_shift], 1
            ),
            torch.stack(
                [side * zoom * turn.sin(), zoom * turn.cos(), 2 * dy * config.max_shift], 1
            ),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
        return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean cross-entropy of the attributes and the contrast; shares of right answers."""
        indices, identities = self.draw(generator)
        pixels = self._moved(self.pictures.pixel_values(indices), generator)
        pixels = pixels.contiguous(memory_format=torch.channels_last).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits, embeds = self.judge(pixels)
        errors, right = [], {}
        for name, values in logits.items():
            target = self.targets[name][indices]
            told = (target >= 0).nonzero().flatten()
            if len(told):
                target, values = target[told].to(self.device), values[told.to(self.device)]
                errors.append(F.cross_entropy(values.float(), target))
                right[name] = (values.argmax(1) == target).float().mean()
        contrast = identity_contrast(embeds, identities, self.config.temperature)
        total = torch.stack(errors).mean() + self.config.contrast_weight * contrast
        return {"loss": total, "contrast": contrast.detach(), **right}

    def sample(self, path: Path) -> None:
        """Pictures in the first row, below each the five that the judge holds for the same subject."""
        self.judge.eval()
        with torch.no_grad():
            pixels = self.pictures.pixel_values(list(range(min(300, len(self.pictures.pixels)))))
            _, embeds = self.judge(pixels.to(self.device))
        self.judge.train()
        save_nearest(pixels, embeds, path)

    def save(self, folder: Path) -> None:
        """Write `network`."""
        with atomic_folder(folder / "network") as target:
            self.judge.save_pretrained(target)
