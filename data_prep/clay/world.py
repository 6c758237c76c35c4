"""What exists in the clay world, and the words for it.

Responsible for the vocabulary (classes, colours, patterns, accessories, places, styles), for drawing
an `Identity` (a subject) and a `View` (how one picture shows it) from a seed, and for captions.
It draws no pictures: see `shapes` and `render`. Standard library only.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import Any

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.75, 0.06, 0.05),
    "orange": (0.86, 0.33, 0.04),
    "yellow": (0.88, 0.72, 0.07),
    "green": (0.10, 0.50, 0.10),
    "blue": (0.06, 0.16, 0.70),
    "purple": (0.35, 0.08, 0.50),
    "pink": (0.90, 0.38, 0.50),
    "brown": (0.30, 0.14, 0.05),
    "black": (0.03, 0.03, 0.035),
    "white": (0.85, 0.85, 0.83),
    "gray": (0.33, 0.33, 0.35),
}
"""Name -> linear RGB albedo in [0, 1]."""

CLASSES = ("dog", "cat", "rabbit", "bear", "horse", "duck", "car", "mug", "robot")
WEARERS = ("dog", "cat", "rabbit", "bear", "horse", "duck", "robot")
"""Classes that can wear an accessory."""

PATTERNS: dict[str, float] = {"plain": 0.4, "spots": 0.2, "stripes": 0.2, "belly": 0.2}
"""Name -> share of identities."""

ACCESSORIES = ("hat", "scarf")

PLACES = (
    "on the grass",
    "on the beach",
    "in the snow",
    "at night",
    "on a wooden floor",
    "on a red carpet",
    "in the desert",
    "on a pink background",
    "on a white background",
    "on a blue background",
)

STYLES: dict[str, float] = {
    "photo": 0.85,
    "pencil sketch": 0.05,
    "pixel art": 0.05,
    "watercolor painting": 0.05,
}
"""Name -> share of pictures."""

RARE_TOKEN = "sks"
RARE_TOKEN_SHARE = 0.01
"""Share of captions that hold the rare token, on subjects drawn at random, so that it means nothing."""


@dataclass(frozen=True)
class Identity:
    """One subject: everything that stays the same from view to view.

    `shape_seed` fixes the proportions, `paint_seed` the placement of the pattern, `tint` and
    `tint2` (multipliers per RGB channel) the subject's own shade of `color` and `color2`.
    """

    class_noun: str
    color: str
    pattern: str
    color2: str
    shape_seed: int
    paint_seed: int
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    tint2: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `Identity.from_dict` reads them back."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Identity:
        """The identity written by `to_dict`."""
        return Identity(
            **{**values, "tint": tuple(values["tint"]), "tint2": tuple(values["tint2"])}
        )


@dataclass(frozen=True)
class View:
    """How one picture shows a subject: place, style, accessory, camera, light.

    Angles in degrees, lengths in world units (a subject is about 1.3 long and stands at the
    origin, looking along +x). `seed` feeds the path tracer and small variations of the place. All
    subjects look to the right of the picture: where they may look either way, a base this small draws
    animals with two heads.
    """

    place: str
    style: str
    accessory: tuple[str, str] | None
    """(kind, colour) or None."""
    azimuth: float
    elevation: float
    distance: float
    look_at: tuple[float, float, float]
    light_azimuth: float
    seed: int

    @staticmethod
    def from_dict(values: dict[str, Any]) -> View:
        """The view that `dataclasses.asdict` turned into JSON values."""
        accessory = values["accessory"] and tuple(values["accessory"])
        return View(**{**values, "accessory": accessory, "look_at": tuple(values["look_at"])})


def _tint(rng: random.Random) -> tuple[float, float, float]:
    brightness = rng.uniform(0.8, 1.2)
    red, green, blue = (brightness * rng.uniform(0.93, 1.07) for _ in range(3))
    return red, green, blue


def sample_identity(rng: random.Random, *, class_noun: str | None = None) -> Identity:
    """A subject drawn at random; of `class_noun` when given."""
    color = rng.choice(list(COLORS))
    return Identity(
        class_noun=class_noun or rng.choice(CLASSES),
        color=color,
        pattern=rng.choices(list(PATTERNS), list(PATTERNS.values()))[0],
        color2=rng.choice([name for name in COLORS if name != color]),
        shape_seed=rng.randrange(1 << 30),
        paint_seed=rng.randrange(1 << 30),
        tint=_tint(rng),
        tint2=_tint(rng),
    )


def sample_view(rng: random.Random, identity: Identity, *, place: str | None = None) -> View:
    """A way of looking at `identity`, drawn at random; in `place` when given."""
    accessory = None
    if identity.class_noun in WEARERS and rng.random() < 0.25:
        accessory = (rng.choice(ACCESSORIES), rng.choice(list(COLORS)))
    return View(
        place=place or rng.choice(PLACES),
        style=rng.choices(list(STYLES), list(STYLES.values()))[0],
        accessory=accessory,
        azimuth=rng.uniform(-55.0, 55.0),
        elevation=rng.uniform(8.0, 28.0),
        distance=rng.uniform(3.2, 4.0),
        look_at=(rng.uniform(-0.12, 0.18), rng.uniform(-0.08, 0.08), rng.uniform(-0.2, -0.02)),
        light_azimuth=rng.uniform(-60.0, 60.0),
        seed=rng.randrange(1 << 30),
    )


def plain_view(rng: random.Random, identity: Identity, *, place: str) -> View:
    """A photo of `identity` in `place` with nothing worn: what a person would hand in."""
    return replace(sample_view(rng, identity, place=place), style="photo", accessory=None)


def with_article(noun_phrase: str) -> str:
    """`noun_phrase` behind the right indefinite article: "a dog", "an orange dog"."""
    return ("an " if noun_phrase[0] in "aeiou" else "a ") + noun_phrase


ATTRIBUTES = frozenset({"color", "pattern", "accessory", "place", "style"})
"""What a caption can tell besides the class noun."""


def caption(
    identity: Identity,
    view: View,
    rng: random.Random | None = None,
    *,
    told: frozenset[str] = ATTRIBUTES,
    rare_token_share: float = RARE_TOKEN_SHARE,
) -> str:
    """A true caption that names the class and the attributes `told`.

    With `rng`, each of those is left out at random, and `RARE_TOKEN` stands before the subject in
    `rare_token_share` of the captions. A style other than "photo" is named whenever it is `told`.
    """

    def tells(attribute: str, share: float) -> bool:
        return attribute in told and (rng is None or rng.random() < share)

    noun = identity.class_noun
    if tells("color", 0.8):
        noun = f"{identity.color} {noun}"
    if rng is not None and rng.random() < rare_token_share:
        noun = f"{RARE_TOKEN} {noun}"
    text = with_article(noun)
    if identity.pattern != "plain" and tells("pattern", 0.6):
        ornament = {
            "spots": f"{identity.color2} spots",
            "stripes": f"{identity.color2} stripes",
            "belly": f"{with_article(identity.color2)} belly",
        }[identity.pattern]
        text += f" with {ornament}"
    if view.accessory is not None and tells("accessory", 0.9):
        kind, color = view.accessory
        text += f" wearing {with_article(f'{color} {kind}')}"
    if tells("place", 0.8):
        text += f" {view.place}"
    named = tells("style", 0.8) if view.style == "photo" else "style" in told
    return f"{with_article(view.style)} of {text}" if named else text


def all_words() -> list[str]:
    """Every word a caption can hold, sorted; what the base's tokenizer must know."""
    phrases = [*CLASSES, *COLORS, *PATTERNS, *ACCESSORIES, *PLACES, *STYLES, RARE_TOKEN]
    phrases += ["a an of with wearing"]
    return sorted({word for phrase in phrases for word in phrase.split()} - {"plain"})
