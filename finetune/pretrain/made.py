"""What the stages of a recipe left for those after them, and whether it belongs together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from finetune.dual_encoder import DualEncoder
from finetune.errors import ArtifactError
from finetune.files import read_json, sha256_of
from finetune.judge import Judge
from finetune.pretrain.data import Encoded, Pictures, encode
from finetune.pretrain.stage import MADE_OF, steps_of_networks


class Made:
    """What finished stages left in the work folder.

    Raises `ArtifactError` that names a stage which is missing, or was told to go on and has not ended since.
    """

    def __init__(self, work_folder: Path, num_steps: Mapping[str, int], *, command: str) -> None:
        """`num_steps` are the recipe's, by stage; `command` is what runs it, for messages."""
        self.work_folder, self.num_steps, self.command = work_folder, num_steps, command

    def folder(self, stage: str, name: str) -> Path:
        """Where `stage` wrote its network or tokenizer `name`."""
        folder, told = self.work_folder / stage / name, self.num_steps[stage]
        if not any(folder.glob("*.json")):
            raise ArtifactError(
                f"There is no finished {name} in {folder}. Run: {self.command} --stage {stage}"
            )
        if (learnt := steps_of_networks(folder.parent)) not in (None, told):
            raise ArtifactError(
                f"The {stage} in {folder.parent} has learnt for {learnt} steps, not {told}. Set "
                f"{stage}.num_steps back, or run: {self.command} --stage {stage}"
            )
        return folder

    def fingerprint(self, stage: str, name: str) -> str:
        """SHA-256 over the files of a network or tokenizer."""
        files = sorted(self.folder(stage, name).iterdir())
        return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()

    def fingerprints(self, stages: Sequence[str]) -> dict[str, str]:
        """What the networks of `stages` are now, by the names that `made_of` gives them."""
        places = {
            "autoencoder": {"autoencoder": "vae"},
            "contrast": {"CLIP": "clip", "tokenizer": "tokenizer"},
            "denoiser": {"denoiser": "unet", "text encoder": "text_encoder"},
        }
        return {
            title: self.fingerprint(stage, name)
            for stage in stages
            for title, name in places[stage].items()
        }

    def check(self, stage: str, stages: Sequence[str]) -> None:
        """Raise `ArtifactError` where a finished stage learnt from other networks than those of `stages`."""
        path = self.work_folder / stage / MADE_OF
        if not path.is_file():
            raise ArtifactError(
                f"There is no finished {stage} in {path.parent}. Run: {self.command} --stage {stage}"
            )
        learnt_from = read_json(path)
        for title, fingerprint in self.fingerprints(stages).items():
            if learnt_from.get(title) != fingerprint:
                raise ArtifactError(
                    f"The {stage} in {path.parent} did not learn from today's {title}. Remove "
                    f"{path.parent} and run: {self.command} --stage {stage}"
                )

    def vae(self, stage: str) -> AutoencoderKL:
        """The autoencoder of stage 1, or of stage 4 with the decoder that learnt on."""
        return AutoencoderKL.from_pretrained(self.folder(stage, "vae")).eval()

    def clip(self) -> DualEncoder:
        """Stage 2's encoders of pictures and texts."""
        return DualEncoder.from_pretrained(self.folder("contrast", "clip"))

    def tokenizer(self) -> CLIPTokenizer:
        """Stage 2's tokenizer."""
        return CLIPTokenizer.from_pretrained(self.folder("contrast", "tokenizer"))

    def text_encoder(self) -> CLIPTextModel:
        """Stage 3's text encoder."""
        return CLIPTextModel.from_pretrained(self.folder("denoiser", "text_encoder")).eval()

    def unet(self) -> UNet2DConditionModel:
        """Stage 3's denoiser."""
        return UNet2DConditionModel.from_pretrained(self.folder("denoiser", "unet")).eval()

    def judge(self) -> Judge:
        """The judge."""
        return Judge.from_pretrained(self.folder("judge", "network"))

    def encoded(
        self, vae: AutoencoderKL, clip: DualEncoder, pictures: Pictures, *, device: torch.device
    ) -> Encoded:
        """Latents and features of `pictures`, made once per autoencoder and CLIP, by these on `device`."""
        networks = [self.fingerprint("autoencoder", "vae"), self.fingerprint("contrast", "clip")]
        origin = " ".join([*networks, pictures.fingerprint])
        path = self.work_folder / "encoded.safetensors"
        kept = Encoded.load(path, origin)
        if kept is None:
            kept = encode(vae, clip, pictures, device=device)
            kept.save(path, origin)
        return kept
