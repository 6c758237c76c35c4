"""The embedded base as it is shipped: a plain diffusers pipeline that answers to its captions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data_prep.clay.world import CLASSES, COLORS, PLACES, with_article
from finetune.base import BaseConfig, load_base
from finetune.bases import EMBEDDED, embedded_bases
from finetune.encoders import EMBEDDED_CLIP, EMBEDDED_JUDGE, Encoder, load_encoder
from finetune.generate import SamplingConfig, generate
from finetune.judge import Judge
from finetune.results import REFERENCE_ROWS, read_results
from finetune.scores import Views, cosines, real_similarity

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples" / "subjects"
SUBJECTS = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def clay() -> Any:
    return load_base(BaseConfig(source="clay"))


@pytest.fixture(scope="module")
def scorer() -> Encoder:
    return load_encoder(EMBEDDED_CLIP)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.from_pretrained(EMBEDDED / EMBEDDED_JUDGE)


@pytest.mark.parametrize(
    ("names", "megabytes"), [(("clay", EMBEDDED_CLIP), 80), ((EMBEDDED_JUDGE,), 10)]
)
def test_weights_are_small_half_precision_files(names: tuple[str, ...], megabytes: int) -> None:
    from safetensors import safe_open

    files = [path for name in names for path in (EMBEDDED / name).rglob("*.safetensors")]
    assert len(files) >= len(names)
    assert sum(path.stat().st_size for path in files) <= megabytes * 1_000_000
    for path in files:
        with safe_open(path, "pt") as content:
            kinds = {content.get_slice(key).get_dtype() for key in content.keys()}  # noqa: SIM118
        assert "F32" not in kinds, path


def test_a_plain_diffusers_load_gives_a_working_float32_pipeline() -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(embedded_bases()["clay"])
    pipe.set_progress_bar_config(disable=True)
    for name in ("unet", "vae", "text_encoder"):
        assert {p.dtype for p in getattr(pipe, name).parameters()} == {torch.float32}, name
    picture = pipe("a photo of a red car on the beach", num_inference_steps=2).images[0]
    assert picture.size == (128, 128)


def test_the_rare_token_is_one_token() -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(embedded_bases()["clay"] / "tokenizer")
    assert tokenizer.tokenize("a sks dog") == ["a</w>", "sks</w>", "dog</w>"]


def test_pictures_show_what_prompts_say(clay: Any, judge: Judge) -> None:
    rng, colors = random.Random(0), list(COLORS)
    asked = [(noun, rng.choice(colors), rng.choice(PLACES)) for noun in CLASSES]
    prompts = [
        f"a photo of {with_article(f'{color} {noun}')} {place}" for noun, color, place in asked
    ]
    sampling = SamplingConfig(num_steps=20, batch_size=9)
    told = judge.tell(generate(clay, prompts, list(range(len(prompts))), sampling))
    for index, attribute, least in ((0, "class", 0.8), (1, "color", 0.8), (2, "place", 0.9)):
        right = [seen[attribute] == words[index] for seen, words in zip(told, asked, strict=True)]
        assert sum(right) / len(right) >= least, (attribute, right)


def test_scorer_and_judge_tell_the_example_subjects(scorer: Encoder, judge: Judge) -> None:
    captions = scorer.embed_texts([f"a photo of {with_article(noun)}" for noun in CLASSES])
    by_scorer, by_judge = list[bool](), dict[str, list[bool]]()
    for name in SUBJECTS:
        for folder, count in ((EXAMPLES / name, 5), (EXAMPLES / name / "held_out", 8)):
            rows = [json.loads(x) for x in (folder / "metadata.jsonl").read_text().splitlines()]
            assert len(rows) == count
            images = [Image.open(folder / row["file_name"]) for row in rows]
            nearest = (scorer.embed_images(images) @ captions.T).argmax(1).tolist()
            for row, index, told in zip(rows, nearest, judge.tell(images), strict=True):
                identity = row["identity"]
                noun = identity["class_noun"]
                truth = {"class": noun, "color": identity["color"], "place": row["place"]}
                by_scorer.append(CLASSES[index] == noun)
                for attribute, value in truth.items():
                    by_judge.setdefault(attribute, []).append(told[attribute] == value)
    assert sum(by_scorer) / len(by_scorer) >= 0.8
    for attribute, right in by_judge.items():
        assert sum(right) / len(right) >= 0.85, attribute


def test_views_of_a_subject_are_nearer_to_each_other_than_to_other_subjects(
    judge: Judge,
) -> None:
    views = {}
    for name in SUBJECTS:
        paths = sorted((EXAMPLES / name / "held_out").glob("*.jpg"))
        vectors = judge.embed_images([Image.open(path) for path in paths])
        views[name] = Views.of(vectors, [path.name for path in paths])
    for name, mine in views.items():
        ceiling = real_similarity(mine).mean
        assert ceiling is not None
        for other, theirs in views.items():
            if other != name:
                assert ceiling > cosines(mine, theirs).mean() + 0.1, (name, other)


@pytest.mark.slow
def test_comparison_end_to_end(tmp_path: Path) -> None:
    """`make demo` with a token budget, by its command: every file is there and consistent."""
    from typer.testing import CliRunner

    from finetune.cli import app

    output = tmp_path / "out"
    arguments = [
        f"data.photos={ROOT / 'examples' / 'subjects' / 'dog'}",
        "shared.training.num_steps=2",
        "shared.sampling.num_steps=2",
        "methods.dreambooth.prior={kind: class_images, num_images: 2, num_steps: 2}",
        "methods.lora.prior={kind: class_images, num_images: 2, num_steps: 2}",
        "validation.every=1",
        "num_images=2",
        f"output={output}",
    ]
    config = ROOT / "configs" / "clay" / "compare.yaml"
    result = CliRunner().invoke(app, ["compare", str(config), *arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    results = read_results(output)
    assert [row.name for row in results.rows] == [
        *REFERENCE_ROWS, "dreambooth", "lora", "textual_inversion",
    ]  # fmt: skip
    for summary in results.summaries:
        found = summary.estimate
        if found.low is not None:
            assert found.mean is not None
            assert found.high is not None
            assert found.low <= found.mean <= found.high
    sizes = {}
    for row in results.rows:
        for cell in results.cells_of(row.name) if row.kind == "method" else ():
            assert (cell.status, cell.num_steps) == ("finished", 2)
            sizes[row.name] = cell.artifact_bytes or 0
    assert 0 < sizes["textual_inversion"] <= 20_000 < sizes["lora"] <= 3_000_000
    with Image.open(output / "grid.png") as grid:
        width, height = grid.size
    assert width > 6 * 128
    assert height > 5 * 128
    assert (output / "report.html").stat().st_size < 15e6
