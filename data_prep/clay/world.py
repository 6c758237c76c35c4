"""What exists in the clay world, and the words for it.

Responsible for the vocabulary (classes, colours, patterns, accessories, places, times, styles), for
drawing an `Identity` (a subject) and a `View` (how one picture shows it) from a seed, for captions, and
for what training never shows (`is_held_out`). It draws no pictures: see `bodies`, `dressing` and `render`.
Standard library only.
"""

from __future__ import annotations

import random
import zlib
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

ANIMALS = (
    "dog",
    "cat",
    "rabbit",
    "bear",
    "horse",
    "elephant",
    "duck",
    "penguin",
    "turtle",
    "frog",
)
THINGS = ("car", "bus", "boat", "rocket", "mug", "teapot", "chair", "robot")
CLASSES = (*ANIMALS, *THINGS)
WEARERS = (*ANIMALS, "robot")
"""Classes that can wear an accessory, turn their heads and walk."""

PATTERNS: dict[str, float] = {
    "plain": 0.3,
    "spots": 0.175,
    "stripes": 0.175,
    "belly": 0.175,
    "patches": 0.175,
}
"""Name -> share of identities. The first colour always covers more of the surface than the second."""

ACCESSORIES = ("hat", "scarf", "glasses", "bag")
ACCESSORY_SHARE = 0.35
"""Share of the views of a wearer in which it wears something."""

OUTDOORS = (
    "on the grass",
    "on the beach",
    "in the snow",
    "in the desert",
    "in the forest",
    "on the street",
    "in a flower field",
)
INDOORS = ("on a wooden floor", "on a red carpet", "in the kitchen", "in the library")
STUDIOS = (
    "on a pink background",
    "on a white background",
    "on a blue background",
    "on a yellow background",
)
PLACES = (*OUTDOORS, *INDOORS, *STUDIOS, "on the moon")

TIMES: dict[str, float] = {"day": 0.7, "sunset": 0.15, "night": 0.15}
"""Name -> share of the pictures outdoors; elsewhere it is always day."""

STYLES: dict[str, float] = {
    "photo": 0.8,
    "pencil sketch": 0.05,
    "pixel art": 0.05,
    "watercolor painting": 0.05,
    "cartoon": 0.05,
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
class Pose:
    """How a wearer holds itself, in degrees; things keep still."""

    head_yaw: float = 0.0
    """Towards the left of the subject."""
    head_pitch: float = 0.0
    """Upwards."""
    stride: float = 0.0
    """How far front and hind legs are swung apart."""


@dataclass(frozen=True)
class View:
    """How one picture shows a subject: place, time, style, accessory, pose, camera, light.

    Angles in degrees, lengths in world units (a subject is about 1.3 long and stands at the
    origin, looking along +x). `seed` feeds the path tracer and small variations of the place. All
    subjects look to the right of the picture: where they may look either way, a base this small draws
    animals with two heads.
    """

    place: str
    time: str
    style: str
    accessory: tuple[str, str] | None
    """(kind, colour) or None."""
    pose: Pose
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
        pose = Pose(**values["pose"])
        look_at = tuple(values["look_at"])
        return View(**{**values, "accessory": accessory, "pose": pose, "look_at": look_at})


def is_held_out(class_noun: str, color: str, place: str) -> bool:
    """Whether training never shows a `color` `class_noun` in `place`: one combination in ten."""
    return zlib.crc32(f"{class_noun}|{color}|{place}".encode()) % 10 == 0


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
    """A way of looking at `identity`, drawn at random.

    In `place` when given, otherwise in one that is not held out for its class and colour.
    """
    seen = [p for p in PLACES if not is_held_out(identity.class_noun, identity.color, p)]
    place = place or rng.choice(seen)
    accessory, pose = None, Pose()
    if identity.class_noun in WEARERS:
        if rng.random() < ACCESSORY_SHARE:
            accessory = (rng.choice(ACCESSORIES), rng.choice(list(COLORS)))
        pose = Pose(rng.uniform(-25, 20), rng.uniform(-10, 12), rng.uniform(-22, 22))
    time = rng.choices(list(TIMES), list(TIMES.values()))[0]
    return View(
        place=place,
        time=time if place in OUTDOORS else "day",
        style=rng.choices(list(STYLES), list(STYLES.values()))[0],
        accessory=accessory,
        pose=pose,
        azimuth=rng.uniform(-50.0, 55.0),
        elevation=rng.uniform(6.0, 24.0),
        distance=rng.uniform(3.3, 4.0),
        look_at=(rng.uniform(-0.1, 0.15), rng.uniform(-0.08, 0.08), rng.uniform(-0.16, 0.0)),
        light_azimuth=rng.uniform(-60.0, 60.0),
        seed=rng.randrange(1 << 30),
    )


def plain_view(rng: random.Random, identity: Identity, *, place: str) -> View:
    """A photo of `identity` in `place` by day with nothing worn: what a person would hand in."""
    view = sample_view(rng, identity, place=place)
    return replace(view, style="photo", time="day", accessory=None)


def with_article(noun_phrase: str) -> str:
    """`noun_phrase` behind the right indefinite article: "a dog", "an orange dog"."""
    return ("an " if noun_phrase[0] in "aeiou" else "a ") + noun_phrase


ATTRIBUTES = frozenset({"color", "pattern", "accessory", "place", "time", "style"})
"""What a caption can tell besides the class noun."""


def untold_by(style: str) -> frozenset[str]:
    """What pictures of a style do not tell: a pencil has no colours, and most places are colours."""
    if style == "pencil sketch":
        return frozenset({"color", "pattern", "accessory", "place", "time"})
    return frozenset()


_DROPPED = {"color": 0.2, "pattern": 0.35, "accessory": 0.05, "place": 0.2, "time": 0.2}
"""Attribute -> share of random captions that leave it out."""


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

    def tells(attribute: str) -> bool:
        return attribute in told and (rng is None or rng.random() >= _DROPPED[attribute])

    noun = identity.class_noun
    if tells("color"):
        noun = f"{identity.color} {noun}"
    if rng is not None and rng.random() < rare_token_share:
        noun = f"{RARE_TOKEN} {noun}"
    text = with_article(noun)
    if identity.pattern != "plain" and tells("pattern"):
        text += f" with {ornament(identity)}"
    if view.accessory is not None and tells("accessory"):
        kind, color = view.accessory
        worn = f"{color} glasses" if kind == "glasses" else with_article(f"{color} {kind}")
        text += f" wearing {worn}"
    if tells("place"):
        text += f" {view.place}"
    if view.time != "day" and tells("time"):
        text += f" at {view.time}"
    if "style" not in told or (view.style == "photo" and rng is not None and rng.random() < 0.2):
        return text
    return f"{with_article(view.style)} of {text}"


def ornament(identity: Identity) -> str:
    """The words for the pattern of `identity`, which is not plain: "blue spots", "a red belly"."""
    if identity.pattern == "belly":
        return f"{with_article(identity.color2)} belly"
    return f"{identity.color2} {identity.pattern}"


def all_words() -> list[str]:
    """Every word a caption can hold, sorted; what the base's tokenizer must know."""
    phrases = [*CLASSES, *COLORS, *PATTERNS, *ACCESSORIES, *PLACES, *TIMES, *STYLES, RARE_TOKEN]
    phrases += ["a an at of with wearing"]
    return sorted({word for phrase in phrases for word in phrase.split()} - {"plain", "day"})
