"""What validation pictures of one subject are held against: its photos, the prompts, the frozen base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from data_prep.captions import fill_template
from finetune import scores
from finetune.base import BasePipeline
from finetune.checkpoint_rule import Point, Scale
from finetune.encoders import Encoder, ScorersConfig, load_encoder, load_text_encoder
from finetune.generate import SamplingConfig, generate
from finetune.photos import ScoredPhoto
from finetune.results import score_key
from finetune.seeding import derive_seed


@dataclass(frozen=True)
class Judges:
    """The networks that judge along training."""

    subject: Encoder
    prompt: Encoder
    """Reads texts too."""

    @staticmethod
    def load(names: ScorersConfig, *, device: torch.device | str) -> Judges:
        """Of names with defaults filled in. Raises `ConfigError` or `ArtifactError`."""
        subject = load_encoder(names.subject[0], device=device)
        return Judges(subject, load_text_encoder(str(names.prompt), device=device))

    def of(self, id: str) -> str:
        """Name of the network that makes a score."""
        encoder = self.prompt if scores.score_info(id).encoder == "prompt" else self.subject
        return encoder.card.name


def noise_seeds(template: str, num_images: int) -> list[int]:
    """Noise seeds of a validation prompt's pictures: the same at every step, in every run."""
    return [derive_seed(0, f"validation/{template}", index) for index in range(num_images)]


class Yardstick:
    """What validation pictures of one subject are held against; made while the base is as it was loaded."""

    def __init__(
        self,
        base: BasePipeline,
        photos: Sequence[ScoredPhoto],
        *,
        templates: Sequence[str],
        class_noun: str,
        num_images: int,
        sampling: SamplingConfig,
        judges: Judges,
    ) -> None:
        """`sampling` says the pictures' size; `class_noun` stands for the subject in the base's prompts."""
        self.templates = sorted(templates, key=lambda text: "{subject}" not in text)
        self.num_subject = sum("{subject}" in text for text in templates)
        self.class_noun, self.num_images, self.sampling = class_noun, num_images, sampling
        self.judges = judges
        names = [photo.name for photo in photos]
        self.photos = scores.embed_images(judges.subject, [photo.image for photo in photos], names)
        self.copy_threshold = scores.copy_threshold(self.photos)
        texts = [
            self.fill(template, class_noun)
            for template in self.templates[: self.num_subject]
            for _ in range(num_images)
        ]
        self.texts = scores.embed_texts(judges.prompt, texts)
        images = self.pictures(base, class_noun)
        about_subject, others = self._split(images)
        self.base_others = scores.embed_images(
            judges.subject, others, self._names(others, "frozen base")
        )
        own = scores.embed_images(
            judges.prompt, about_subject, self._names(about_subject, "frozen base")
        )
        noise = [
            scores.diversity(self.base_others.part(start, start + num_images))
            for start in range(0, len(others), num_images)
        ]
        self.scale = Scale(
            prompt_fidelity=float(np.mean(scores.prompt_fidelity(own, self.texts))),
            noise=float(np.mean(noise)),
        )

    def fill(self, template: str, subject: str) -> str:
        """A validation prompt with the subject's words."""
        return fill_template(
            template, subject=subject, class_noun=self.class_noun, field="validation.prompts"
        )

    def pictures(self, base: BasePipeline, subject: str) -> list[Image.Image]:
        """Pictures of the base as it stands, prompt by prompt, those of the subject first."""
        prompts = [self.fill(t, subject) for t in self.templates for _ in range(self.num_images)]
        seeds = [seed for t in self.templates for seed in noise_seeds(t, self.num_images)]
        return generate(base, prompts, seeds, self.sampling)

    def _split(self, images: list[Image.Image]) -> tuple[list[Image.Image], list[Image.Image]]:
        count = self.num_subject * self.num_images
        return images[:count], images[count:]

    def _names(self, images: Sequence[Image.Image], whose: str) -> list[str]:
        return [f"validation picture {number} of {whose}" for number in range(len(images))]

    def measure(self, images: list[Image.Image], *, step: int) -> tuple[Point, dict[str, float]]:
        """The point of pictures that `pictures` made, and its scores by key."""
        judges = self.judges
        about_subject, others = self._split(images)
        names = self._names(about_subject, f"step {step}")
        own = scores.embed_images(judges.subject, about_subject, names)
        read = scores.embed_images(judges.prompt, about_subject, names)
        moved = scores.embed_images(judges.subject, others, self._names(others, f"step {step}"))
        copies = scores.copy(own, self.photos)
        found = {
            "subject_fidelity": scores.subject_fidelity(own, self.photos),
            "prompt_fidelity": scores.prompt_fidelity(read, self.texts),
            "drift": scores.drift(moved, self.base_others),
            "copy": copies,
            "copy_share": scores.copies(copies, self.copy_threshold),
        }
        means = {id: float(np.mean(values)) for id, values in found.items()}
        point = Point(
            step,
            subject_fidelity=means["subject_fidelity"],
            prompt_fidelity=means["prompt_fidelity"],
            drift=means["drift"],
            copy_share=means["copy_share"],
        )
        return point, {score_key(id, judges.of(id)): mean for id, mean in means.items()}
