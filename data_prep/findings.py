"""What may hurt training in photos that can be read: per photo and over the set, each with the reason.

Findings are warnings. Where a measure cannot tell, nothing is said: a false alarm costs more than a missed
one. What a photo shows (another person, a second dog) no measure here can see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_prep.decode import Photo
from data_prep.duplicates import Duplicate, Print, find_duplicates, print_of
from data_prep.measures import (
    Backdrop,
    Subject,
    backdrop_of,
    bars,
    blur,
    subject_from_color,
    subject_from_mask,
    to_lab,
)
from data_prep.transforms import crop_square, resized_wh

MAX_BLUR = 0.55
"""Sharp photos stay below 0.45 at 512 px, a Gaussian blur of 3 px gives 0.56 and more."""
MIN_SUBJECT_SHARE = 0.02
"""Of the crop."""
MAX_EDGE_SHARE = 0.25
"""Of the left, right or top edge that a whole subject may cover; below, portraits are cut as well."""
MAX_CUT_SHARE = 0.1
"""Of the subject that a crop may leave out."""
PLAIN = 0.6
"""Share of the ring near its median from which a backdrop counts as plain."""
VERY_PLAIN = 0.95
"""The same, where the subject is told from it by colour."""
SAME_BACKDROP = 5.0
"""Lab units between plain backdrops that are one."""
SAME_TEXTURE = 3.0
"""Lab units between backdrops that are one where they are not plain."""
MIN_BACKDROP_SHARE = 0.75
"""Of the photos (three at least) that have to have one backdrop."""
_MAX_LISTED = 20

REASONS = {
    "too_small": "What is enlarged is soft, and softness is learned. Use larger photos or a smaller size.",
    "very_long": "What the crop leaves out is never seen. Crop it yourself around the subject.",
    "blurred": "Blur is learned as if it belonged to the subject. Use sharper photos.",
    "bars": "Bars are learned and come back in pictures. Cut them off.",
    "blank": "There is nothing to learn from it. Remove it.",
    "subject_small": "A subject of a few pixels has no detail to learn. Crop closer.",
    "subject_cut": "A cut subject is learned as cut. Use photos that show all of it, or crop wider.",
    "duplicates": "A photo that is there twice counts twice, and its pose and place are memorised. Keep one.",
    "one_backdrop": "What all photos share is learned as part of the subject. Add photos from other places.",
}
"""Kind of finding -> why it hurts and what to do."""


@dataclass(frozen=True)
class Remark:
    """One finding about one photo."""

    kind: str
    """A key of `REASONS`."""
    text: str


@dataclass(frozen=True)
class Finding:
    """A kind of finding with all photos that it is about, by their places."""

    kind: str
    photos: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Traits:
    """What is kept of a photo to compare it with the others of its set."""

    print: Print
    backdrop: Backdrop


def traits_of(small: Image.Image) -> Traits:
    """From the whole picture at a small size."""
    return Traits(print_of(small), backdrop_of(to_lab(small)))


def _subject_remarks(subject: Subject, *, edges: tuple[str, ...], hedge: str) -> list[Remark]:
    remarks = []
    if 0.001 < subject.share < MIN_SUBJECT_SHARE:
        remarks.append(
            Remark("subject_small", f"{hedge} covers {subject.share:.1%} of the crop".strip())
        )
    cut = [name for name in edges if subject.edges[name] >= MAX_EDGE_SHARE]
    # A picture that is all subject touches every edge.
    if cut and subject.share < 0.9:
        remarks.append(Remark("subject_cut", f"{hedge} is cut off at the {' and '.join(cut)}"))
    return remarks


def _subject(photo: Photo, crop: Image.Image, corner: tuple[int, int]) -> list[Remark]:
    """From the mask if there is one, else by colour if the backdrop is very plain."""
    if photo.mask is None:
        lab = to_lab(crop)
        backdrop = backdrop_of(lab)
        if backdrop.plainness < VERY_PLAIN:
            return []
        subject = subject_from_color(lab, backdrop)
        return _subject_remarks(
            subject, edges=("left", "right", "top"), hedge="what differs from the backdrop"
        )
    size = resized_wh(photo.mask.size, (crop.height, crop.width))
    whole = np.asarray(photo.mask.resize(size, Image.Resampling.BOX)) / 255
    top, left = corner
    kept = whole[top : top + crop.height, left : left + crop.width]
    remarks = _subject_remarks(
        subject_from_mask(kept), edges=("left", "right", "top", "bottom"), hedge="the subject"
    )
    lost = 1 - kept.sum() / whole.sum()
    if lost > MAX_CUT_SHARE:
        remarks = [remark for remark in remarks if remark.kind != "subject_cut"]
        remarks.append(Remark("subject_cut", f"the crop cuts off {lost:.0%} of the subject"))
    return remarks


def remarks_on(
    photo: Photo, crop: Image.Image, corner: tuple[int, int], size: int
) -> tuple[Remark, ...]:
    """Findings about one photo; `crop` is `size` × `size` as trained, `corner` its (top, left)."""
    remarks = []
    short = min(photo.size_hw)
    if short < size:
        remarks.append(Remark("too_small", f"smaller than {size} px: will be enlarged and soft"))
    if max(photo.size_hw) > 2 * short:
        remarks.append(Remark("very_long", "very long: the crop keeps less than half of it"))
    if np.ptp(np.asarray(crop), axis=(0, 1)).max() <= 8:
        return (*remarks, Remark("blank", "a single colour"))
    # An enlarged picture is soft by that alone, which is said already.
    measured = crop if short >= size else crop_square(photo.image, max(short, 1))[0]
    blurred = blur(measured)
    if blurred is not None and blurred > MAX_BLUR:
        remarks.append(
            Remark("blurred", f"blurred ({blurred:.2f} of 1; sharp is below {MAX_BLUR})")
        )
    for share, sides in zip(bars(crop), ("top and bottom", "left and right"), strict=True):
        if share > 0:
            remarks.append(Remark("bars", f"bars at {sides}, {share:.0%} of the crop"))
    return (*remarks, *_subject(photo, crop, corner))


def duplicate_text(pair: Duplicate, other: str) -> str:
    """What one of a pair is to the `other`."""
    mirrored, shifted = ["mirrored"] * pair.mirrored, ["shifted"] * pair.shifted
    return ", ".join([f"same picture as {other}", *mirrored, *shifted])


def numbers(places: list[int]) -> str:
    """Photos by their numbers in the table, from 1; a long list is cut."""
    listed = ", ".join(str(place + 1) for place in places[:_MAX_LISTED])
    more = len(places) - _MAX_LISTED
    return f"photo{'s' * (len(places) > 1)} {listed}" + (f" and {more} more" if more > 0 else "")


def _one_backdrop(places: list[int], traits: list[Traits]) -> Finding | None:
    """The largest group of photos whose backdrops are near one of theirs, if it is most of the set."""
    best: list[int] = []
    for centre in traits:
        group = []
        for place, other in zip(places, traits, strict=True):
            plain = min(centre.backdrop.plainness, other.backdrop.plainness) >= PLAIN
            limit = SAME_BACKDROP if plain else SAME_TEXTURE
            if centre.backdrop.distance(other.backdrop) < limit:
                group.append(place)
        best = max(best, group, key=len)
    if len(best) < max(3, MIN_BACKDROP_SHARE * len(places)):
        return None
    text = f"one backdrop in {len(best)} of {len(places)} photos ({numbers(best)})"
    return Finding("one_backdrop", tuple(best), text)


def findings_over(
    places: list[int], traits: list[Traits]
) -> tuple[list[Finding], list[tuple[int, int, Duplicate]]]:
    """Findings about the set, and the pairs of photos that show the same, by their places."""
    pairs = [
        (places[pair.first], places[pair.second], pair)
        for pair in find_duplicates([each.print for each in traits])
    ]
    backdrop = _one_backdrop(places, traits)
    return ([] if backdrop is None else [backdrop]), pairs
