"""A CLIP tokenizer for a small world: every word of its captions is one token, any text can be read."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

MAX_TOKENS = 24
"""Length of an encoded prompt, start and end tokens included: just the longest caption of the world."""


def build_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """A lower-casing byte-level BPE tokenizer in which each of `words` is a single token.

    The vocabulary is laid out as OpenAI's: 256 bytes, 256 bytes that end a word, the merges, the start
    and the end token; so words that were never seen still come out, in pieces.
    """
    words = sorted(set(words))
    template = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[])
    backend = template.backend_tokenizer
    trainee = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    trainee.normalizer, trainee.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    # The trainer breaks ties by the order in which it met letters, which differs from run to run; told of all
    # beforehand, it does not.
    trainer = trainers.BpeTrainer(
        vocab_size=1 << 16,
        min_frequency=0,
        end_of_word_suffix="</w>",
        special_tokens=letters,
        show_progress=False,
    )
    trainee.train_from_iterator([" ".join(words)], trainer)
    merges = [tuple(pair) for pair in json.loads(trainee.to_str())["model"]["merges"]]
    names = [*letters, *("".join(pair) for pair in merges)]
    names = list(dict.fromkeys([*names, "<|startoftext|>", "<|endoftext|>"]))
    tokenizer = CLIPTokenizer(
        vocab={name: index for index, name in enumerate(names)},
        merges=merges,
        model_max_length=MAX_TOKENS,
    )
    for word in words:
        pieces = tokenizer.tokenize(word)
        if len(pieces) != 1:
            raise ValueError(f"'{word}' became {len(pieces)} tokens {pieces}, not one.")
    return tokenizer


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids of `texts`, padded to the tokenizer's length, [N, tokens]."""
    ids: Tensor = tokenizer(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    return ids
