"""Where every random number comes from: generators named by what they are for, never a global state.

A generator is a pure function of (seed, stream name, optimizer step, index of the sample in the global
batch). So the noise a sample gets does not depend on rank, micro-batch, method or on where a run was
resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive_seed(seed: int, stream: str, *counters: int) -> int:
    """A 63-bit seed: BLAKE2b of the arguments, so that neighbouring counters are unrelated."""
    text = "/".join([str(seed), stream, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator_for(seed: int, stream: str, *counters: int) -> torch.Generator:
    """A fresh CPU generator for one purpose; see `derive_seed`."""
    return torch.Generator("cpu").manual_seed(derive_seed(seed, stream, *counters))


def normal_like(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise [len(generators), *shape], each sample from its own generator."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])
