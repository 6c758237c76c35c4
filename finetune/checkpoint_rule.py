"""The checkpoint rule: which step of a run to keep, when to stop, and where it began to overfit.

Pure arithmetic on scores; who makes them is `validation`. No published rule is followed: Ruiz et al. 2023
show (Table 3) that subject fidelity alone rises while the class is being lost, so it is maximised here under
limits on what overfitting costs. The limits are ratios, because cosines of different encoders have different
scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from data_prep.config import Section


class Limits(Section):
    """What a checkpoint may cost at most; beyond, it counts as overfitted."""

    max_drift: float = Field(0.5, gt=0)
    """Drift of pictures that do not show the subject, as a share of what another noise seed changes in the
    frozen base's pictures of the same prompts (its 1 - cosine within a prompt): at 1 nothing but the prompt
    is left of the base's pictures."""
    max_copy_share: float = Field(0.25, ge=0, le=1)
    """Share of pictures of the subject that pass for copies of a training photo."""
    min_prompt_fidelity: float = Field(0.85, ge=0)
    """Prompt fidelity as a share of the frozen base's on the same prompts with the class noun. With CLIP
    ViT-B/32, where the base is near 0.3, the default is the gap of 0.05 that users notice (Ruiz et al. 2023,
    §4.1)."""

    def in_words(self) -> str:
        """The rule in a sentence."""
        return (
            "The recommended checkpoint has the highest subject fidelity among those whose drift is at most "
            f"{self.max_drift:g} of what another noise seed changes in the frozen base's pictures, of whose "
            f"pictures at most {self.max_copy_share:.0%} pass for copies of a photo, and whose prompt "
            f"fidelity is at least {self.min_prompt_fidelity:.0%} of the frozen base's."
        )


@dataclass(frozen=True)
class Scale:
    """What the frozen base scores on the validation prompts."""

    prompt_fidelity: float
    noise: float
    """Mean 1 - cosine between its pictures of one prompt at different noise seeds."""

    def limits(self, limits: Limits) -> dict[str, float]:
        """The limits in the scores' own units; prompt fidelity's is a lower one.

        What prompt fidelity may lose is a share of the size of the base's, so that an encoder by which the
        base meets its prompts worse than nothing (below 0) sets a limit as well.
        """
        lost = (1 - limits.min_prompt_fidelity) * abs(self.prompt_fidelity)
        return {
            "drift": limits.max_drift * self.noise,
            "copy_share": limits.max_copy_share,
            "prompt_fidelity": self.prompt_fidelity - lost,
        }


@dataclass(frozen=True)
class Point:
    """Scores of one checkpoint, means over its pictures."""

    step: int
    subject_fidelity: float
    prompt_fidelity: float
    drift: float
    copy_share: float

    def excess(self, scale: Scale, limits: Limits) -> dict[str, float]:
        """How far beyond each limit that it breaks it is, in that limit's own unit.

        All are shares in which 1 is a whole: of what another noise seed changes, of the pictures, of the
        frozen base's prompt fidelity. Where the base has none of it, whatever is beyond counts as a whole.
        """
        at = scale.limits(limits)
        beyond = {
            "drift": (self.drift - at["drift"], scale.noise),
            "copy_share": (self.copy_share - at["copy_share"], 1.0),
            "prompt_fidelity": (
                at["prompt_fidelity"] - self.prompt_fidelity,
                abs(scale.prompt_fidelity),
            ),
        }
        return {
            name: value / whole if whole > 0 else 1.0
            for name, (value, whole) in beyond.items()
            if value > 0
        }


def is_allowed(point: Point, scale: Scale, limits: Limits) -> bool:
    """Whether a checkpoint breaks no limit."""
    return not point.excess(scale, limits)


def recommended(points: Sequence[Point], scale: Scale, limits: Limits) -> Point | None:
    """The allowed checkpoint of highest subject fidelity, the earlier of equals; None if none is allowed."""
    allowed = [point for point in points if is_allowed(point, scale, limits)]
    return max(allowed, key=lambda point: (point.subject_fidelity, -point.step), default=None)


def least_bad(points: Sequence[Point], scale: Scale, limits: Limits) -> Point | None:
    """The recommended checkpoint or, where none is allowed, the one least beyond the limits."""
    best = recommended(points, scale, limits)
    if best is not None or not points:
        return best
    return min(points, key=lambda p: (sum(p.excess(scale, limits).values()), p.step))


def overfits_from(points: Sequence[Point], scale: Scale, limits: Limits) -> int | None:
    """First step from which on every checkpoint breaks a limit; None if the last one breaks none."""
    first = None
    for point in sorted(points, key=lambda point: point.step, reverse=True):
        if is_allowed(point, scale, limits):
            return first
        first = point.step
    return first


def has_stalled(points: Sequence[Point], scale: Scale, limits: Limits, *, patience: int) -> bool:
    """Whether the last `patience` checkpoints brought nothing that the rule would recommend."""
    best = recommended(points, scale, limits)
    since = [p for p in points if best is None or p.step > best.step]
    return len(since) >= patience
