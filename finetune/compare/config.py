"""What a comparison is told: subjects, prompts, rows, seeds, what is made equal, what is tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from data_prep.config import DataConfig, Section
from finetune.base import BaseConfig
from finetune.encoders import ScorersConfig
from finetune.validation import ValidationConfig

SubjectKind = Literal["live", "object"]


class FinishedRow(Section):
    """An artifact that is there already, ours or made elsewhere."""

    path: str = Field(min_length=1)
    """A run, an artifact, or a file or folder of another tool that `finetune generate` takes. With several
    subjects `{name}` in it becomes each subject's name."""
    subject: str | None = Field(None, min_length=1)
    """What stands for the subject in prompts; null takes what the artifact says."""


class BudgetConfig(Section):
    """What is made equal between methods."""

    kind: Literal["own", "steps", "pictures", "seconds"] = "own"
    """`own`: every row as it is configured. `steps`: equal optimizer steps. `pictures`: equal training
    pictures seen, class examples included. `seconds`: equal time of the optimizer steps on this machine,
    whatever each does in it; such a comparison cannot be repeated exactly."""
    amount: float | None = Field(None, gt=0)
    """How many steps, pictures or seconds per run."""

    @model_validator(mode="after")
    def _has_an_amount(self) -> BudgetConfig:
        if (self.kind == "own") != (self.amount is None):
            say = (
                "leave amount out" if self.kind == "own" else f"say how many {self.kind} in amount"
            )
            raise ValueError(f"kind is {self.kind}; {say}")
        if self.kind in ("steps", "pictures") and self.amount != int(self.amount or 0):
            raise ValueError(f"amount {self.amount:g} is no whole number of {self.kind}")
        return self


class TuneConfig(Section):
    """Settings tried for every method, equally often, on validation prompts, before any is ranked."""

    trials: int = Field(gt=0)
    """Settings tried per row, drawn from all combinations of the lists below; the same ones for every row."""
    learning_rate_factors: tuple[float, ...] = Field((0.3, 1.0, 3.0), min_length=1)
    """Factors on each row's own `method.learning_rate`, because those of methods differ a thousandfold, and
    on its `method.text_encoder_learning_rate` where that is set."""
    num_steps: tuple[int, ...] = ()
    """Optimizer steps; empty takes each row's own. With the budget `steps` none may exceed it."""

    @model_validator(mode="after")
    def _can_be_drawn(self) -> TuneConfig:
        if any(value <= 0 for value in (*self.learning_rate_factors, *self.num_steps)):
            raise ValueError("learning_rate_factors and num_steps should be above 0")
        count = len(set(self.learning_rate_factors)) * max(1, len(set(self.num_steps)))
        if self.trials > count:
            raise ValueError(
                f"trials is {self.trials}, but learning_rate_factors and num_steps have only {count} "
                "combinations; give more values or fewer trials"
            )
        return self


class CompareConfig(Section):
    """Several methods on the same photos, with the same prompts and the same noise."""

    base: BaseConfig = BaseConfig()
    """The frozen base, loaded once."""
    data: DataConfig
    """The photos of one subject; or `photos` is a folder of subjects: one folder of photos each, and a file
    `subjects.yaml` (`rex: {class_noun: dog, kind: live}`)."""
    kind: SubjectKind = "object"
    """Which prompts of a prompts file are for the subject; of a folder of subjects each says its own."""
    subjects: tuple[str, ...] = ()
    """Names of the subjects to take from a folder; empty takes all."""
    shared: dict[str, Any] = Field(default_factory=dict)
    """Sections of a run (`training`, `optimizer`, `loss`, `sampling`, …) that hold for every method."""
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Row name -> sections of a run that hold for that row; each needs `method.kind`. The same method may
    come several times. `class_noun` (a word, or one per subject) makes a row call the subjects otherwise."""
    artifacts: dict[str, FinishedRow] = Field(default_factory=dict)
    """Row name -> an artifact to show beside them, made for the same base: `{path: runs/dog}`, and `subject`
    where it does not say itself what stands for the subject. `{name}` in the path is the subject's name."""
    prompts: tuple[str, ...] | str
    """Columns: a list, a file (a prompt a line, or YAML with a list per kind of subject), or `dreambooth`,
    the 25 + 25 prompts of Ruiz et al. 2023. `{subject}` becomes each method's phrase, and the class noun for
    the frozen base."""
    class_prompts: tuple[str, ...] = Field(("a photo of a {class}",), min_length=1)
    """Show whether the class is still itself. With three or more, what is said of the class holds for prompts
    like these and not for these alone."""
    unrelated_prompts: tuple[str, ...] = ("a photo of a car on the beach", "a photo of a mug")
    """Show whether everything else is still itself; one that names a subject's class is left out for it. May
    be empty."""
    num_images: int = Field(4, gt=0)
    """Pictures per prompt, row, subject and seed, with the same noise in every row."""
    seed: int = 0
    """Seed of all noise that pictures start from."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Training seeds; every method is trained once with each."""
    budget: BudgetConfig = BudgetConfig()
    """What is made equal between methods."""
    tune: TuneConfig | None = None
    """Tuning before ranking, as in `{trials: 3, learning_rate_factors: [0.3, 1, 3], num_steps: [200, 400]}`;
    null ranks each row as it is configured."""
    validation: ValidationConfig = ValidationConfig()
    """Prompts for tuning and for learning curves (`every`), disjoint from those above."""
    scorers: ScorersConfig = ScorersConfig()
    """Networks that judge."""
    keep_artifacts: bool = True
    """false removes what a run learnt once its pictures are made."""
    output: Path = Path("runs/compare")
    """Folder of the results."""

    @property
    def validation_scorers(self) -> ScorersConfig:
        """The two networks that judge on validation prompts: the comparison's own if no others are named."""
        own = self.validation.scorers
        subject = (own.subject or self.scorers.subject)[:1]
        return ScorersConfig(subject=subject, prompt=own.prompt or self.scorers.prompt)

    @model_validator(mode="after")
    def _has_rows(self) -> CompareConfig:
        if not self.methods and not self.artifacts:
            raise ValueError("there is nothing to compare; name rows under methods or artifacts")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds names a seed twice")
        if self.tune is not None and self.tune.num_steps:
            if self.budget.kind in ("pictures", "seconds"):
                raise ValueError(
                    f"tune.num_steps contradicts budget.kind {self.budget.kind}, which fixes the steps; "
                    "leave it out"
                )
            if self.budget.kind == "steps" and max(self.tune.num_steps) > (self.budget.amount or 0):
                raise ValueError("tune.num_steps holds more steps than budget.amount allows")
        return self
