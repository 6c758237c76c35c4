"""Folders of captioned clay pictures, rendered in parallel, resumable, the same for the same seed.

Writes `images/*.jpg` and `metadata.jsonl` (the Hugging Face "imagefolder" layout: `file_name`, `text`,
and the true attributes). Work is cut into shards; a finished shard is never rendered again, a broken one
is named and rendered anew.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.clay import world
from data_prep.errors import DataError

VIEWS_PER_IDENTITY = 3
CAPTIONS_PER_PICTURE = 4
_IDENTITIES_PER_SHARD = 32
PICTURES_PER_SHARD = VIEWS_PER_IDENTITY * _IDENTITIES_PER_SHARD


def require_renderer() -> None:
    """Raise `DataError` where the packages that render are not installed."""
    missing = [name for name in ("mitsuba", "skimage") if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(
            f"Rendering the clay world needs {' and '.join(missing)}, which is not installed: "
            "pip install 'finetune-subject[clay]'"
        )


def draw(seed: int, index: int) -> tuple[world.Identity, list[tuple[world.View, list[str]]]]:
    """Identity number `index` of the world `seed`, and its views with their captions."""
    rng = random.Random(f"clay {seed} {index}")
    identity = world.sample_identity(rng)
    views = []
    for _ in range(VIEWS_PER_IDENTITY):
        view = world.sample_view(rng, identity)
        captions = [world.caption(identity, view, rng) for _ in range(CAPTIONS_PER_PICTURE)]
        views.append((view, captions))
    return identity, views


def describe(identity: world.Identity, view: world.View) -> dict[str, Any]:
    """The truth about one picture, for its metadata row."""
    return {
        "style": view.style,
        "place": view.place,
        "time": view.time,
        "accessory": view.accessory,
        "identity": identity.to_dict(),
        "view": asdict(view),
    }


def _render_shard(job: tuple[Path, int, range]) -> int:
    from data_prep.clay.render import build_model, encode_jpeg, render

    folder, seed, indices = job
    rows = []
    for index in indices:
        identity, views = draw(seed, index)
        model = build_model(identity)
        for number, (view, captions) in enumerate(views):
            name = f"images/{index * VIEWS_PER_IDENTITY + number:06d}.jpg"
            (folder / name).write_bytes(encode_jpeg(render(model, view)))
            rows.append(
                {
                    "file_name": name,
                    "text": captions[0],
                    "captions": captions,
                    "identity_index": index,
                    **describe(identity, view),
                }
            )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    partial = _shard(folder, indices.start).with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.rename(partial.with_suffix(".jsonl"))
    return len(rows)


def _shard(folder: Path, start: int) -> Path:
    return folder / "shards" / f"{start:06d}.jsonl"


_END_OF_JPEG = b"\xff\xd9"


def _is_whole(picture: Path) -> bool:
    if not picture.is_file() or picture.stat().st_size < len(_END_OF_JPEG):
        return False
    with picture.open("rb") as file:
        file.seek(-len(_END_OF_JPEG), os.SEEK_END)
        return file.read() == _END_OF_JPEG


def _fault(shard: Path, folder: Path) -> str | None:
    """What is wrong with a finished shard; None where nothing is."""
    try:
        rows = [json.loads(line) for line in shard.read_text("utf-8").splitlines()]
        names = [row["file_name"] for row in rows]
    except (ValueError, KeyError, TypeError):
        return "is not what was written"
    if len(names) != PICTURES_PER_SHARD:
        return f"lists {len(names)} pictures instead of {PICTURES_PER_SHARD}"
    for name in names:
        if not _is_whole(folder / name):
            return f"lists {name}, which is missing or cut short"
    return None


def _check_world(shard: Path, seed: int) -> None:
    """Raise `DataError` for a shard of another world, which is nobody's to delete."""
    first = json.loads(shard.read_text("utf-8").splitlines()[0])
    identity, _ = draw(seed, first["identity_index"])
    if first["identity"] != json.loads(json.dumps(identity.to_dict())):
        raise DataError(
            f"{shard} is of another world than seed {seed} has now. Render into another folder."
        )


def _still_to_render(
    folder: Path, jobs: list[tuple[Path, int, range]], warn: Callable[[str], None]
) -> list[tuple[Path, int, range]]:
    missing = []
    for job in jobs:
        shard = _shard(folder, job[2].start)
        if not shard.is_file():
            missing.append(job)
        elif fault := _fault(shard, folder):
            warn(f"{shard} {fault}; its pictures are rendered anew.")
            shard.unlink()
            missing.append(job)
        else:
            _check_world(shard, job[1])
    return missing


def render_dataset(
    folder: Path,
    *,
    num_pictures: int,
    seed: int,
    num_workers: int | None = None,
    warn: Callable[[str], None] = print,
) -> Iterator[int]:
    """Render the first `num_pictures` pictures of the world `seed` into `folder`.

    Yields the number of pictures just added, shard by shard, the ones of an earlier run first; broken
    shards of that are named to `warn`. `num_pictures` is rounded up to whole shards (96 pictures);
    `metadata.jsonl` is written last.

    Raises `DataError` where the renderer is not installed, where the folder holds another world, and where
    it cannot be written to, for instance when the disk is full; what is finished stays.
    """
    require_renderer()
    num_identities = -(-num_pictures // VIEWS_PER_IDENTITY)
    starts = range(0, num_identities, _IDENTITIES_PER_SHARD)
    jobs = [(folder, seed, range(start, start + _IDENTITIES_PER_SHARD)) for start in starts]
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "shards").mkdir(exist_ok=True)
        open_jobs = _still_to_render(folder, jobs, warn)
        yield (len(jobs) - len(open_jobs)) * PICTURES_PER_SHARD
        context = multiprocessing.get_context("spawn")
        with context.Pool(num_workers or os.cpu_count() or 1) as pool:
            yield from pool.imap_unordered(_render_shard, open_jobs)
        shards = [_shard(folder, job[2].start) for job in jobs]
        text = "".join(shard.read_text("utf-8") for shard in shards)
        (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"{folder} cannot be written to: {reason}. Make room and run the same command again; "
            "finished shards are kept."
        ) from error


def read_metadata(folder: Path) -> list[dict[str, Any]]:
    """Rows of every finished shard in `folder`, in the order of their pictures.

    Raises `DataError` that names a broken shard.
    """
    rows = []
    for shard in sorted((folder / "shards").glob("*.jsonl")):
        try:
            rows += [json.loads(line) for line in shard.read_text("utf-8").splitlines()]
        except ValueError as error:
            raise DataError(
                f"{shard} is not what was written. Render once more to have it made anew: "
                f"finetune clay render {folder}"
            ) from error
    return rows
