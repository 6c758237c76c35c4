"""The recipe of a base from pictures to a diffusers folder, at a tiny size."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.clay import world
from data_prep.clay.dataset import METADATA, cover_to_json, describe
from finetune.checkpoint import load_checkpoint
from finetune.config import apply_overrides, read_yaml, validate
from finetune.errors import ArtifactError, CheckpointError, ConfigError, DataError
from finetune.files import claimed
from finetune.pretrain.denoiser import DenoiserStage
from finetune.pretrain.recipe import (
    STAGES,
    TRAINED,
    PretrainConfig,
    build_stage,
    device_of,
    run_stages,
)
from finetune.pretrain.stage import MADE_OF, Stage, run_stage
from finetune.seeding import generator_for

ROOT = Path(__file__).resolve().parents[1]
NUM_PICTURES = 64


@pytest.fixture(scope="module")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world's folder whose pictures are plain colour waves, as nothing is rendered here."""
    folder = tmp_path_factory.mktemp("world") / "clay"
    (folder / "images").mkdir(parents=True)
    generator, rows = np.random.default_rng(0), []
    y, x = np.mgrid[0:64, 0:64] / 64
    for index in range(NUM_PICTURES):
        rng = random.Random(f"recipe {index // 2}")
        identity = world.sample_identity(rng)
        view = world.sample_view(random.Random(index), identity)
        fx, fy, phase = generator.uniform(0, 9, (3, 3))
        wave = np.sin(x[..., None] * fx + y[..., None] * fy + phase)
        name = f"images/{index:06d}.jpg"
        Image.fromarray(((wave * 0.5 + 0.5) * 255).astype(np.uint8)).save(folder / name)
        captions = [world.caption(identity, view, rng) for _ in range(2)]
        cover = cover_to_json(np.random.default_rng(index).uniform(0, 1, (2, 8, 8)))
        row = {"file_name": name, "captions": captions, **describe(identity, view), "cover": cover}
        rows.append(row)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / METADATA).write_text(text)
    return folder


@pytest.fixture(scope="module")
def finished(world_folder: Path) -> PretrainConfig:
    """A recipe of which every stage is done, for tests that only read."""
    config = recipe(world_folder)
    run(config)
    return config


@pytest.fixture
def pictures(world_folder: Path, tmp_path: Path) -> Path:
    """A copy of the world's folder, beside which nothing is made yet."""
    return shutil.copytree(world_folder, tmp_path / "clay")


@pytest.fixture
def own(finished: PretrainConfig, tmp_path: Path) -> PretrainConfig:
    """A copy of the finished recipe."""
    shutil.copytree(finished.work_folder.parent, tmp_path, dirs_exist_ok=True)
    return recipe(tmp_path / "clay")


def recipe(pictures: Path, *overrides: str) -> PretrainConfig:
    """The shipped recipe, tiny: two steps a stage on small networks."""
    out = pictures.parent
    tiny = [
        f"pictures={pictures}",
        f"work_folder={out / 'work'}",
        f"output={out / 'base'}",
        f"scorer_output={out / 'clip'}",
        f"judge_output={out / 'judge'}",
        "autoencoder.crop_size=32",
        "autoencoder.block_out_channels=[16,48,64,80,80]",
        "contrast.hidden_size=48",
        "contrast.text_layers=1",
        "contrast.image_channels=[16,24,32,40]",
        "contrast.max_shift=2",
        "judge.channels=[16,24]",
        "judge.depths=[1,1]",
        "denoiser.block_out_channels=[32,64]",
        "denoiser.layers_per_block=1",
    ]
    for stage in STAGES[:-1]:
        tiny += [f"{stage}.{key}=2" for key in ("num_steps", "checkpoint_every", "sample_every")]
        tiny += [f"{stage}.batch_size=8", f"{stage}.warmup_steps=0"]
    values = apply_overrides(read_yaml(ROOT / "configs/clay/pretrain.yaml"), [*tiny, *overrides])
    return validate(PretrainConfig, values, "test")


def run(config: PretrainConfig, *stages: str, max_minutes: float | None = None) -> list[str]:
    said: list[str] = []
    run_stages(config, stages or STAGES, max_minutes=max_minutes, announce=said.append)
    return said


def test_all_stages_make_a_base_that_plain_diffusers_runs(finished: PretrainConfig) -> None:
    from diffusers import StableDiffusionPipeline

    from finetune.dual_encoder import DualEncoder
    from finetune.judge import Judge

    config = finished
    pipe = StableDiffusionPipeline.from_pretrained(config.output)
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a photo of a dog", height=64, width=64, num_inference_steps=2).images[0]
    assert picture.size == (64, 64)
    assert np.isfinite(np.asarray(picture, float)).all()
    work = config.work_folder
    stored = pipe.vae.state_dict()
    from safetensors.torch import load_file

    first = load_file(work / "autoencoder" / "vae" / "diffusion_pytorch_model.safetensors")
    last = load_file(work / "decoder" / "vae" / "diffusion_pytorch_model.safetensors")
    for name, value in first.items():
        learnt = name.startswith(("decoder", "post_quant_conv"))
        assert torch.equal(value, last[name]) != learnt or not value.any(), name
        torch.testing.assert_close(stored[name], last[name], atol=2e-3, rtol=2e-3)
    latents = pipe.vae.config.scaling_factor
    assert latents > 0
    assert DualEncoder.from_pretrained(config.scorer_output).image_size == 64
    told = Judge.from_pretrained(config.judge_output).tell([picture])
    assert told[0]["class"] in world.CLASSES


def test_the_denoiser_is_shown_what_is_worn_more_often(own: PretrainConfig) -> None:
    captions = [
        json.loads(x)["captions"] for x in (own.pictures / METADATA).read_text().splitlines()
    ]

    def share(worn_share: float) -> float:
        told = {"worn_share": worn_share, "batch_size": 500}
        denoiser = own.denoiser.model_copy(update=told)
        stage = build_stage("denoiser", own.model_copy(update={"denoiser": denoiser}))
        assert isinstance(stage, DenoiserStage)
        drawn = stage.draw(generator_for(0, "test")).T.tolist()
        return sum(" wearing " in captions[picture][place] for picture, place in drawn) / 500

    naturally = sum(" wearing " in text for row in captions for text in row) / (2 * NUM_PICTURES)
    assert 0.05 < naturally < 0.5
    assert share(0) == pytest.approx(naturally, abs=0.07)
    assert share(0.4) == pytest.approx(0.4 + 0.6 * naturally, abs=0.07)
    assert share(1) == 1


def test_a_stage_names_the_one_that_is_missing(tmp_path: Path) -> None:
    config = recipe(tmp_path / "clay")  # no pictures either: networks are looked for first
    for stage, missing in (
        ("denoiser", "autoencoder"),
        ("decoder", "denoiser"),
        ("assemble", "denoiser"),
    ):
        with pytest.raises(ArtifactError, match=f"Run: finetune pretrain RECIPE --stage {missing}"):
            run(config, stage)


@pytest.mark.parametrize(
    ("stage", "gone"),
    [
        ("denoiser", "contrast/tokenizer"),
        ("decoder", "denoiser/unet"),
        ("decoder", "contrast/clip"),
    ],
)
def test_what_a_stage_needs_is_looked_for_before_pictures_are_read(
    own: PretrainConfig, stage: str, gone: str
) -> None:
    shutil.rmtree(own.work_folder / gone)
    shutil.rmtree(own.pictures)
    with pytest.raises(ArtifactError, match=f"{gone}. Run: .* --stage {gone.split('/')[0]}"):
        run(own, stage)


def test_networks_that_do_not_belong_together_are_not_put_together(own: PretrainConfig) -> None:
    vae = own.work_folder / "autoencoder" / "vae" / "config.json"
    vae.write_text(vae.read_text().replace("scaling_factor", "scaling_factor "))
    for stage in ("decoder", "assemble"):
        with pytest.raises(ArtifactError, match="denoiser .* did not learn from today's autoenc"):
            run(own, stage)


def test_a_finished_recipe_runs_again_without_a_change(own: PretrainConfig) -> None:
    """Networks are not written again: another version of a library would not write the same bytes."""
    (own.work_folder / "contrast" / MADE_OF).unlink()  # as the first stages were left
    networks = sorted(own.work_folder.glob("*/*/*.*"))
    kept = {path: path.stat().st_mtime_ns for path in networks}
    assert len(kept) >= 14
    run(own)
    assert {path: path.stat().st_mtime_ns for path in networks} == kept
    shutil.rmtree(own.work_folder / "contrast" / "clip")
    run(own, "contrast")
    assert all(path.is_file() for path in networks)


@pytest.mark.parametrize(("stage", "then"), [("judge", "assemble"), ("autoencoder", "denoiser")])
@pytest.mark.parametrize("is_noted", [True, False])
def test_a_stage_that_goes_on_is_not_taken_for_finished(
    own: PretrainConfig, stage: str, then: str, is_noted: bool
) -> None:
    """Whether its number of steps was written down or, as at first, a checkpoint alone tells it."""
    note = own.work_folder / stage / MADE_OF
    noted = json.loads(note.read_text())
    assert noted.pop("num_steps") == 2
    if not is_noted:
        note.write_text(json.dumps(noted))
    told = getattr(own, stage).model_copy(update={"num_steps": 4, "checkpoint_every": 3})
    longer = own.model_copy(update={stage: told})
    steps = run_stage(build_stage(stage, longer), own.work_folder / stage)
    assert next(steps) == 3
    steps.close()
    learnt = 2 if is_noted else 3
    with pytest.raises(
        ArtifactError, match=f"{stage} .* learnt for {learnt} steps, not 4.*Set {stage}.num"
    ):
        run(longer, then)


def test_one_process_at_a_time_trains_a_stage(own: PretrainConfig) -> None:
    with (
        claimed(own.work_folder / "contrast"),
        pytest.raises(CheckpointError, match="Another run is writing to .*contrast.*work_folder="),
    ):
        run(own, "judge", "contrast")


def test_the_base_stays_where_its_judge_cannot_be_written(own: PretrainConfig) -> None:
    before = {path: path.stat().st_mtime_ns for path in own.output.rglob("*")}
    (own.pictures.parent / "file").touch()
    config = own.model_copy(update={"judge_output": own.pictures.parent / "file" / "judge"})
    with pytest.raises(CheckpointError, match="file/judge"):
        run(config, "assemble")
    assert {path: path.stat().st_mtime_ns for path in own.output.rglob("*")} == before


def test_a_denoiser_of_too_many_levels_is_refused(finished: PretrainConfig) -> None:
    told = finished.denoiser.model_copy(update={"block_out_channels": (32, 32, 32)})
    config = finished.model_copy(update={"denoiser": told})
    with pytest.raises(ConfigError, match="3 levels make less than 2 x 2 .* of latents of 4 x 4"):
        build_stage("denoiser", config)


@pytest.mark.parametrize("name", TRAINED)
def test_a_stage_stopped_and_resumed_equals_one_that_was_not(
    name: str, finished: PretrainConfig, tmp_path: Path
) -> None:
    """Buffers of batch norms, a text encoder that learns, networks trained in part are among them."""
    told = getattr(finished, name).model_copy(update={"num_steps": 4, "checkpoint_every": 1})
    config = finished.model_copy(update={name: told})
    whole, first, second = (build_stage(name, config) for _ in range(3))
    if name == "autoencoder":  # LAPACK rounds its linear start as memory lies.
        first.modules.load_state_dict(whole.modules.state_dict())
    checkpoints = []
    for stage, folder, count in ((whole, "whole", 3), (first, "parts", 2), (second, "parts", 1)):
        with contextlib.closing(run_stage(stage, tmp_path / folder)) as steps:
            last = list(itertools.islice(steps, count))[-1]
        checkpoints.append(tmp_path / folder / "checkpoints" / f"step-{last:06d}")
    expected, _, found = (load_checkpoint(path)[0] for path in checkpoints if path.is_dir())
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key


def test_contrast_goes_on_with_the_tokenizer_that_it_began_with(own: PretrainConfig) -> None:
    from finetune.pretrain.tokenizer import build_tokenizer

    words = [*world.all_words(), "quux"]
    build_tokenizer(words).save_pretrained(own.work_folder / "contrast" / "tokenizer")
    stage: Any = build_stage("contrast", own)
    assert stage.tokenizer.tokenize("a quux") == ["a</w>", "quux</w>"]


def test_a_stage_without_time_is_not_finished_and_reads_nothing(tmp_path: Path) -> None:
    config = recipe(tmp_path / "clay")
    said = run(config, "autoencoder", "contrast", max_minutes=0)
    assert said[-1].startswith("autoencoder is not finished")
    assert not config.work_folder.exists()


def test_the_stages_share_one_deadline(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a minute each time it is read: stage 1 reads it a few times."""
    config, clock = recipe(pictures), itertools.count(0, 60)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    said = run(config, "autoencoder", "contrast", "judge", max_minutes=6)
    assert said[:2] == ["stage: autoencoder", "stage: contrast"]
    assert said[-1].startswith("contrast is not finished")
    assert (config.work_folder / "autoencoder" / "vae").is_dir()


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipe(Path("clay"))
    for has_gpu, expected in ((True, ["cuda", "cpu", "cuda"]), (False, ["cpu", "cpu"])):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        wanted = [config.model_copy(update={"device": name}) for name in ("auto", "cpu", "cuda")]
        assert [device_of(one).type for one in wanted[: len(expected)]] == expected
    with pytest.raises(ConfigError, match="device: cuda needs an NVIDIA GPU"):
        run(wanted[-1], "autoencoder")


class _OneDevice(torch.utils._python_dispatch.TorchDispatchMode):
    """Refuses what a GPU refuses: arithmetic on tensors of two devices, numbers aside."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.ndim]
        assert len({tensor.device.type for tensor in tensors}) <= 1, func
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A device without content, on which whatever is not moved there is noticed."""
    monkeypatch.setattr(torch, "autocast", lambda *_: contextlib.nullcontext())
    with _OneDevice():
        yield torch.device("meta")


@pytest.mark.parametrize("name", TRAINED)
def test_what_a_stage_trains_on_is_where_its_networks_are(
    name: str, finished: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.pretrain import recipe as module

    with _elsewhere(monkeypatch) as device:
        monkeypatch.setattr(module, "device_of", lambda config: device)
        stage = build_stage(name, finished)
        losses = stage.loss(generator_for(0, name, 0))
        assert {value.device for value in losses.values()} == {device}
        losses["loss"].backward()
    learnt = [parameter for parameter in stage.modules.parameters() if parameter.grad is not None]
    assert len(learnt) > 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", TRAINED)
def test_a_gpu_sees_the_same_batches(name: str, finished: PretrainConfig, tmp_path: Path) -> None:
    stages: list[Stage] = [
        build_stage(name, finished.model_copy(update={"device": device}))
        for device in ("cpu", "cuda")
    ]
    stages[1].modules.load_state_dict(stages[0].modules.state_dict())
    first, second = (stage.loss(generator_for(0, name, 0))["loss"].item() for stage in stages)
    assert second == pytest.approx(first, rel=0.02)  # bfloat16 rounds at 0.004
    assert list(run_stage(stages[1], tmp_path)) == [1, 2]


def test_a_checkpoint_of_other_pictures_is_refused(own: PretrainConfig) -> None:
    metadata = own.pictures / METADATA
    metadata.write_text("".join(metadata.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(CheckpointError, match="did not learn from today's pictures"):
        run(own, "contrast")


def test_kept_latents_are_made_anew_for_another_autoencoder(own: PretrainConfig) -> None:
    config = own
    before: Any = build_stage("denoiser", config)
    means = before.encoded.means.clone()  # of a file that is about to be cut
    kept = config.work_folder / "encoded.safetensors"
    kept.write_bytes(kept.read_bytes()[:-100])  # as a full disk would leave it
    mended: Any = build_stage("denoiser", config)
    assert torch.equal(means, mended.encoded.means)
    vae = before.vae
    with torch.no_grad():
        vae.quant_conv.bias.add_(1.0)
    vae.save_pretrained(config.work_folder / "autoencoder" / "vae")
    other: Any = build_stage("denoiser", config)
    assert not torch.equal(means, other.encoded.means)


def test_decoder_s_guesses_are_the_latents_where_the_denoiser_is_exact(
    finished: PretrainConfig,
) -> None:
    """With v = alpha·noise - sigma·x0 known, the guess of x0 is x0 itself (Salimans & Ho 2022, eq. 10)."""
    config = recipe(finished.pictures, "decoder.clean_share=0")
    stage: Any = build_stage("decoder", config)
    indices = torch.arange(4)
    latents = stage.encoded.means[indices].float() * stage.vae.config.scaling_factor

    class Exact(torch.nn.Module):
        def forward(self, noisy: Any, timesteps: Any, prompt_embeds: Any) -> Any:
            alphas = stage.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
            noise = (noisy - alphas.sqrt() * latents) / (1 - alphas).sqrt()
            velocity = alphas.sqrt() * noise - (1 - alphas).sqrt() * latents
            return type("Output", (), {"sample": velocity})()

    stage.unet = Exact()
    guesses = stage._guesses(indices, torch.Generator().manual_seed(1))
    torch.testing.assert_close(guesses, latents, atol=0.02, rtol=0.02)


def test_a_picture_that_cannot_be_used_is_named(pictures: Path) -> None:
    from finetune.pretrain.data import load_pictures

    picture = pictures / "images" / "000005.jpg"
    content = picture.read_bytes()
    picture.write_bytes(content[:200])
    with pytest.raises(DataError, match=r"000005\.jpg cannot be read.*finetune clay render"):
        load_pictures(pictures)
    picture.unlink()
    with pytest.raises(DataError, match=r"000005\.jpg cannot be read"):
        load_pictures(pictures)
    Image.new("RGB", (48, 40)).save(picture)
    with pytest.raises(DataError, match=r"000005\.jpg has 48 x 40 pixels, not 64 x 64"):
        load_pictures(pictures)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"metadata\.jsonl is empty"),
        ('{"file_name": "a.jpg", "text": "a dog"}', "row 1 has no 'identity'"),
        ("[1]", "row 1 is another"),
    ],
)
def test_a_folder_of_other_pictures_is_refused(tmp_path: Path, text: str, told: str) -> None:
    from finetune.pretrain.data import load_pictures

    (tmp_path / METADATA).write_text(text)
    with pytest.raises(DataError, match=f"{told}.*folder that `finetune clay render` wrote"):
        load_pictures(tmp_path)


def test_the_folder_of_a_subject_is_no_world() -> None:
    from finetune.pretrain.data import load_pictures

    with pytest.raises(DataError, match="row 1 has no 'cover'.*`finetune clay render` wrote"):
        load_pictures(ROOT / "examples" / "subjects" / "dog")


def test_pictures_are_read_as_bytes(pictures: Path) -> None:
    from finetune.pretrain.data import load_pictures

    loaded = load_pictures(pictures)
    content = (pictures / "images" / "000005.jpg").read_bytes()
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(loaded.pixels[5], expected)
    values = loaded.pixel_values([5])[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(values, expected / 127.5 - 1, atol=1e-6)
