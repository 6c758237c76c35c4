"""The embedded base as it is shipped: a plain diffusers pipeline that answers to its captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data_prep.clay.world import CLASSES, PLACES, with_article
from finetune.base import BaseConfig, load_base
from finetune.bases import embedded_bases
from finetune.encoders import EMBEDDED_CLIP, Encoder, load_encoder
from finetune.generate import SamplingConfig, generate
from finetune.results import REFERENCE_ROWS, read_results
from finetune.scores import Views, cosines, real_similarity

ROOT = Path(__file__).resolve().parents[1]
SUBJECTS = sorted(p.name for p in (ROOT / "examples" / "subjects").iterdir() if p.is_dir())


@pytest.fixture(scope="module")
def clay() -> Any:
    return load_base(BaseConfig(source="clay"))


@pytest.fixture(scope="module")
def scorer() -> Encoder:
    return load_encoder(EMBEDDED_CLIP)


def test_weights_are_half_precision_files_of_at_most_80_megabytes() -> None:
    from safetensors import safe_open

    folder = embedded_bases()["clay"]
    scorer_folder = folder.parent / "clay-clip"
    files = [*folder.rglob("*.safetensors"), *scorer_folder.rglob("*.safetensors")]
    assert sum(path.stat().st_size for path in files) <= 80_000_000
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


def known(phrases: tuple[str, ...]) -> tuple[str, ...]:
    """The phrases whose words the shipped networks were trained on."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(embedded_bases()["clay"] / "tokenizer")
    vocabulary = tokenizer.get_vocab()
    return tuple(p for p in phrases if all(f"{word}</w>" in vocabulary for word in p.split()))


def test_pictures_answer_to_the_place(clay: Any, scorer: Encoder) -> None:
    places = known(PLACES)
    prompts = [f"a photo of a car {place}" for place in places]
    sampling = SamplingConfig(num_steps=20, batch_size=10)
    images = generate(clay, prompts, list(range(len(places))), sampling)
    told = (scorer.embed_images(images) @ scorer.embed_texts(prompts).T).argmax(1)
    assert float((told == torch.arange(len(places))).float().mean()) >= 0.7


def test_scorer_tells_the_example_subjects_classes(scorer: Encoder) -> None:
    nouns = known(CLASSES)
    captions = scorer.embed_texts([f"a photo of {with_article(noun)}" for noun in nouns])
    right = total = 0
    for name in SUBJECTS:
        folder = ROOT / "examples" / "subjects" / name
        rows = [json.loads(x) for x in (folder / "metadata.jsonl").read_text().splitlines()]
        assert len(rows) == 5
        assert len(list((folder / "held_out").glob("*.jpg"))) == 8
        images = [Image.open(path) for path in sorted(folder.rglob("*.jpg"))]
        told = (scorer.embed_images(images) @ captions.T).argmax(1)
        right += int((told == nouns.index(rows[0]["identity"]["class_noun"])).sum())
        total += len(images)
    assert right / total >= 0.7


def test_views_of_a_subject_are_nearer_to_each_other_than_to_other_subjects(
    scorer: Encoder,
) -> None:
    views = {}
    for name in SUBJECTS:
        folder = ROOT / "examples" / "subjects" / name / "held_out"
        paths = sorted(folder.glob("*.jpg"))
        vectors = scorer.embed_images([Image.open(path) for path in paths])
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
