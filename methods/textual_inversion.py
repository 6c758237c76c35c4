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
    """Trains rows beside the embedding table of each text encoder."""

    config_class = TextualInversionConfig
    config: TextualInversionConfig

    def __init__(self, config: TextualInversionConfig) -> None:
        super().__init__(config)
        self._class_noun: str | None = None
        self._added: dict[str, AddedTokens] = {}

    def requirements(self) -> Requirements:
        """Rows are shipped as `learned_embeds.safetensors`."""
        config = self.config
        return Requirements(
            families=(),
            artifact_format="textual_inversion",
            uses_class_examples=False,
            placeholder_tokens=tuple(token_names(config.placeholder_token, config.num_vectors)),
            trainable_components=("text_encoders",),
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
        for encoder, tokenizer in base.family.trainable_text_encoders.items():
            self._added[encoder] = add_tokens(
                base.components,
                tokenizer,
                encoder,
                names=list(self.requirements().placeholder_tokens),
                initializer=initializer,
            )

    def _rows(self, base: BasePipeline) -> dict[str, Tensor]:
        """Rows [num_vectors, D] of each text encoder, by their key in the artifact."""
        names = base.family.foreign_names
        if not self._added or names is None:
            raise RuntimeError("prepare() has not been called")
        keys = names.row_keys(self.config.placeholder_token)
        return {keys[encoder]: added.embedding.new_rows for encoder, added in self._added.items()}

    def parameter_groups(self, base: BasePipeline) -> list[ParameterGroup]:
        """The new rows."""
        config = self.config
        rows = {id(tensor) for tensor in self._rows(base).values()}
        parameters = {n: p for n, p in base.trainable_parameters().items() if id(p) in rows}
        return [ParameterGroup("new_rows", parameters, config.learning_rate, config.weight_decay)]

    @contextlib.contextmanager
    def frozen(self, base: BasePipeline) -> Iterator[None]:
        """Nothing to switch off: a prompt without the new word meets the frozen base as it is."""
        yield

    def detach(self, base: BasePipeline) -> None:
        """Put the tokenizers and the embedding tables back."""
        for added in self._added.values():
            remove_tokens(base.components, added)
        self._added.clear()
        base.forget_prompts()

    def state_dict(self, base: BasePipeline) -> dict[str, Tensor]:
        """`{placeholder: [num_vectors, D]}`, or [D] for one vector, as diffusers stores it.

        Of several text encoders each has its rows under the key of A1111 files ("clip_l", "clip_g").
        """
        return {
            key: rows.detach()[0] if len(rows) == 1 else rows.detach()
            for key, rows in self._rows(base).items()
        }

    @torch.no_grad()
    def load_state_dict(self, base: BasePipeline, state: dict[str, Tensor]) -> None:
        """Copy learnt rows into place."""
        require_same_keys(state, self.state_dict(base), "embedding")
        for key, rows in self._rows(base).items():
            rows.copy_(state[key].view_as(rows))
