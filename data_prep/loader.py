"""Training batches of instance and class examples, in an order that is a pure function of (seed, step)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

from data_prep.batch import Batch, Moments, Role
from data_prep.buckets import BucketOrder
from data_prep.class_images import ClassPictures
from data_prep.config import DataConfig
from data_prep.instances import InstanceSet, Variant, View
from data_prep.transforms import NUM_COLORS


@dataclass(frozen=True)
class Draw:
    """What one place of a global batch shows: a view of a photo, or a class picture."""

    role: Role
    place: int
    """In the global batch of its role."""
    index: int
    """Of the photo, or of the class picture."""
    variant: Variant | None
    """None of a class picture."""
    prompt: str


class TrainingData:
    """Batches of instance and class examples; `micro_batch` is the loop's only question."""

    def __init__(
        self,
        config: DataConfig,
        instances: InstanceSet,
        *,
        seed: int,
        batch_size: int,
        class_pictures: ClassPictures | None = None,
        class_prompt: str | None = None,
        instances_as_class: bool = False,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        """`class_pictures` go with `class_prompt`; `instances_as_class`: photos do instead.

        `provenance` is for the run folder: where class pictures and captions come from.
        """
        self.config, self.instances, self.seed = config, instances, seed
        self.batch_size = batch_size
        self.class_pictures, self.class_prompt = class_pictures, class_prompt
        self.instances_as_class = instances_as_class
        self.provenance = provenance or {}
        self.buckets = {
            shape: [
                photo
                for photo, (own, repeats) in enumerate(
                    zip(instances.shapes, instances.repeats, strict=True)
                )
                if own == shape
                for _ in range(repeats)
            ]
            for shape in sorted(set(instances.shapes))
        }
        """Shape -> its photos, each as often as it comes in an epoch."""
        self._bucket_order = BucketOrder([len(b) for b in self.buckets.values()], seed=seed)
        self._crops: list[list[int]] = [[] for _ in instances.names]
        for photo, variant in instances.views:
            if variant.crop not in self._crops[photo]:
                self._crops[photo].append(variant.crop)
        self._epochs: dict[str, tuple[int, list[int]]] = {}  # the last of each stream, shuffled
        self._is_masked = any(view.weights is not None for view in instances.views.values())

    @property
    def class_moments(self) -> Moments | None:
        """Of the class pictures, if there are any."""
        return None if self.class_pictures is None else self.class_pictures.moments

    @property
    def prompts(self) -> list[str]:
        """Every prompt that batches may hold, once each."""
        dropped = [""] if self.config.caption_dropout else []
        of_class = [] if self.class_prompt is None else [self.class_prompt]
        own = [text for view in self.instances.views.values() for text in view.captions]
        return list(dict.fromkeys([*own, *of_class, *dropped]))

    def order(self, sample: int, num: int, stream: str) -> int:
        """Which of `num` items the `sample`-th draw of a stream is: each once per epoch, shuffled."""
        epoch, position = divmod(sample, num)
        if self._epochs.get(stream, (None, []))[0] != epoch:
            shuffled = list(range(num))
            random.Random(f"{self.seed} order {stream} {epoch}").shuffle(shuffled)
            self._epochs[stream] = epoch, shuffled
        return self._epochs[stream][1][position]

    def _photo_draw(self, step: int, place: int, role: Role) -> Draw:
        bucket, turn = self._bucket_order.bucket_of(step)
        shape, photos = list(self.buckets.items())[bucket]
        # A stream for each bucket, so that each has its own epochs.
        stream = role if len(self.buckets) == 1 else f"{role} {shape[0]}x{shape[1]}"
        photo = photos[self.order(turn * self.batch_size + place, len(photos), stream)]
        rng = random.Random(f"{self.seed} {role} {step * self.batch_size + place}")
        mirrored = rng.random() < self.config.flip_probability
        crop = self._crops[photo][rng.randrange(len(self._crops[photo]))]
        dropped = rng.random() < self.config.caption_dropout
        color = rng.randrange(NUM_COLORS) if self.config.color_jitter else 0
        variant = Variant(crop, mirrored, color)
        prompt = rng.choice(self.instances.views[photo, variant].captions)
        if role == "class":
            prompt = self.class_prompt or ""
        return Draw(role, place, photo, variant, "" if dropped and role == "instance" else prompt)

    def _class_draw(self, step: int, place: int) -> Draw:
        if self.class_pictures is None or self.instances_as_class:
            return self._photo_draw(step, place, "class")
        sample = step * self.batch_size + place
        picture = self.order(sample, len(self.class_pictures), "class")
        return Draw("class", place, picture, None, self.class_prompt or "")

    def draws(self, step: int, places: range | None = None) -> list[Draw]:
        """What `places` of step `step`'s global batch show (all of them): instances, then class examples."""
        places = range(self.batch_size) if places is None else places
        draws = [self._photo_draw(step, place, "instance") for place in places]
        if self.class_prompt is not None:
            draws += [self._class_draw(step, place) for place in places]
        return draws

    def _view(self, draw: Draw) -> tuple[View, tuple[int, int]]:
        """What a draw shows, and the original height and width."""
        if draw.variant is None and self.class_pictures is not None:
            return self.class_pictures.view(draw.index), self.class_pictures.size_hw(draw.index)
        assert draw.variant is not None
        view = self.instances.views[draw.index, draw.variant]
        return view, self.instances.original_size_hw[draw.index]

    def micro_batch(self, step: int, *, num_micro: int, micro: int) -> Batch:
        """Part `micro` of the `num_micro` equal parts of optimizer step `step`'s global batch."""
        per_micro = self.batch_size // num_micro
        draws = self.draws(step, range(micro * per_micro, (micro + 1) * per_micro))
        shown = [self._view(draw) for draw in draws]
        moments = Moments.cat([view.moments for view, _ in shown])
        weights = None
        if self._is_masked:
            alike = moments.mean.new_ones(1, 1, *moments.mean.shape[2:])
            weights = torch.cat(
                [
                    alike if view.weights is None or draw.role == "class" else view.weights
                    for draw, (view, _) in zip(draws, shown, strict=True)
                ]
            )
        return Batch(
            moments,
            [draw.prompt for draw in draws],
            torch.tensor([draw.role == "class" for draw in draws]),
            [draw.place for draw in draws],
            step,
            [size_hw for _, size_hw in shown],
            [view.corner for view, _ in shown],
            weights,
        )
