"""From the pictures of cells to tables of scores: which pictures each score is about, and what they are held
against. The scores themselves are in `scores`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_prep.cache import TensorCache, cache_key
from finetune import scores
from finetune.compare.config import CompareConfig
from finetune.compare.pictures import open_picture
from finetune.compare.suite import uses_validation
from finetune.encoders import (
    Encoder,
    ScorersConfig,
    check_encoder_name,
    hide_background,
    load_encoder,
    load_text_encoder,
)
from finetune.errors import ConfigError
from finetune.files import sha256_of
from finetune.photos import ScoredPhoto
from finetune.results import EncoderInfo, Prompt, Role, ScoreInfo, Table, score_key
from finetune.scores import SCORES, Values, Views
from finetune.yardstick import Judges

MASKED = "subject_fidelity_masked"
DRIFTS = ("class_drift", "other_drift")
"""Ids of the distances from the frozen base, each on the prompts of its score's roles."""


@dataclass(frozen=True)
class Scorers:
    """The loaded networks that judge."""

    subject: tuple[Encoder, ...]
    prompt: Encoder

    @staticmethod
    def load(names: ScorersConfig, *, device: torch.device | str = "cpu") -> Scorers:
        """Of names with defaults filled in. Raises `ConfigError` or `ArtifactError`."""
        for name in (*names.subject, str(names.prompt)):
            check_encoder_name(name)
        subject = tuple(load_encoder(name, device=device) for name in names.subject)
        scorers = Scorers(subject, load_text_encoder(str(names.prompt), device=device))
        own = [encoder.card.name for encoder in subject]
        for name in own:
            if own.count(name) > 1:
                raise ConfigError(
                    f"scorers.subject: two networks are called {name}. Rename one of the folders."
                )
        check_names([*subject, scorers.prompt])
        return scorers

    def infos(self, judges: Judges | None = None) -> tuple[EncoderInfo, ...]:
        """Their records and those of the networks that judged along training, each once."""
        found: dict[str, EncoderInfo] = {}
        along = () if judges is None else (judges.subject, judges.prompt)
        for encoder in (*self.subject, self.prompt, *along):
            found.setdefault(encoder.card.name, encoder.card)
        return tuple(found.values())

    def scores(self, *, masked: bool) -> tuple[ScoreInfo, ...]:
        """Every score by every network that makes it; those with masks where photos have some."""
        found = []
        for info in SCORES.values():
            if info.id == MASKED and not masked:
                continue
            encoders = (self.prompt,) if info.encoder == "prompt" else self.subject
            found += [
                ScoreInfo(
                    key=score_key(info.id, encoder.card.name),
                    id=info.id,
                    title=info.title,
                    short_title=info.short_title,
                    encoder=encoder.card.name,
                    better=info.better,
                    roles=info.roles,
                    definition=info.definition,
                    papers=info.papers,
                    headline=encoder is encoders[0],
                )
                for encoder in encoders
            ]
        return tuple(found)


def load_judges(
    config: CompareConfig, scorers: Scorers, *, device: torch.device | str = "cpu"
) -> Judges | None:
    """The networks that judge on validation prompts, those of `scorers` where they are the same.

    None where nothing is measured on such prompts. Raises `ConfigError` or `ArtifactError`.
    """
    if not uses_validation(config):
        return None
    source = config.base.source
    own, wanted = config.scorers.resolved(source), config.validation_scorers.resolved(source)
    if (own.subject[0], own.prompt) == (wanted.subject[0], wanted.prompt):
        return Judges(scorers.subject[0], scorers.prompt)
    judges = Judges.load(wanted, device=device)
    check_names([*scorers.subject, scorers.prompt, judges.subject, judges.prompt])
    return judges


def check_names(encoders: Iterable[Encoder]) -> None:
    """Raise `ConfigError` where two different networks have one name, which scores could not tell apart."""
    known: dict[str, str] = {}
    for encoder in encoders:
        name, weights = encoder.card.name, encoder.card.sha256
        if known.setdefault(name, weights) != weights:
            raise ConfigError(
                f"scorers: two different networks are called {name}. Rename one of the folders."
            )


class Album:
    """Embeddings of pictures, remembered by the content of those that are asked for together."""

    def __init__(self, folder: Path) -> None:
        """`folder` is that of a comparison."""
        self._cache = TensorCache(folder / "embeddings")

    def views(self, encoder: Encoder, files: Sequence[Path], root: Path) -> Views:
        """Embeddings of files; raises `ArtifactError` that names one that has none."""
        names = [_name(path, root) for path in files]
        key = cache_key(
            encoder=encoder.card.sha256,
            preprocessing=encoder.card.preprocessing,
            files=[sha256_of(path) for path in files],
        )

        def make() -> dict[str, Any]:
            return {"vectors": encoder.embed_images([open_picture(path) for path in files])}

        return Views.of(
            self._cache.get_or_make(key, make)["vectors"], names, encoder=encoder.card.name
        )


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


@dataclass(frozen=True)
class Reference:
    """A subject's photos and prompts as one network sees them."""

    encoder: Encoder
    photos: Views
    masked: Views | None
    copy_threshold: float


class SubjectMeter:
    """Scores of pictures of one subject."""

    def __init__(
        self,
        scorers: Scorers,
        album: Album,
        photos: Sequence[ScoredPhoto],
        prompts: Sequence[Prompt],
        root: Path,
    ) -> None:
        self.scorers, self.album, self.root = scorers, album, root
        self.prompts = tuple(prompts)
        self.references = [_reference(encoder, photos) for encoder in scorers.subject]
        self.test = self._places(("test",))
        self.texts = scores.embed_texts(
            scorers.prompt, [self.prompts[place].text for place in self.test]
        )

    def _places(self, roles: Iterable[Role]) -> list[int]:
        wanted = set(roles)
        return [place for place, prompt in enumerate(self.prompts) if prompt.role in wanted]

    def _views(self, encoder: Encoder, files: Sequence[Sequence[Path]], places: list[int]) -> Views:
        return self.album.views(encoder, [f for place in places for f in files[place]], self.root)

    def tables(
        self, files: Sequence[Sequence[Path]], base: Sequence[Sequence[Path]] | None
    ) -> dict[str, Table]:
        """Score key -> table of pictures [prompt, picture]; `base` are the frozen base's at the same noise.

        Prompts without pictures are left out of every score. Where there is no `base` there is no drift.
        """
        found: dict[str, Table] = {}
        test = [place for place in self.test if files[place]]
        if test:
            views = self._views(self.scorers.prompt, files, test)
            texts = self._texts_of(test, files)
            found[score_key("prompt_fidelity", self.scorers.prompt.card.name)] = self._table(
                scores.prompt_fidelity(views, texts), files, test
            )
        for reference in self.references:
            for id, table in self._by_subject(reference, files, base, test).items():
                found[score_key(id, reference.encoder.card.name)] = table
        return found

    def _texts_of(self, places: Sequence[int], files: Sequence[Sequence[Path]]) -> Views:
        """The text of each picture."""
        rows = [self.test.index(place) for place in places for _ in files[place]]
        return Views(self.texts.vectors[rows], tuple(self.texts.names[row] for row in rows))

    def _by_subject(
        self,
        reference: Reference,
        files: Sequence[Sequence[Path]],
        base: Sequence[Sequence[Path]] | None,
        test: list[int],
    ) -> dict[str, Table]:
        encoder, found = reference.encoder, dict[str, Table]()
        if test:
            views = self._views(encoder, files, test)
            nearest = scores.copy(views, reference.photos)
            flat = {
                "subject_fidelity": scores.subject_fidelity(views, reference.photos),
                "copy": nearest,
                "copy_share": scores.copies(nearest, reference.copy_threshold),
            }
            if reference.masked is not None:
                flat[MASKED] = scores.subject_fidelity(views, reference.masked)
            found |= {id: self._table(values, files, test) for id, values in flat.items()}
            found["diversity"] = self._diversity(views, files, test)
        of_class = [place for place in self._places(("class",)) if files[place]]
        if of_class:
            leak = scores.class_leak(self._views(encoder, files, of_class), reference.photos)
            found["class_leak"] = self._table(leak, files, of_class)
        if base is not None:
            for id in DRIFTS:
                table = self._drift(encoder, files, base, scores.score_info(id).roles)
                found |= {} if table is None else {id: table}
        return found

    def _drift(
        self,
        encoder: Encoder,
        files: Sequence[Sequence[Path]],
        base: Sequence[Sequence[Path]],
        roles: tuple[Role, ...],
    ) -> Table | None:
        """Distances from the base's pictures on the prompts of `roles`; None where no picture has a twin."""
        # A row may have more pictures of a prompt than the base, or fewer: what has no twin is left out.
        pairs = [list(zip(mine, its, strict=False)) for mine, its in zip(files, base, strict=True)]
        mine = [[ours for ours, _ in row] for row in pairs]
        twins = [[theirs for _, theirs in row] for row in pairs]
        places = [place for place in self._places(roles) if mine[place]]
        if not places:
            return None
        moved = scores.drift(
            self._views(encoder, mine, places), self._views(encoder, twins, places)
        )
        return tuple(
            row + (None,) * (len(files[place]) - len(row)) if row else row
            for place, row in enumerate(self._table(moved, mine, places))
        )

    def _table(
        self, values: Values, files: Sequence[Sequence[Path]], places: Sequence[int]
    ) -> Table:
        """Values in the order of places and pictures as a table over all prompts."""
        rows: list[tuple[float | None, ...]] = [()] * len(self.prompts)
        start = 0
        for place in places:
            end = start + len(files[place])
            rows[place] = tuple(float(value) for value in values[start:end])
            start = end
        return tuple(rows)

    def _diversity(
        self, views: Views, files: Sequence[Sequence[Path]], places: Sequence[int]
    ) -> Table:
        """One value per prompt; none where it has a single picture."""
        rows: list[tuple[float | None, ...]] = [()] * len(self.prompts)
        start = 0
        for place in places:
            end = start + len(files[place])
            value = scores.diversity(views.part(start, end))
            rows[place] = () if np.isnan(value) else (value,)
            start = end
        return tuple(rows)

    def real_photos(self) -> tuple[dict[str, Table], dict[str, str]]:
        """Score key -> [1, photo]: each photo's likeness to the others; and why there is none."""
        tables, reasons = dict[str, Table](), dict[str, str]()
        for reference in self.references:
            key = score_key("subject_fidelity", reference.encoder.card.name)
            real = scores.real_similarity(reference.photos)
            if real.mean is None:
                reasons[key] = str(real.reason)
            else:
                tables[key] = (tuple(float(value) for value in real.values),)
        return tables, reasons


def _reference(encoder: Encoder, photos: Sequence[ScoredPhoto]) -> Reference:
    names = [f"the photo {photo.name}" for photo in photos]
    views = scores.embed_images(encoder, [photo.image for photo in photos], names)
    bare: list[Image.Image] = [
        hide_background(photo.image, photo.mask) for photo in photos if photo.mask is not None
    ]
    masked = None
    if bare:
        masked_names = [name for name, p in zip(names, photos, strict=True) if p.mask is not None]
        masked = scores.embed_images(encoder, bare, masked_names)
    return Reference(encoder, views, masked, scores.copy_threshold(views))
