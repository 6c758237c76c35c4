"""The pictures and captions that a base is made from, in memory."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data_prep.clay.dataset import read_metadata
from data_prep.clay.world import Identity, View
from finetune.errors import DataError


@dataclass(frozen=True)
class Pictures:
    """Pictures [N, H, W, 3] as bytes, and several captions for each."""

    pixels: np.ndarray
    captions: list[list[str]]
    truths: list[tuple[Identity, View]]
    """Who and what each picture shows, to caption it anew."""

    fingerprint: str
    """SHA-256 of what is known of them."""

    def pixel_values(self, indices: Tensor | list[int]) -> Tensor:
        """Pictures `indices` as [B, 3, H, W] in [-1, 1]."""
        chosen = torch.from_numpy(self.pixels[np.asarray(indices)])
        return chosen.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def load_pictures(folder: Path) -> Pictures:
    """Every picture of a rendered world. Raises `DataError` where there is none."""
    rows = read_metadata(folder)
    if not rows:
        raise DataError(
            f"No pictures in {folder}. Render them first: finetune clay render {folder}"
        )
    pixels = np.stack(
        [
            np.asarray(Image.open(folder / row["file_name"]).convert("RGB"))
            for row in tqdm(rows, desc="reading pictures", mininterval=5)
        ]
    )
    truths = [(Identity.from_dict(row["identity"]), View.from_dict(row["view"])) for row in rows]
    told = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    return Pictures(pixels, [row["captions"] for row in rows], truths, told)
