"""Aspect-ratio buckets: the shapes photos are trained at, and the shape of each step.

A step is of one bucket, whatever parts its batch is cut into: so accumulation and several processes see
what one process sees. Over a round of steps each bucket has as many as its share of the photos.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

MAX_RATIO = 2.0
"""Of the sides of a bucket; longer photos are cropped."""

Shape = tuple[int, int]
"""Height and width in pixels."""


def bucket_shapes(size: int) -> list[Shape]:
    """The shapes with at most the area of a `size` × `size` square, which is among them.

    Sides are multiples of a sixteenth of `size`, itself a multiple of 16, as all families take them.
    """
    step = max(16, size // 256 * 16)
    sides = range(step, int(size * MAX_RATIO) + 1, step)
    shapes = {(size, size)}
    for height in sides:
        width = size * size // height // step * step
        if width and max(height, width) <= MAX_RATIO * min(height, width):
            shapes |= {(height, width), (width, height)}
    return sorted(shapes)


def nearest_shape(size_hw: Shape, shapes: Sequence[Shape]) -> Shape:
    """The shape whose ratio of sides is nearest, the larger of two."""
    ratio = math.log(size_hw[0] / size_hw[1])
    return min(shapes, key=lambda s: (abs(math.log(s[0] / s[1]) - ratio), -s[0] * s[1]))


class BucketOrder:
    """The bucket of every step, a pure function of (seed, step)."""

    def __init__(self, num_samples: Sequence[int], *, seed: int) -> None:
        """`num_samples`: how many samples an epoch has of each bucket."""
        self.seed = seed
        divisor = math.gcd(*num_samples)
        self._round = [
            bucket for bucket, number in enumerate(num_samples) for _ in range(number // divisor)
        ]
        self._last: tuple[int, list[int]] = -1, []  # number of a round, and the round shuffled

    def bucket_of(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and how many steps before it were of that bucket."""
        number, position = divmod(step, len(self._round))
        if self._last[0] != number:
            shuffled = list(self._round)
            random.Random(f"{self.seed} buckets {number}").shuffle(shuffled)
            self._last = number, shuffled
        shuffled = self._last[1]
        bucket = shuffled[position]
        before = number * self._round.count(bucket) + shuffled[:position].count(bucket)
        return bucket, before
