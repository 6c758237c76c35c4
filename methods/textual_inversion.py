"""Textual Inversion (Gal et al. 2023): learn the embedding of a new word and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor

from finetune.base import BasePipeline
from finetune.errors import ConfigError
from finetune.method import Method, MethodConfig, ParameterGroup, Requirements, require_same_keys
from methods._tokens import AddedTokens, add_tokens, remove_tokens, token_names


class TextualInversionConfig(MethodConfig):
    """One new word of one or several vectors."""

    kind: Literal["textual_inversion"] = "textual_inversion"
    """Name of the method."""
    learning_rate: float = Field(5e-3, gt=0)
    """Learning rate of the new rows; large, because nothing else moves (the authors' base rate)."""
    weight_decay: float = Field(0.0, ge=0)
    """Pulls the new rows towards zero; the paper uses none."""
    placeholder_token: str = Field("<subject>", min_length=1)
    """The new word. Prompts hold it where they mean the subject."""
    initializer_token: str | None = None
    """An existing word of one token whose embedding the new rows start from; null takes the class
    noun (of "coffee mug" the last word)."""
    num_vectors: int = Field(1, gt=0, le=64)
    """Tokens that the new word stands for; more catch more detail and obey prompts less."""


@final
class TextualInversion(Method):
    """Trains rows beside the text encoder's embedding table."""

    config_class = TextualInversionConfig
    config: TextualInversionConfig

    def __init__(self, config: TextualInversionConfig) -> None:
        super().__init__(config)
        self._class_noun: str | None = None
        self._added: AddedTokens | None = None

    def requirements(self) -> Requirements:
        """Rows are shipped as `learned_embeds.safetensors`."""
        config = self.config
        return Requirements(
            families=("sd",),
            artifact_format="textual_inversion",
            uses_class_examples=False,
            placeholder_tokens=tuple(token_names(config.placeholder_token, config.num_vectors)),
            trainable_components=("text_encoder",),
        )

    def subject_phrase(self, class_noun: str) -> str:
        """The new word alone, which replaces the class noun too."""
        self._class_noun = class_noun or None
        return self.config.placeholder_token

    def prepare(self, base: BasePipeline) -> None:
        """Add the tokens; their rows are the only trainable parameters."""
        noun = (self._class_noun or "").split()
        initializer = self.config.initializer_token or (noun[-1] if noun else None)
        if initializer is None:
            raise ConfigError(
                "method.initializer_token: neither it nor data.class_noun is set; name a word that "
                "the subject is close to, for instance 'dog'."
            )
        base.forget_prompts()
        self._added = add_tokens(
            base.components,
            "tokenizer",
            "text_encoder",
            names=list(self.requirements().placeholder_tokens),
            initializer=initializer,
        )

    def _rows(self) -> Tensor:
        if self._added is None:
            raise RuntimeError("prepare() has not been called")
        return self._added.embedding.new_rows

    def parameter_groups(self, base: BasePipeline) -> list[ParameterGroup]:
        """The new rows."""
        config = self.config
        rows = self._rows()
        parameters = {n: p for n, p in base.trainable_parameters().items() if p is rows}
        return [ParameterGroup("new_rows", parameters, config.learning_rate, config.weight_decay)]

    @contextlib.contextmanager
    def frozen(self, base: BasePipeline) -> Iterator[None]:
        """Nothing to switch off: a prompt without the new word meets the frozen base as it is."""
        yield

    def detach(self, base: BasePipeline) -> None:
        """Put the tokenizer and the embedding table back."""
        if self._added is not None:
            remove_tokens(base.components, self._added)
            self._added = None
        base.forget_prompts()

    def state_dict(self, base: BasePipeline) -> dict[str, Tensor]:
        """`{placeholder: [num_vectors, D]}`, or [D] for one vector, as diffusers stores it."""
        rows = self._rows().detach()
        return {self.config.placeholder_token: rows[0] if len(rows) == 1 else rows}

    @torch.no_grad()
    def load_state_dict(self, base: BasePipeline, state: dict[str, Tensor]) -> None:
        """Copy learnt rows into place."""
        require_same_keys(state, self.state_dict(base), "embedding")
        rows = self._rows()
        rows.copy_(state[self.config.placeholder_token].view_as(rows))
