"""Mutated pictures, safetensors, YAML, JSON and checkpoints: is there any crash but our own clear errors?

    python benchmarks/fuzz.py --inputs 24000

Inputs are good files with bytes flipped, set, cut out, doubled, spliced or with lengths replaced; checksums
of PNG chunks are mended half of the time, so that damage reaches the decoders. Decoded pictures go through
the inspection. An outcome is a value or a `UserError`. Anything else, and whatever takes more than five
processor seconds, is reported with the seed that makes it again. Inputs run in child processes, so that the
death of one is found as well.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms
from safetensors.torch import save
from tqdm import tqdm

from data_prep.cache import TensorCache
from data_prep.config import DataConfig
from data_prep.decode import decode
from data_prep.duplicates import find_duplicates
from data_prep.errors import UserError
from data_prep.findings import remarks_on, traits_of
from data_prep.kinds import open_picture
from data_prep.sources import Record, read_records
from data_prep.transforms import crop_square
from finetune.artifact import Artifact, read_artifact, read_state
from finetune.base import BaseConfig, recognise_base
from finetune.checkpoint import MANIFEST, MARKER, STATE, TENSORS, load_checkpoint, save_checkpoint
from finetune.config import build_run_config, read_yaml
from methods import load_method

SECONDS = 5.0
CHUNK = 100
LENGTHS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
TOKENS = [
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"'",
        b":",
        b",",
        b"\n",
        b"\t",
        b"\0",
        b"\r",
        b"- ",
        b"? ",
        b"| ",
    ),
    *(b"&a ", b"*a", b"<<: *a", b"!!python/object/apply:os.system ", b"!!timestamp 2001-99-99"),
    *(
        b"!!int x",
        b"!!set ",
        b"!!binary x",
        b"%YAML 9.9",
        b"---",
        b"...",
        b"1e999",
        b".nan",
        b"-.inf",
    ),
    *(
        b"null",
        b"true",
        b"-1",
        b"0x",
        b"9" * 5000,
        b"[" * 3000,
        b"{a: " * 3000,
        b"\xff",
        b"\xef\xbb\xbf",
    ),
    *(b"\\ud800", b"\\u0000", b"../", b"/etc/passwd", b"~", b"${HOME}", "\u2028 ü 雪".encode()),
    *(b"&a [*a, *a]", b"&a {x: *a}", b"1:2:3", b"2020-01-01", b"=", b"!<x>", b"{subject}", b"%s"),
]


def _pictures(kind: str) -> list[bytes]:
    pixels = np.random.RandomState(0).randint(0, 255, (24, 32, 4), np.uint8)
    rgba = Image.fromarray(pixels)
    rgb = rgba.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8825)[1] = "N"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), "xxxx".encode("utf-16-be"))
    several = {"save_all": True, "append_images": [rgb.rotate(180)]}
    versions: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "PNG": [
            (rgb, {"exif": exif, "icc_profile": profile}),
            (rgba, {}),
            (rgb.quantize(9), {"transparency": b"\0\x80"}),
            (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {}),
            (rgb, several),
        ],
        "JPEG": [
            (rgb, {"exif": exif, "icc_profile": profile}),
            (rgb.convert("CMYK"), {}),
            (rgb.convert("L"), {"progressive": True}),
        ],
        "WEBP": [
            (rgb, {"exif": exif, "icc_profile": profile}),
            (rgba, {"lossless": True}),
            (rgb, several),
        ],
    }
    contents = []
    for image, settings in versions[kind]:
        buffer = io.BytesIO()
        image.save(buffer, kind, **settings)
        contents.append(buffer.getvalue())
    return contents


def _tensor_files() -> list[bytes]:
    tensors = {"unet.a.lora_A.weight": torch.ones(4, 8), "b": torch.zeros(3, dtype=torch.bfloat16)}
    return [save(tensors, {"format": "pt"}), save({"x": torch.arange(6)})]


def _configs() -> list[bytes]:
    folder = Path(__file__).resolve().parent.parent / "configs" / "clay"
    return [
        (folder / f"{name}.yaml").read_bytes()
        for name in ("lora", "dreambooth", "textual_inversion")
    ]


def _metadata() -> list[bytes]:
    rows = [{"file_name": "a.png", "text": "a {subject}"}, {"file_name": "b/c.png", "text": None}]
    return ["\n".join(json.dumps(row) for row in rows).encode()]


def _run_picture(content: bytes, folder: Path) -> None:
    photo = decode(Record("picture", lambda: open_picture(io.BytesIO(content)), None))
    remarks_on(photo, *crop_square(photo.image, 64), 64)
    find_duplicates([traits_of(photo.image.resize((256, 256))).print] * 2)


def _run_tensors(content: bytes, folder: Path) -> None:
    cache = TensorCache(folder)
    path = cache.path("key")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    cache.get("key")
    (folder / "pytorch_lora_weights.safetensors").write_bytes(content)
    (folder / "artifact.json").write_bytes(content)
    artifact = Artifact(
        method={},
        base={},
        base_fingerprint="",
        class_noun="",
        subject="",
        size=8,
        format="lora",
        components=(),
    )
    with contextlib.suppress(UserError):
        read_artifact(folder)
    read_state(folder, artifact, None)


def _notes() -> list[bytes]:
    note = Artifact(
        format="lora",
        method={"kind": "lora", "rank": 4},
        class_noun="dog",
        subject="sks dog",
        base={"source": "clay"},
        base_fingerprint="0" * 32,
        components=("unet",),
        size=64,
    )
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    return [json.dumps(asdict(note)).encode(), json.dumps(index).encode()]


def _run_note(content: bytes, folder: Path) -> None:
    for name in ("artifact.json", "model_index.json"):
        (folder / name).write_bytes(content)
    with contextlib.suppress(UserError):
        recognise_base(BaseConfig(source=str(folder)))
    read_artifact(folder)


_PARTS = (TENSORS, STATE, MANIFEST, MARKER)


def _checkpoint_files() -> list[bytes]:
    """The files of a checkpoint, each with its number in front."""
    with tempfile.TemporaryDirectory() as folder:
        written = save_checkpoint(Path(folder), 1, {"a": torch.ones(40)}, {"x": 1})
        return [bytes([i]) + (written / name).read_bytes() for i, name in enumerate(_PARTS)]


def _run_checkpoint(content: bytes, folder: Path) -> None:
    """Damages one file, by its number; only what was written may be read."""
    checkpoint = save_checkpoint(folder / "checkpoints", 1, {"a": torch.ones(40)}, {"x": 1})
    path = checkpoint / _PARTS[(content or b"\0")[0] % len(_PARTS)]
    whole = path.read_bytes() == content[1:]
    path.write_bytes(content[1:])
    tensors, state = load_checkpoint(checkpoint)
    if not whole or not torch.equal(tensors["a"], torch.ones(40)) or state["x"] != 1:
        raise RuntimeError("a damaged checkpoint was read")


def _run_yaml(content: bytes, folder: Path) -> None:
    path = folder / "run.yaml"
    path.write_bytes(content)
    build_run_config(read_yaml(path), load_method, str(path))


def _run_metadata(content: bytes, folder: Path) -> None:
    (folder / "metadata.jsonl").write_bytes(content)
    config = DataConfig(photos=str(folder), caption_column="text")
    for record in read_records(config):
        decode(record)


Target = tuple[Callable[[], list[bytes]], Callable[[bytes, Path], None], bool]
TARGETS: dict[str, Target] = {
    "png": (lambda: _pictures("PNG"), _run_picture, False),
    "jpeg": (lambda: _pictures("JPEG"), _run_picture, False),
    "webp": (lambda: _pictures("WEBP"), _run_picture, False),
    "safetensors": (_tensor_files, _run_tensors, True),
    "yaml": (_configs, _run_yaml, True),
    "metadata.jsonl": (_metadata, _run_metadata, True),
    "notes": (_notes, _run_note, True),
    "checkpoint": (_checkpoint_files, _run_checkpoint, True),
}
"""Name -> good files, what is done with one, and whether pieces of text are put in."""


def mutate(content: bytes, others: list[bytes], rng: random.Random, *, text: bool) -> bytes:
    """`content` with one to five changes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        place, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 16, 64))
        action = rng.randrange(9 if text else 7)
        if action == 0 and data:
            data[place % len(data)] ^= 1 << rng.randrange(8)
        elif action == 1 and data:
            data[place % len(data)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif action == 2:
            del data[place : place + length]
        elif action == 3:
            data[place:place] = data[place : place + length]
        elif action == 4:
            order = rng.choice(("<I", ">I", "<H", ">H"))
            value = rng.choice(LENGTHS) & (0xFFFF if order.endswith("H") else 0xFFFFFFFF)
            data[place : place + struct.calcsize(order)] = struct.pack(order, value)
        elif action == 5:
            other = rng.choice(others)
            data[place:] = other[rng.randrange(len(other)) :]
        elif action == 6 and rng.random() < 0.3:
            del data[place:]
        else:
            data[place:place] = rng.choice(TOKENS) if text else rng.randbytes(length)
    return bytes(data)


def mend_checksums(content: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what they hold now."""
    data, place = bytearray(content), 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(data)


def outcome(name: str, seed: int, folder: Path) -> tuple[str, float]:
    """`value`, `refused`, or the failure in words; and the seconds it took."""
    make, run, text = TARGETS[name]
    rng = random.Random(f"{name} {seed}")
    seeds = make()
    content = mutate(rng.choice(seeds), seeds, rng, text=text)
    if name == "png" and rng.random() < 0.5:
        content = mend_checksums(content)
    start = time.process_time()
    try:
        run(content, folder)
        result = "value"
    except UserError as error:
        result = "refused" if str(error).strip() else "a UserError without a message"
    except Exception as error:  # noqa: BLE001 - what is looked for
        result = f"{type(error).__name__}: {error}"[:300]
    seconds = time.process_time() - start
    return (f"took {seconds:.1f} s" if seconds > SECONDS else result), seconds


def run_chunk(name: str, first: int, count: int) -> tuple[list[tuple[int, str]], float, int]:
    """Outcomes of seeds `first` … by seed, the longest time in seconds, peak memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        for path in (Path(folder) / "a.png", Path(folder) / "b" / "c.png"):
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (4, 4)).save(path)
        results, longest = [], 0.0
        for seed in range(first, first + count):
            result, seconds = outcome(name, seed, Path(folder))
            results.append((seed, result))
            longest = max(longest, seconds)
    return results, longest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=24_000, help="over all targets")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    options = parser.parse_args()
    per_target = -(-options.inputs // len(options.targets) // CHUNK) * CHUNK
    failures = 0
    for name in options.targets:
        counts: Counter[str] = Counter()
        longest, memory = 0.0, 0
        chunks = range(options.first_seed, options.first_seed + per_target, CHUNK)
        with ProcessPoolExecutor(1) as pool:
            for first in tqdm(chunks, desc=name, unit_scale=CHUNK, leave=False):
                try:
                    results, seconds, megabytes = pool.submit(
                        run_chunk, name, first, CHUNK
                    ).result()
                except BrokenProcessPool:
                    sys.exit(f"{name}: the process died between seeds {first} and {first + CHUNK}")
                longest, memory = max(longest, seconds), max(memory, megabytes)
                for seed, result in results:
                    known = result in ("value", "refused")
                    counts[result if known else "FAILED"] += 1
                    if not known:
                        failures += 1
                        print(f"{name} seed {seed}: {result}")
        print(f"{name:15} {dict(counts)}, longest {longest:.2f} s, peak {memory} MB", flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
