"""The pictures and captions that a base is made from, and what stages 1 and 2 make of them, in memory."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from data_prep.clay.dataset import METADATA, cover_from_json, read_metadata, render_command
from data_prep.clay.world import Identity, View
from finetune.checkpoint import needed_bytes
from finetune.dual_encoder import DualEncoder
from finetune.errors import DataError
from finetune.files import partial_of, require_space


@dataclass(frozen=True)
class Pictures:
    """Pictures [N, H, W, 3] as bytes, and several captions for each."""

    pixels: np.ndarray
    captions: list[list[str]]
    truths: list[tuple[Identity, View]]
    """Who and what each picture shows, to caption it anew."""
    covers: np.ndarray
    """[N, 2, cells, cells] as bytes: what of each square shows the subject, and what it wears."""
    fingerprint: str
    """SHA-256 of what is known of them."""

    def pixel_values(self, indices: Tensor | list[int]) -> Tensor:
        """Pictures `indices` as [B, 3, H, W] in [-1, 1]."""
        chosen = torch.from_numpy(self.pixels[np.asarray(indices)])
        return chosen.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _read_picture(path: Path, folder: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}. Remove it, if it is there, and render once more: "
            f"{render_command(folder)}"
        ) from error


Known = tuple[Path, list[str], tuple[Identity, View], np.ndarray]
"""A picture's file, its captions, who and what it shows, and where."""


def _known(folder: Path, rows: list[dict[str, Any]]) -> list[Known]:
    """What the rows of a world's metadata say. Raises `DataError` for other metadata."""
    known, advice = list[Known](), "Set pictures to a folder that `finetune clay render` wrote."
    for number, row in enumerate(rows, 1):
        try:
            truth = Identity.from_dict(row["identity"]), View.from_dict(row["view"])
            where = cover_from_json(row["cover"])
            known.append((folder / row["file_name"], [*row["captions"]], truth, where))
        except (KeyError, TypeError, ValueError) as error:
            what = f"has no {error}" if isinstance(error, KeyError) else f"is another: {error}"
            raise DataError(
                f"{folder / METADATA} is not of a rendered world: row {number} {what}. {advice}"
            ) from error
    if not known:
        raise DataError(f"{folder / METADATA} is empty. {advice}")
    return known


def load_pictures(folder: Path) -> Pictures:
    """Every picture of a rendered world.

    Raises `DataError` where there is none, rendering is not finished, the folder is another, or a picture
    cannot be used.
    """
    rows, pixels = read_metadata(folder), list[np.ndarray]()
    known = _known(folder, rows)
    for path, *_ in tqdm(known, desc="reading pictures", mininterval=5):
        pixels.append(_read_picture(path, folder))
        if pixels[-1].shape != pixels[0].shape:
            (height, width, _), first = pixels[-1].shape, pixels[0].shape
            raise DataError(
                f"{path} has {width} x {height} pixels, not {first[1]} x {first[0]} as the pictures before "
                f"it. Remove it and render once more: {render_command(folder)}"
            )
    own = [
        {key: row[key] for key in row if key != "cover"} for row in rows
    ]  # it follows from the view
    told = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
    _, captions, truths, covers = zip(*known, strict=True)
    return Pictures(np.stack(pixels), list(captions), list(truths), np.stack(covers), told)


@dataclass(frozen=True)
class Encoded:
    """What the denoiser learns from, made once from N pictures by stages 1 and 2; all in float16."""

    means: Tensor
    """Latents' means, [N, C, h, w]."""
    deviations: Tensor
    """Latents' standard deviations, [N, C, h, w]."""
    features: Tensor
    """The picture encoder's last map, [N, F, height, width]."""

    def save(self, path: Path, origin: str) -> None:
        """Write a file that names its `origin`, whole or not at all."""
        tensors = {name: tensor.contiguous() for name, tensor in vars(self).items()}
        require_space(path, needed_bytes(tensors))
        partial = partial_of(path)
        save_file(tensors, partial, metadata={"origin": origin})
        partial.replace(path)

    @staticmethod
    def load(path: Path, origin: str) -> Encoded | None:
        """What `path` holds; None where there is no whole file or it is of another `origin`."""
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("origin") != origin:
                    return None
            return Encoded(**load_file(path))
        except SafetensorError:
            return None


@torch.no_grad()
def encode(
    vae: AutoencoderKL, clip: DualEncoder, pictures: Pictures, *, device: torch.device
) -> Encoded:
    """Latents and features of all pictures, in main memory; the networks work on `device`."""
    vae, vision = vae.to(device), clip.vision_model.to(device)
    means, deviations, features = [], [], []
    for start in tqdm(range(0, len(pictures.pixels), 64), desc="encoding", mininterval=5):
        stop = min(start + 64, len(pictures.pixels))
        pixels = pictures.pixel_values(list(range(start, stop))).to(device)
        moments = vae.encode(pixels).latent_dist
        means.append(moments.mean.half().cpu())
        deviations.append(moments.std.half().cpu())
        features.append(vision(pixels).last_hidden_state.half().cpu())
    return Encoded(torch.cat(means), torch.cat(deviations), torch.cat(features))


def with_share_of(among: Tensor, drawn: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """`drawn` [..., B], each replaced with the chance `share` by one of `among` [..., N], if there is any."""
    count, num = drawn.shape[-1], among.shape[-1]
    if not num:
        return drawn
    chosen = torch.rand(count, generator=generator) < share
    places = torch.randint(num, (count,), generator=generator)
    return torch.where(chosen, among[..., places], drawn)
