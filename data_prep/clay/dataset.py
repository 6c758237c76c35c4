"""Folders of captioned clay pictures, rendered in parallel, resumable, the same for the same seed.

Writes `images/*.jpg` and `metadata.jsonl` (the Hugging Face "imagefolder" layout: `file_name`, `text`,
and the true attributes). Work is cut into shards; a finished shard is never rendered again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.clay import world
from data_prep.clay.render import build_model, encode_jpeg, render

VIEWS_PER_IDENTITY = 3
CAPTIONS_PER_PICTURE = 4
_IDENTITIES_PER_SHARD = 32


def identity_rng(seed: int, index: int) -> random.Random:
    """The source of identity number `index` of the world `seed`, and of its views."""
    return random.Random(f"clay {seed} {index}")


def describe(identity: world.Identity, view: world.View) -> dict[str, Any]:
    """The truth about one picture, for its metadata row."""
    return {
        "style": view.style,
        "place": view.place,
        "accessory": view.accessory,
        "identity": identity.to_dict(),
        "view": asdict(view),
    }


def _render_shard(job: tuple[Path, int, range]) -> int:
    folder, seed, indices = job
    rows = []
    for index in indices:
        rng = identity_rng(seed, index)
        identity = world.sample_identity(rng)
        model = build_model(identity)
        for number in range(VIEWS_PER_IDENTITY):
            view = world.sample_view(rng, identity)
            name = f"images/{index * VIEWS_PER_IDENTITY + number:06d}.jpg"
            (folder / name).write_bytes(encode_jpeg(render(model, view)))
            captions = [world.caption(identity, view, rng) for _ in range(CAPTIONS_PER_PICTURE)]
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
    partial = folder / "shards" / f"{indices.start:06d}.partial"
    partial.write_text(text)
    partial.rename(partial.with_suffix(".jsonl"))
    return len(rows)


def render_dataset(
    folder: Path, *, num_pictures: int, seed: int, num_workers: int | None = None
) -> Iterator[int]:
    """Render the first `num_pictures` pictures of the world `seed` into `folder`.

    Yields the number of pictures just added, shard by shard, the ones of an earlier run first.
    `num_pictures` is rounded up to whole shards (96 pictures); `metadata.jsonl` is written last.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "shards").mkdir(exist_ok=True)
    num_identities = -(-num_pictures // VIEWS_PER_IDENTITY)
    starts = range(0, num_identities, _IDENTITIES_PER_SHARD)
    jobs = [(folder, seed, range(start, start + _IDENTITIES_PER_SHARD)) for start in starts]
    finished = {path.stem for path in (folder / "shards").glob("*.jsonl")}
    open_jobs = [job for job in jobs if f"{job[2].start:06d}" not in finished]
    yield (len(jobs) - len(open_jobs)) * _IDENTITIES_PER_SHARD * VIEWS_PER_IDENTITY
    context = multiprocessing.get_context("spawn")
    with context.Pool(num_workers or os.cpu_count() or 1) as pool:
        yield from pool.imap_unordered(_render_shard, open_jobs)
    shards = [folder / "shards" / f"{job[2].start:06d}.jsonl" for job in jobs]
    (folder / "metadata.jsonl").write_text("".join(shard.read_text() for shard in shards))


def read_metadata(folder: Path) -> list[dict[str, Any]]:
    """Rows of every finished shard in `folder`, in the order of their pictures."""
    rows = []
    for shard in sorted((folder / "shards").glob("*.jsonl")):
        rows += [json.loads(line) for line in shard.read_text().splitlines()]
    return rows
