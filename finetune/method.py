"""What a personalisation method is: seven hooks to write, and four with a default."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from data_prep.batch import Batch
from data_prep.config import Section
from finetune.base import BasePipeline
from finetune.errors import ArtifactError
from finetune.families.base import ModelFamily
from finetune.loss import LossOutput, Objective

ArtifactFormat = Literal["pipeline", "lora", "textual_inversion"]
"""A full diffusers folder; `pytorch_lora_weights.safetensors`; `learned_embeds.safetensors`."""


class MethodConfig(Section):
    """What every method is told; `kind` selects the method."""

    kind: str
    """Name of the method; `finetune list methods` shows them."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of what is trained (text encoders may have their own)."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of AdamW."""


@dataclass(frozen=True)
class Requirements:
    """What a method needs, told before any weight is read."""

    families: tuple[str, ...]
    """Names of the model families it can train; empty for every family that has what it needs."""
    artifact_format: ArtifactFormat
    """How what it learns is shipped."""
    uses_class_examples: bool = True
    """False where a prompt without the learned token has no gradient: such examples are skipped."""
    placeholder_tokens: tuple[str, ...] = ()
    """Tokens that the method adds to the tokenizers."""
    trainable_components: tuple[str, ...] = ("denoiser",)
    """Roles of the networks it touches, "denoiser" and "text_encoders"; see
    `ModelFamily.component_names`."""


def why_unsupported(requirements: Requirements, family: ModelFamily) -> str | None:
    """Why a method with these requirements cannot train a family; None where it can."""
    if requirements.families and family.name not in requirements.families:
        return f"it trains {', '.join(requirements.families)} bases only"
    return family.why_no_new_words if requirements.placeholder_tokens else None


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with a learning rate of their own."""

    name: str
    parameters: dict[str, nn.Parameter] = field(repr=False)
    """By "component.name", as `BasePipeline.trainable_parameters` names them."""
    learning_rate: float
    weight_decay: float


class Method(ABC):
    """One way to teach a frozen base a subject.

    Subclasses are final, take their config as only argument and keep between `prepare` and `detach`
    whatever they need to undo what they did.
    """

    config_class: ClassVar[type[MethodConfig]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def requirements(self) -> Requirements:
        """What the method needs; called by the command line before weights load."""

    @abstractmethod
    def subject_phrase(self, class_noun: str) -> str:
        """What stands for `{subject}` in prompts, for instance "sks dog"."""

    @abstractmethod
    def prepare(self, base: BasePipeline) -> None:
        """Unfreeze, inject adapters, add tokens: the only place where `requires_grad` becomes True."""

    @abstractmethod
    def parameter_groups(self, base: BasePipeline) -> list[ParameterGroup]:
        """Exactly the trainable parameters, in groups."""

    def compute_loss(self, base: BasePipeline, batch: Batch, objective: Objective) -> LossOutput:
        """The loss of a micro-batch; called by the loop. Normally the run's objective."""
        return objective(base, batch, frozen=self.frozen)

    def after_step(self, base: BasePipeline) -> None:
        """Called by the loop after each optimizer step; nothing, unless a method needs it."""
        return None

    @contextlib.contextmanager
    def frozen(self, base: BasePipeline) -> Iterator[None]:
        """A context in which the base answers as before `prepare`; for the base-prediction prior."""
        raise ArtifactError(
            f"The method {self.config.kind} cannot show the frozen base while training, so it cannot "
            "use prior.kind: base_prediction. Use class_images or none."
        )
        yield  # pragma: no cover

    @abstractmethod
    def detach(self, base: BasePipeline) -> None:
        """Undo `prepare` entirely: the base is bit-identical to before."""

    @abstractmethod
    def state_dict(self, base: BasePipeline) -> dict[str, Tensor]:
        """What was learnt, under the keys that the artifact's format uses."""

    @abstractmethod
    def load_state_dict(self, base: BasePipeline, state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` gave, after `prepare`; strict about names and shapes."""

    def artifact_metadata(self, base: BasePipeline) -> dict[str, str]:
        """Strings for the header of the artifact's safetensors file."""
        return {}


def require_same_keys(given: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    """Raise `ArtifactError` unless names and shapes agree."""
    wrong = sorted(given.keys() ^ expected.keys()) or sorted(
        key for key in expected if given[key].shape != expected[key].shape
    )
    if wrong:
        raise ArtifactError(
            f"The {what} does not fit this base and configuration: {len(wrong)} tensors differ, the "
            f"first is {wrong[0]}. Use the base and the method settings it was made with."
        )
