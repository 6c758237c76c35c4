"""Folders of captioned clay pictures, rendered in parallel, resumable, the same for the same seed.

Writes `images/*.jpg` and `metadata.jsonl` (the Hugging Face "imagefolder" layout: `file_name`, `text`,
and the true attributes). Work is cut into shards; a finished shard is never rendered again, a broken one
is named and rendered anew. `metadata.jsonl` is there when, and only when, all that was asked for is; what
was asked for is kept in `shards/world.json`, for the command that mends a world.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import random
import shlex
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.clay import world
from data_prep.errors import DataError

METADATA = "metadata.jsonl"
ASKED = "world.json"
"""Beside the shards: the seed and the number of pictures that were asked for last."""
VIEWS_PER_IDENTITY = 3
CAPTIONS_PER_PICTURE = 4
COVER_CELLS = 8
"""Squares a side in which a row tells what the subject covers."""
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


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written to: {error.strerror or error}. Make room and run the same command "
            "again; finished shards are kept."
        ) from error


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def cover_to_json(cover: np.ndarray) -> dict[str, str]:
    """What `render_cover` gives, for a metadata row: bytes of the squares, row by row, in hex digits."""
    subject, worn = (np.clip(cover, 0, 1) * 255 + 0.5).astype(np.uint8)
    return {"subject": subject.tobytes().hex(), "worn": worn.tobytes().hex()}


def cover_from_json(values: dict[str, str]) -> np.ndarray:
    """[2, cells, cells] as bytes: what of each square shows the subject, and what it wears.

    Raises `ValueError` or `KeyError` for what `cover_to_json` has not made.
    """
    rows = [np.frombuffer(bytes.fromhex(values[name]), np.uint8) for name in ("subject", "worn")]
    return np.stack(rows).reshape(2, COVER_CELLS, COVER_CELLS)


def _render_shard(job: tuple[Path, int, range]) -> int:
    from data_prep.clay.render import build_model, encode_jpeg, render, render_cover

    folder, seed, indices = job
    rows = []
    for index in indices:
        identity, views = draw(seed, index)
        model = build_model(identity)
        for number, (view, captions) in enumerate(views):
            name = f"images/{index * VIEWS_PER_IDENTITY + number:06d}.jpg"
            content = encode_jpeg(render(model, view))
            with _writing_to(folder):
                (folder / name).write_bytes(content)
            rows.append(
                {
                    "file_name": name,
                    "text": captions[0],
                    "captions": captions,
                    "identity_index": index,
                    **describe(identity, view),
                    "cover": cover_to_json(render_cover(model, view, cells=COVER_CELLS)),
                }
            )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with _writing_to(folder):
        _write_whole(_shard(folder, indices.start), text)
    return len(rows)


def _render_all(jobs: list[tuple[Path, int, range]], num_workers: int) -> Iterator[int]:
    """The number of pictures of each shard as it is finished, in any order."""
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn")) as pool:
        try:
            for shard in as_completed([pool.submit(_render_shard, job) for job in jobs]):
                yield shard.result()
        except BaseException as error:  # nobody waits for shards that are not wanted any more
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            if isinstance(error, BrokenProcessPool):
                raise DataError(
                    "A process that renders was ended from outside, perhaps for want of memory. Run the "
                    "same command again, with fewer --workers; finished shards are kept."
                ) from error
            raise


def _shard(folder: Path, start: int) -> Path:
    return folder / "shards" / f"{start:06d}.jsonl"


def _num_there(folder: Path) -> int:
    """Pictures up to the last finished shard."""
    starts = [int(p.stem) for p in (folder / "shards").glob("*.jsonl") if p.stem.isdigit()]
    return (max(starts) + _IDENTITIES_PER_SHARD) * VIEWS_PER_IDENTITY if starts else 0


def render_command(folder: Path) -> str:
    """The command that renders what is missing in `folder`, of the same world.

    Where nobody kept what was asked for, that is as many pictures as there are, of seed 0: rendering notices
    if it was another.
    """
    path, command = folder / "shards" / ASKED, ["finetune", "clay", "render", str(folder)]
    asked = {"num_pictures": _num_there(folder), "seed": 0}
    if path.is_file():
        asked = json.loads(path.read_text("utf-8"))
    if asked["num_pictures"]:
        command += ["--num-pictures", str(asked["num_pictures"]), "--seed", str(asked["seed"])]
    return shlex.join(command)


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

    Raises `DataError` where the renderer is not installed, where the folder holds another world or more
    pictures, and where it cannot be written to, for instance when the disk is full; what is finished stays.
    """
    require_renderer()
    num_identities = -(-num_pictures // VIEWS_PER_IDENTITY)
    starts = range(0, num_identities, _IDENTITIES_PER_SHARD)
    jobs = [(folder, seed, range(start, start + _IDENTITIES_PER_SHARD)) for start in starts]
    if (there := _num_there(folder)) > len(jobs) * PICTURES_PER_SHARD:
        raise DataError(
            f"{folder} holds {there} pictures, more than {num_pictures}. Render into another folder, or ask "
            f"for {there} at least: {render_command(folder)}"
        )
    with _writing_to(folder):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "shards").mkdir(exist_ok=True)
        open_jobs = _still_to_render(folder, jobs, warn)
        asked = {"num_pictures": len(jobs) * PICTURES_PER_SHARD, "seed": seed}
        _write_whole(folder / "shards" / ASKED, json.dumps(asked) + "\n")
        if open_jobs:
            (folder / METADATA).unlink(missing_ok=True)
    yield (len(jobs) - len(open_jobs)) * PICTURES_PER_SHARD
    yield from _render_all(open_jobs, num_workers or os.cpu_count() or 1)
    with _writing_to(folder):
        shards = [_shard(folder, job[2].start).read_text("utf-8") for job in jobs]
        _write_whole(folder / METADATA, "".join(shards))


def read_metadata(folder: Path) -> list[dict[str, Any]]:
    """Rows of the pictures in `folder`, in their order.

    Raises `DataError` where nothing is rendered, not all that was asked for, or the rows are broken.
    """
    path, command = folder / METADATA, render_command(folder)
    if not path.is_file():
        if (folder / "shards").is_dir():
            raise DataError(f"Rendering into {folder} is not finished. Go on with: {command}")
        raise DataError(f"No pictures in {folder}. Render them first: {command}")
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except ValueError as error:
        raise DataError(
            f"{path} is not what was written. Render once more to have it made anew, which takes seconds: "
            f"{command}"
        ) from error
