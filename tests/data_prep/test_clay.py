"""The clay world is the same for the same seed, and its captions tell the truth."""

from __future__ import annotations

import importlib.util
import itertools
import random
from pathlib import Path

import pytest

from data_prep.clay import world

NEEDS_SHAPES = pytest.mark.skipif(
    importlib.util.find_spec("skimage") is None, reason="needs the extra 'clay'"
)
NEEDS_MITSUBA = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("skimage", "mitsuba")),
    reason="needs the extra 'clay'",
)
NUM_TRAINING_IDENTITIES = 2720


def draw(seed: int) -> tuple[world.Identity, world.View, random.Random]:
    rng = random.Random(seed)
    identity = world.sample_identity(rng)
    return identity, world.sample_view(rng, identity), rng


def test_identity_and_view_are_functions_of_the_seed() -> None:
    first, second = draw(3), draw(3)
    assert first[:2] == second[:2]
    assert draw(4)[0] != first[0]
    assert world.Identity.from_dict(first[0].to_dict()) == first[0]


def test_shares_of_patterns_styles_and_accessories() -> None:
    drawn = [draw(seed) for seed in range(4000)]
    for name, share in world.PATTERNS.items():
        found = sum(identity.pattern == name for identity, _, _ in drawn) / 4000
        assert found == pytest.approx(share, abs=0.025)
    photos = sum(view.style == "photo" for _, view, _ in drawn) / 4000
    assert photos == pytest.approx(0.85, abs=0.02)
    for identity, view, _ in drawn:
        assert identity.color != identity.color2
        assert view.accessory is None or identity.class_noun in world.WEARERS


def plain(class_noun: str, color: str, pattern: str, color2: str) -> world.Identity:
    return world.Identity(class_noun, color, pattern, color2, 1, 2)


def view(place: str, style: str, accessory: tuple[str, str] | None) -> world.View:
    return world.View(place, style, accessory, 0, 10, 3.5, (0, 0, 0), 0, 0)


@pytest.mark.parametrize(
    ("identity", "seen", "expected"),
    [
        (
            plain("dog", "orange", "spots", "blue"),
            view("in the snow", "photo", ("hat", "red")),
            "a photo of an orange dog with blue spots wearing a red hat in the snow",
        ),
        (
            plain("cat", "white", "belly", "orange"),
            view("at night", "pencil sketch", ("scarf", "orange")),
            "a pencil sketch of a white cat with an orange belly wearing an orange scarf at night",
        ),
        (
            plain("mug", "gray", "plain", "blue"),
            view("on the beach", "watercolor painting", None),
            "a watercolor painting of a gray mug on the beach",
        ),
    ],
)
def test_caption_without_rng_names_every_attribute(
    identity: world.Identity, seen: world.View, expected: str
) -> None:
    assert world.caption(identity, seen) == expected


def test_caption_names_only_what_is_told() -> None:
    identity, seen = (
        plain("dog", "red", "spots", "blue"),
        view("at night", "photo", ("hat", "pink")),
    )
    expected = {
        "color": "a red dog",
        "pattern": "a dog with blue spots",
        "accessory": "a dog wearing a pink hat",
        "place": "a dog at night",
        "style": "a photo of a dog",
    }
    for attribute, text in expected.items():
        assert world.caption(identity, seen, told=frozenset({attribute})) == text
    assert set(expected) == world.ATTRIBUTES


def test_random_captions_say_nothing_untrue() -> None:
    for seed in range(500):
        identity, seen, rng = draw(seed)
        whole = world.caption(identity, seen).split()
        told = [word for word in world.caption(identity, seen, rng).split() if word != "sks"]
        articles = {"a", "an"}
        assert set(told) - articles <= set(whole) - articles
        assert identity.class_noun in told
        assert seen.style == "photo" or seen.style.split()[-1] in told


def test_rare_token_share_over_many_captions() -> None:
    captions = []
    for seed in range(10_000):
        identity, seen, rng = draw(seed)
        captions.append((world.caption(identity, seen, rng), identity.class_noun))
    rare = [(text.split(), noun) for text, noun in captions if "sks" in text.split()]
    # 1 % of 10,000 is 100 with a standard deviation of 10.
    assert 70 <= len(rare) <= 130
    for words, noun in rare:
        after = words[words.index("sks") + 1 :]
        assert after[0] == noun or (after[0] in world.COLORS and after[1] == noun)
    # It stands before everything alike, so that it means nothing.
    assert {noun for _, noun in rare} == set(world.CLASSES)


def test_all_words_covers_every_caption_and_nothing_else() -> None:
    said = set()
    combinations = itertools.product(
        world.CLASSES, world.COLORS, world.PATTERNS, [None, *world.ACCESSORIES]
    )
    for index, (noun, color, pattern, accessory) in enumerate(combinations):
        color2 = list(world.COLORS)[index % len(world.COLORS)]
        place = world.PLACES[index % len(world.PLACES)]
        style = list(world.STYLES)[index % len(world.STYLES)]
        worn = None if accessory is None else (accessory, color2)
        seen = view(place, style, worn)
        said |= set(world.caption(plain(noun, color, pattern, color2), seen).split())
    for seed in range(2000):
        identity, seen, rng = draw(seed)
        said |= set(world.caption(identity, seen, rng, rare_token_share=0.1).split())
    assert said == set(world.all_words())
    assert world.all_words() == sorted(world.all_words())


@NEEDS_SHAPES
def test_example_subjects_are_not_in_the_training_world() -> None:
    from data_prep.clay.dataset import identity_rng
    from data_prep.clay.subjects import HELD_OUT_PLACES, SUBJECTS, TRAINING_PLACES

    world_identities = [
        world.sample_identity(identity_rng(0, index)) for index in range(NUM_TRAINING_IDENTITIES)
    ]
    assert not set(SUBJECTS.values()) & set(world_identities)
    shapes = {(identity.class_noun, identity.shape_seed) for identity in world_identities}
    assert len(shapes) == NUM_TRAINING_IDENTITIES
    assert not {(s.class_noun, s.shape_seed) for s in SUBJECTS.values()} & shapes
    assert {*TRAINING_PLACES, *HELD_OUT_PLACES} == set(world.PLACES)


@NEEDS_SHAPES
def test_metadata_rows_are_read_back_in_order(tmp_path: Path) -> None:
    from data_prep.clay.dataset import describe, read_metadata

    identity, seen, _ = draw(5)
    row = describe(identity, seen)
    assert world.Identity.from_dict(row["identity"]) == identity
    assert (row["style"], row["place"], row["accessory"]) == (
        seen.style,
        seen.place,
        seen.accessory,
    )
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "000032.jsonl").write_text('{"n": 2}\n{"n": 3}\n')
    (tmp_path / "shards" / "000000.jsonl").write_text('{"n": 0}\n{"n": 1}\n')
    (tmp_path / "shards" / "000064.partial").write_text('{"n": 4}\n')
    assert [row["n"] for row in read_metadata(tmp_path)] == [0, 1, 2, 3]


@NEEDS_MITSUBA
def test_same_seed_gives_the_same_bytes_and_views_of_one_identity_differ() -> None:
    from data_prep.clay.render import build_model, encode_jpeg, render

    identity, _, rng = draw(11)
    first = world.plain_view(rng, identity, place="on the grass")
    second = world.plain_view(rng, identity, place="in the snow")
    model = build_model(identity)
    pictures = [render(model, seen, size=32, samples_per_pixel=4) for seen in (first, second)]
    assert [picture.size for picture in pictures] == [(32, 32)] * 2
    again = render(build_model(draw(11)[0]), first, size=32, samples_per_pixel=4)
    assert encode_jpeg(again) == encode_jpeg(pictures[0])
    assert model.identity == identity
    # Grass is greenest, snow is bright: the lower corners show the ground.
    grass, snow = (picture.getpixel((1, 30)) for picture in pictures)
    assert grass[1] > max(grass[0], grass[2]) + 20
    assert min(snow) > 150
