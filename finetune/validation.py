"""Scores along training on prompts of their own: learning curves, early stopping, the checkpoint to keep.

Validation prompts and noise are never those a comparison ranks by. What is scored and why is in `scores`,
what follows from it in `checkpoint_rule`.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from safetensors.torch import load_file, save_file

from data_prep.config import Section
from finetune.base import BasePipeline
from finetune.checkpoint_rule import (
    Limits,
    Point,
    has_stalled,
    least_bad,
    overfits_from,
    recommended,
)
from finetune.encoders import ScorersConfig
from finetune.errors import CheckpointError, ConfigError
from finetune.files import atomic_folder, read_json, write_json
from finetune.method import Method
from finetune.prompts import read_prompts
from finetune.yardstick import Yardstick

POINTS, STATE = "points.json", "learnt.safetensors"
DEFAULT_PROMPTS = (
    "a photo of a {subject} on the grass",
    "a photo of a {subject} on a wooden floor",
    "a photo of a {class} on a white background",
    "a photo of a house in the snow",
)


class ValidationConfig(Section):
    """Looking at what is learnt along the way, by pictures of prompts that nothing is ranked by."""

    every: int | None = Field(None, gt=0)
    """Optimizer steps between looks; the last step is always looked at. Null never looks."""
    prompts: tuple[str, ...] | str = DEFAULT_PROMPTS
    """List, file or shipped set. Prompts with `{subject}` measure fidelity and copies, the others (about the
    class or something else) drift; both are needed."""
    num_images: int = Field(2, ge=2)
    """Pictures per prompt; two at least, as drift is measured against what another noise seed changes."""
    patience: int | None = Field(None, gt=0)
    """End training after this many looks that brought no better checkpoint; null trains to the end."""
    keep: Literal["recommended", "last"] | None = None
    """Which checkpoint becomes the artifact; null takes the recommended one where `patience` is set, else the
    last."""
    limits: Limits = Limits()
    """What a recommended checkpoint may cost."""
    scorers: ScorersConfig = ScorersConfig()
    """Networks that judge; the first of `subject` and that of `prompt` count. In a comparison what is not set
    here is as in its own `scorers`."""

    @property
    def keeps_recommended(self) -> bool:
        """Whether the recommended checkpoint becomes the artifact."""
        return self.keep == "recommended" or (self.keep is None and self.patience is not None)

    def is_due(self, step: int, *, last: bool) -> bool:
        """Whether the weights after `step`, which may be the last one, are looked at."""
        return self.every is not None and (last or step % self.every == 0)

    def templates(self, kind: str = "object") -> tuple[str, ...]:
        """The prompts for a kind of subject. Raises `ConfigError` if they cannot measure what is needed."""
        lines = read_prompts(self.prompts, field="validation.prompts").of(kind)
        mentions = ["{subject}" in line.text for line in lines]
        if not any(mentions) or all(mentions):
            which = "every prompt mentions" if all(mentions) else "no prompt mentions"
            raise ConfigError(
                f"validation.prompts: {which} {{subject}}. Fidelity is measured on prompts with it, drift on "
                "prompts without, so give at least one of each."
            )
        return tuple(line.text for line in lines)


class Validation:
    """The watch of one run: looks, remembers, says when to end, and puts the recommended weights back."""

    def __init__(
        self,
        config: ValidationConfig,
        yardstick: Yardstick,
        base: BasePipeline,
        method: Method,
        folder: Path,
        *,
        class_noun: str,
        checkpoint_every: int | None = None,
    ) -> None:
        """`folder` keeps points, pictures and what was learnt at recommended steps.

        `class_noun` is what the run calls the subject's class, be it another one than the yardstick's.
        """
        self.config, self.yardstick, self.base, self.method = config, yardstick, base, method
        self.folder, self.checkpoint_every = folder, checkpoint_every
        self.class_noun = class_noun
        self.points: list[Point] = []
        self.means: list[dict[str, float]] = []

    def restore(self, step: int, *, last: bool) -> bool:
        """Forget what came after `step`, look if that is missing, and tell whether the run had ended.

        A run that goes on for longer keeps the look that was its last one.
        """
        self.points, self.means = [], []
        for values in self._stored():
            if values["point"]["step"] <= step:
                self.points.append(Point(**values["point"]))
                self.means.append(values["scores"])
        if not self.points:
            shutil.rmtree(self.folder, ignore_errors=True)
        best = self._best()
        if self.config.keeps_recommended and best and not self._state(best.step).is_file():
            raise CheckpointError(
                f"{self._state(best.step)} is missing, so the recommended checkpoint could not be kept. "
                "Start the run again with --overwrite."
            )
        seen = {point.step for point in self.points}
        if step and step not in seen and self.config.is_due(step, last=last):
            return self.look(step)
        return self._ends()

    def look(self, step: int) -> bool:
        """Make and score pictures; whether training should end."""
        subject = self.method.subject_phrase(self.class_noun)
        images = self.yardstick.pictures(self.base, subject)
        point, means = self.yardstick.measure(images, step=step)
        self.points.append(point)
        self.means.append(means)
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_folder(self.folder / f"step-{step:06d}") as temporary:
            for number, image in enumerate(images):
                prompt, index = divmod(number, self.yardstick.num_images)
                image.save(temporary / f"{prompt:02d}-{index:02d}.png")
            if self.config.keeps_recommended and self._best() == point:
                learnt = self.method.state_dict(self.base)
                state = {k: v.detach().cpu().clone().contiguous() for k, v in learnt.items()}
                save_file(state, temporary / STATE)
        write_json(
            self.folder / POINTS,
            [
                {"point": asdict(point), "scores": means}
                for point, means in zip(self.points, self.means, strict=True)
            ],
        )
        self._forget_states(step)
        return self._ends()

    def put_back(self) -> int | None:
        """Put the recommended weights back where they are to be kept; the step they are of."""
        best = self._best()
        if not self.config.keeps_recommended or best is None:
            return None
        self.method.load_state_dict(self.base, load_file(self._state(best.step)))
        self.base.forget_prompts()
        return best.step

    def pictures_of(self, step: int) -> list[list[Path]]:
        """Files of a look, [prompt, picture]."""
        names = range(len(self.yardstick.templates)), range(self.yardstick.num_images)
        folder = self.folder / f"step-{step:06d}"
        return [[folder / f"{p:02d}-{i:02d}.png" for i in names[1]] for p in names[0]]

    @property
    def recommended_step(self) -> int | None:
        """By the rule; None where no checkpoint keeps the limits."""
        best = recommended(self.points, self.yardstick.scale, self.config.limits)
        return None if best is None else best.step

    @property
    def overfits_from(self) -> int | None:
        """First step from which on every look breaks a limit."""
        return overfits_from(self.points, self.yardstick.scale, self.config.limits)

    def _best(self) -> Point | None:
        return least_bad(self.points, self.yardstick.scale, self.config.limits)

    def _ends(self) -> bool:
        patience = self.config.patience
        if patience is None:
            return False
        return has_stalled(self.points, self.yardstick.scale, self.config.limits, patience=patience)

    def _state(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}" / STATE

    def _stored(self) -> list[dict[str, Any]]:
        path = self.folder / POINTS
        if not path.is_file():
            return []
        try:
            return list(read_json(path))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}). Start the run again with --overwrite."
            ) from error

    def _forget_states(self, step: int) -> None:
        """Remove what was learnt at superseded steps, but for what an older checkpoint would go back to."""
        best = self._best()
        if best is None or not self.config.keeps_recommended:
            return
        back = 0 if self.checkpoint_every is None else 3 * self.checkpoint_every
        if self.checkpoint_every is not None and step - best.step < back:
            return
        for point in self.points:
            if point.step != best.step:
                self._state(point.step).unlink(missing_ok=True)
