"""From a configuration to a trained method: photos, class examples, training, samples, artifact.

Used by `finetune train` for one method and by the comparison for several on one base in memory.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import yaml

from data_prep.cache import TensorCache, default_cache_folder
from data_prep.captions import fill_template
from data_prep.class_images import class_latents
from data_prep.decode import decode_all
from data_prep.loader import TrainingData, encode_photos
from data_prep.sources import read_records
from finetune.artifact import save_artifact
from finetune.base import BasePipeline, check_quantization
from finetune.config import RunConfig, differences, read_yaml, to_yaml
from finetune.errors import ArtifactError, CheckpointError, ConfigError
from finetune.families.base import ModelFamily
from finetune.generate import (
    SamplingConfig,
    check_sampling,
    generate,
    generate_latents,
    labelled_grid,
)
from finetune.method import Method, why_unsupported
from finetune.optim import check_optimizer
from finetune.seeding import derive_seed
from finetune.speed import check_speed
from finetune.train import TrainResult, train, training_device

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "datasets", "safetensors")


@dataclass(frozen=True)
class RunFolder:
    """Where the parts of a run are."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def artifact(self) -> Path:
        """What was learnt."""
        return self.path / "artifact"


def check_family(method: Method, family: ModelFamily, *, source: str, kind: str) -> None:
    """Raise `ArtifactError` if `method` cannot train bases of `family`; `source` names the base."""
    reason = why_unsupported(method.requirements(), family)
    if reason is not None:
        raise ArtifactError(
            f"The method {kind} cannot train {source}, which is of the family {family.name}: {reason}."
        )


def check_settings(config: RunConfig, family: ModelFamily, method: Method) -> None:
    """Raise `ConfigError` for what family, method, device or installed packages cannot do."""
    device, training = training_device(), config.training
    check_optimizer(config.optimizer.name)
    check_speed(attention=training.attention, compile=training.compile, device=device)
    check_sampling(config.sampling, device)
    check_quantization(config.base)
    if config.base.quantization and method.requirements().artifact_format == "pipeline":
        raise ConfigError(
            f"base.quantization: {config.method.kind} trains the base's own weights, which cannot be "
            "done in few bits. Set it to null, or use lora."
        )
    if family.flow_matching and config.loss.snr_gamma is not None:
        raise ConfigError(
            f"loss.snr_gamma: min-SNR weights are for DDPM bases; {config.base.source} is of the family "
            f"{family.name}, which learns a flow. Set it to null."
        )


def check_folder(config: RunConfig, *, resume: bool, overwrite: bool) -> RunFolder:
    """The run folder as it is. Raises `CheckpointError` where a run would be lost or does not fit."""
    run = RunFolder(config.output)
    if resume:
        if not run.config.is_file():
            raise CheckpointError(f"There is no run to resume in {run.path} (no config.yaml).")
        # A run may have been moved, so where it lies makes no difference.
        old = {key: value for key, value in read_yaml(run.config).items() if key != "output"}
        now = config.model_dump(mode="json", exclude={"output"})
        if old != now:
            before, after = (yaml.safe_dump(values, sort_keys=False) for values in (old, now))
            difference = differences(before, after, "the run", "now")
            raise CheckpointError(
                f"{run.path} was started with another configuration, so it cannot be resumed with "
                f"this one. Undo the changes or start a new run (output=...):\n{difference}"
            )
        return run
    if run.path.exists() and not run.path.is_dir():
        raise CheckpointError(f"{run.path} is a file. Choose another folder with output=...")
    if run.path.exists() and any(run.path.iterdir()):
        if not overwrite:
            raise CheckpointError(
                f"The run folder {run.path} exists. Continue it with --resume {run.path}, replace it "
                "with --overwrite, or choose another with output=..."
            )
        if not run.config.is_file():
            raise CheckpointError(
                f"{run.path} is not empty and is no run folder (no config.yaml), so --overwrite will "
                "not delete it. Choose another with output=..."
            )
    return run


def prepare_folder(config: RunConfig, *, resume: bool, overwrite: bool) -> RunFolder:
    """The run folder, made, or emptied with `overwrite`, after `check_folder` has agreed."""
    run = check_folder(config, resume=resume, overwrite=overwrite)
    if resume:
        return run
    try:
        if run.config.is_file():
            shutil.rmtree(run.path)
        run.path.mkdir(parents=True, exist_ok=True)
        run.config.write_text(to_yaml(config), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"The run folder {run.path} cannot be written: {error}.") from error
    return run


def _environment(base: BasePipeline) -> dict[str, object]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "base": {"source": base.source, "fingerprint": base.fingerprint},
    }


def picture_size(base: BasePipeline, config: RunConfig) -> int:
    """Side of the pictures in pixels. Raises `ConfigError` for one that the base cannot do."""
    size = config.data.size or base.family.default_size(base.components)
    multiple = base.family.size_multiple(base.components)
    if size % multiple:
        raise ConfigError(
            f"data.size {size} is not a multiple of {multiple}, as {base.source} needs it; "
            f"{size // multiple * multiple or multiple} is."
        )
    return size


def preflight(skeleton: BasePipeline, method: Method, config: RunConfig) -> None:
    """Find mistakes in settings of method and photos on a base without weights (`skeleton_of`).

    Raises `ConfigError` where a run would, minutes later.
    """
    picture_size(skeleton, config)
    sample_prompts(method, config)
    try:
        with torch.device("meta"):
            method.prepare(skeleton)
    finally:
        method.detach(skeleton)


def build_data(base: BasePipeline, method: Method, config: RunConfig) -> TrainingData:
    """Photos and class examples of a run, as latents. The base must be as it was loaded."""
    data, prior = config.data, config.prior
    size = picture_size(base, config)
    cache = TensorCache(default_cache_folder())
    photos = decode_all(read_records(data), background=data.background)
    subject = method.subject_phrase(data.class_noun or "")
    instances = encode_photos(
        photos,
        data,
        size=size,
        subject=subject,
        encode_images=base.encode_images,
        encoder_key=f"{base.fingerprint} {base.device.type}",
        cache=cache,
    )
    wants_class = prior.kind != "none" and method.requirements().uses_class_examples
    class_prompt, class_moments = None, None
    if wants_class:
        class_prompt = fill_template(
            prior.prompt, subject=subject, class_noun=data.class_noun, field="prior.prompt"
        )
    if wants_class and prior.kind == "class_images" and class_prompt is not None:
        sampling = SamplingConfig(
            num_steps=prior.num_steps,
            guidance_scale=prior.guidance_scale,
            batch_size=prior.batch_size,
            size=size,
        )
        class_moments = class_latents(
            prior,
            prompt=class_prompt,
            base_fingerprint=base.fingerprint,
            size=size,
            generate=lambda prompts, seeds: generate_latents(base, prompts, seeds, sampling),
            cache=cache,
        )
    return TrainingData(
        data,
        instances,
        seed=config.training.seed,
        batch_size=config.training.batch_size,
        class_moments=class_moments,
        class_prompt=class_prompt,
        instances_as_class=prior.kind == "base_prediction",
    )


def sample_prompts(method: Method, config: RunConfig) -> list[str]:
    """Prompts of the sample grids. Raises `DataError` for an unknown placeholder."""
    subject = method.subject_phrase(config.data.class_noun or "")
    class_noun = config.data.class_noun or "subject"
    return [
        fill_template(template, subject=subject, class_noun=class_noun, field="samples.prompts")
        for template in config.samples.prompts
    ]


def prepare_training(base: BasePipeline, method: Method, config: RunConfig) -> TrainingData:
    """What a run trains on, with `method` attached; mistakes in photos and settings come out here."""
    check_settings(config, base.family, method)
    device = training_device()
    base.to(
        device, resting=base.modules if config.training.offload and device.type != "cpu" else ()
    )
    sample_prompts(method, config)
    data = build_data(base, method, config)
    # Adapters draw their first weights from the global generator.
    torch.manual_seed(derive_seed(config.training.seed, "prepare"))
    method.prepare(base)
    return data


def run_training(
    base: BasePipeline,
    method: Method,
    config: RunConfig,
    *,
    data: TrainingData | None = None,
    resume: bool = False,
    name: str = "",
) -> TrainResult:
    """Train `config` on `base` into its run folder and write the artifact; leaves `method` attached.

    The folder must be there (`prepare_folder`); `data` is what `prepare_training` gave, which is
    called here without it. The caller detaches the method, also after an error.
    """
    run = RunFolder(config.output)
    if data is None:
        data = prepare_training(base, method, config)
    environment = json.dumps(_environment(base), indent=1)
    (run.path / "environment.json").write_text(environment, encoding="utf-8")

    prompts = sample_prompts(method, config)
    sampling = config.sampling.model_copy(update={"size": config.sampling.size or config.data.size})

    def sample(step: int) -> None:
        images = generate(base, prompts, [0] * len(prompts), sampling)
        (run.path / "samples").mkdir(exist_ok=True)
        grid = labelled_grid([(f"step {step}", images)], prompts)
        grid.save(run.path / "samples" / f"step-{step:06d}.png")

    result = train(
        base,
        method,
        data,
        config,
        run.path,
        resume=resume,
        on_sample=sample,
        description=name or config.method.kind,
    )
    if result.finished:
        save_artifact(base, method, config, run.artifact)
        if config.training.checkpoint_every is None:  # was kept only until the artifact is safe
            shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
    return result
