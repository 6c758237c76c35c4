"""What encoders are called, and which ones judge by default. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from data_prep.config import Section
from finetune.bases import embedded_bases

EMBEDDED_CLIP = "clay-clip"
EMBEDDED_JUDGE = "clay-judge"
EMBEDDED_SCORERS = (EMBEDDED_CLIP, EMBEDDED_JUDGE)
"""Encoders that come with the package, beside the embedded base; the judge's reads no texts."""


@dataclass(frozen=True)
class Preset:
    """A published encoder."""

    hub_id: str
    kind: str
    meaning: str


PRESETS = {
    "clip-b32": Preset("openai/clip-vit-base-patch32", "clip", "CLIP ViT-B/32"),
    "clip-l14": Preset("openai/clip-vit-large-patch14", "clip", "CLIP ViT-L/14"),
    "dino-s16": Preset("facebook/dino-vits16", "dino", "DINO ViT-S/16, DreamBooth's"),
    "dino-b16": Preset("facebook/dino-vitb16", "dino", "DINO ViT-B/16"),
    "dinov2-s14": Preset("facebook/dinov2-small", "dinov2", "DINOv2 ViT-S/14"),
    "dinov2-b14": Preset("facebook/dinov2-base", "dinov2", "DINOv2 ViT-B/14"),
}
"""Short names of what papers score with."""


class ScorersConfig(Section):
    """Which encoders judge the pictures."""

    subject: tuple[str, ...] = ()
    """For everything that compares pictures with pictures; the first one's numbers make the verdict. Empty:
    `clay-clip` for an embedded base, else `dino-s16`. Each is a preset, PRESET=FOLDER for weights that lie
    elsewhere, a Hub id or a folder."""
    prompt: str | None = Field(None, min_length=1)
    """For how well pictures fit their prompts: an encoder of the kind CLIP. Null: `clay-clip` for an embedded
    base, else `clip-b32`."""

    def resolved(self, base_source: str | None) -> ScorersConfig:
        """With the defaults for a base (None: pictures of another tool) filled in."""
        embedded = base_source in embedded_bases()
        subject = self.subject or ((EMBEDDED_CLIP,) if embedded else ("dino-s16",))
        return ScorersConfig(
            subject=subject, prompt=self.prompt or (EMBEDDED_CLIP if embedded else "clip-b32")
        )
