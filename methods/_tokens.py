"""New words for a text encoder: rows beside the frozen embedding table, and a tokenizer that knows them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import ConfigError


class EmbeddingWithNewRows(nn.Module):
    """A frozen embedding table followed by trainable rows; only the rows are stored and stepped."""

    def __init__(self, table: nn.Embedding, rows: Tensor) -> None:
        super().__init__()
        self.table = table
        self.new_rows = nn.Parameter(rows)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embeddings [..., D] of token ids; ids beyond the table index the new rows."""
        size = self.table.num_embeddings
        is_new = input_ids >= size
        known: Tensor = self.table(input_ids.clamp(max=size - 1))
        learnt = self.new_rows[(input_ids - size).clamp(min=0)].to(known.dtype)
        return torch.where(is_new[..., None], learnt, known)


@dataclass
class AddedTokens:
    """What `add_tokens` changed in one text encoder, and how to undo it."""

    tokenizer_name: str
    encoder_name: str
    original_tokenizer: Any
    original_table: nn.Embedding
    embedding: EmbeddingWithNewRows


def token_names(placeholder: str, num_vectors: int) -> list[str]:
    """Tokens of a placeholder, as diffusers names them: `<x>`, `<x>_1`, `<x>_2`, …"""
    return [placeholder, *(f"{placeholder}_{index}" for index in range(1, num_vectors))]


def single_token(tokenizer: Any, word: str, *, field: str) -> int:
    """Id of `word`, which must be one token. Raises `ConfigError` naming the config field."""
    ids: list[int] = tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) != 1:
        pieces = tokenizer.convert_ids_to_tokens(ids)
        raise ConfigError(
            f"{field}: '{word}' is {len(ids)} tokens of the base's tokenizer ({' '.join(pieces)}), "
            "it must be one. Choose a simpler word."
        )
    return ids[0]


def add_tokens(
    components: Any,
    tokenizer_name: str,
    encoder_name: str,
    *,
    names: list[str],
    initializer: str,
) -> AddedTokens:
    """Teach a text encoder the tokens `names`, all starting from the embedding of `initializer`."""
    original = components.tokenizers[tokenizer_name]
    encoder = components.text_encoders[encoder_name]
    tokenizer = copy.deepcopy(original)
    start = single_token(original, initializer, field="method.initializer_token")
    if tokenizer.add_tokens(names) != len(names):
        raise ConfigError(
            f"method.placeholder_token: '{names[0]}' is a token of the base already. Choose another, "
            "for instance '<my-subject>'."
        )
    table: nn.Embedding = encoder.get_input_embeddings()
    if tokenizer.convert_tokens_to_ids(names[0]) < table.num_embeddings:
        raise ConfigError(
            f"The base's embedding table has {table.num_embeddings} rows for {len(original)} tokens, so "
            "new tokens would fall on rows in use. Such padded tables are not supported."
        )
    rows = table.weight[start].detach().float().repeat(len(names), 1)
    embedding = EmbeddingWithNewRows(table, rows)
    encoder.set_input_embeddings(embedding)
    components.tokenizers[tokenizer_name] = tokenizer
    return AddedTokens(tokenizer_name, encoder_name, original, table, embedding)


def remove_tokens(components: Any, added: AddedTokens) -> None:
    """Undo `add_tokens`: the same tokenizer and table objects are back in place."""
    components.tokenizers[added.tokenizer_name] = added.original_tokenizer
    components.text_encoders[added.encoder_name].set_input_embeddings(added.original_table)
