"""From a configuration to a trained method: photos, class examples, training, samples, artifact.

Used by `finetune train` for one method and by the comparison for several on one base in memory.
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from tqdm import tqdm

from data_prep.captions import fill_template
from data_prep.config import DataConfig
from data_prep.loader import TrainingData
from data_prep.sources import read_records
from finetune.artifact import save_artifact
from finetune.base import BasePipeline, check_quantization
from finetune.config import RunConfig, read_yaml, to_yaml
from finetune.errors import ArtifactError, CheckpointError, ConfigError
from finetune.examples import build_data, picture_size, write_provenance
from finetune.families.base import ModelFamily
from finetune.files import LOCK, claimed, partial_of, write_text
from finetune.generate import check_pictures, check_sampling, generate, labelled_grid
from finetune.guards import memory_advice, remarks_on_pictures
from finetune.method import Method, why_unsupported
from finetune.optim import check_optimizer
from finetune.photos import scored_photos
from finetune.provenance import check_allowed, check_config
from finetune.seeding import derive_seed
from finetune.speed import check_speed
from finetune.train import TrainResult, is_main_process, train, training_device
from finetune.validation import Validation
from finetune.yardstick import Judges, Yardstick

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

    @property
    def checkpoints(self) -> Path:
        """What a resumed run goes on from."""
        return self.path / "checkpoints"

    @property
    def validation(self) -> Path:
        """Points and pictures along training."""
        return self.path / "validation"


@dataclass(frozen=True)
class Prepared:
    """All that a run needs besides the base, with its method attached."""

    data: TrainingData
    validation: Validation | None
    """None where the configuration asks for no looks along the way."""


def check_family(method: Method, family: ModelFamily, *, source: str, kind: str) -> None:
    """Raise `ArtifactError` if `method` cannot train bases of `family`; `source` names the base."""
    reason = why_unsupported(method.requirements(), family)
    if reason is not None:
        raise ArtifactError(
            f"The method {kind} cannot train {source}, which is of the family {family.name}: {reason}."
        )


def check_identifier(config: RunConfig) -> None:
    """Raise `ConfigError` if the identifier is the class noun."""
    identifier = config.method.model_dump().get("identifier")
    if identifier is not None and identifier == config.data.class_noun:
        raise ConfigError(
            f"method.identifier is '{identifier}', the class noun itself, so the two could not be told "
            "apart. Choose a rare token such as sks."
        )


def check_settings(config: RunConfig, family: ModelFamily, method: Method) -> None:
    """Raise `ConfigError` for what family, method, device or installed packages cannot do."""
    device, training = training_device(), config.training
    check_identifier(config)
    check_optimizer(config.optimizer.name)
    is_half = {config.base.dtype, training.precision} != {"float32"}
    check_speed(
        attention=training.attention, compile=training.compile, device=device, is_half=is_half
    )
    check_sampling(config.sampling, device)
    check_quantization(config.base)
    if config.base.quantization and method.requirements().artifact_format == "pipeline":
        raise ConfigError(
            f"base.quantization: {config.method.kind} trains the base's own weights, which cannot be "
            "done in few bits. Set it to null, or use lora."
        )
    if config.training.max_seconds is not None and config.optimizer.schedule != "constant":
        raise ConfigError(
            f"training.max_seconds: the schedule {config.optimizer.schedule} falls to its end at "
            "training.num_steps, which a run that time ends does not reach. Set optimizer.schedule=constant."
        )
    if config.validation.patience is not None and config.validation.every is None:
        raise ConfigError(
            "validation.patience counts looks, and there are none. Say how often with validation.every=50."
        )
    if config.validation.keep == "recommended" and config.validation.every is None:
        raise ConfigError(
            "validation.keep: without looks no checkpoint is recommended. Say how often with "
            "validation.every=50."
        )
    if family.flow_matching and config.loss.snr_gamma is not None:
        raise ConfigError(
            f"loss.snr_gamma: min-SNR weights are for DDPM bases; {config.base.source} is of the family "
            f"{family.name}, which learns a flow. Set it to null."
        )


def check_folder(
    config: RunConfig, *, resume: bool, overwrite: bool, allow_changes: Collection[str] = ()
) -> RunFolder:
    """The run folder as it is. Raises `CheckpointError` where a run would be lost or does not fit.

    With `resume`, `config` may differ from the run's in the fields `allow_changes`.
    """
    run = RunFolder(config.output)
    if resume:
        check_allowed(allow_changes)
        if not run.config.is_file():
            raise CheckpointError(f"There is no run to resume in {run.path} (no config.yaml).")
        check_config(read_yaml(run.config), config, run.path, allow_changes=allow_changes)
        return run
    if run.path.exists() and not run.path.is_dir():
        raise CheckpointError(f"{run.path} is a file. Choose another folder with output=...")
    leftovers = {run.path / LOCK, partial_of(run.config)}  # of a run that was killed at once
    if run.path.exists() and not leftovers.issuperset(run.path.iterdir()):
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


def prepare_folder(
    config: RunConfig, *, resume: bool, overwrite: bool, allow_changes: Collection[str] = ()
) -> RunFolder:
    """The run folder, made, or emptied with `overwrite`, after `check_folder` has agreed."""
    run = RunFolder(config.output)
    try:
        if not resume and not run.path.is_file():
            run.path.mkdir(parents=True, exist_ok=True)
        with claimed(run.path) if run.path.is_dir() else contextlib.nullcontext():
            check_folder(config, resume=resume, overwrite=overwrite, allow_changes=allow_changes)
            if run.config.is_file() and not resume:
                _empty(run.path)
            write_text(run.config, to_yaml(config))
    except OSError as error:
        raise CheckpointError(f"The run folder {run.path} cannot be written: {error}.") from error
    return run


def _empty(folder: Path) -> None:
    """Remove all but the lock; config.yaml last, so that what a kill leaves can be overwritten again."""
    kept = (LOCK, RunFolder(folder).config.name)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in kept:
            path.unlink()
    RunFolder(folder).config.unlink()


def package_versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _environment(base: BasePipeline) -> dict[str, object]:
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "versions": package_versions(),
        "base": {"source": base.source, "fingerprint": base.fingerprint},
    }


def preflight(base: BasePipeline, method: Method, config: RunConfig) -> None:
    """Find mistakes in settings that a run would meet minutes later; `base` may be without weights.

    Raises `ConfigError` or `DataError`.
    """
    check_settings(config, base.family, method)
    size = picture_size(base, config)
    own_size = config.sampling.size or size
    check_pictures(config.sampling.model_copy(update={"size": own_size}), base)
    sample_prompts(method, config)
    validation_templates(config)
    if config.prior.photos is not None:
        read_records(DataConfig(photos=config.prior.photos), field="prior.photos")
    try:
        with base.device if base.device.type == "meta" else contextlib.nullcontext():
            method.prepare(base)
    finally:
        method.detach(base)


def sample_prompts(method: Method, config: RunConfig) -> list[str]:
    """Prompts of the sample grids. Raises `DataError` for an unknown placeholder."""
    subject = method.subject_phrase(config.data.class_noun or "")
    class_noun = config.data.class_noun or "subject"
    return [
        fill_template(template, subject=subject, class_noun=class_noun, field="samples.prompts")
        for template in config.samples.prompts
    ]


def validation_templates(config: RunConfig) -> tuple[str, ...]:
    """Validation prompts, none where there are no looks. Raises `ConfigError` for what cannot be used."""
    if config.validation.every is None:
        return ()
    templates = config.validation.templates()
    for template in templates:
        fill_template(
            template, subject="x", class_noun=config.data.class_noun, field="validation.prompts"
        )
    return templates


def build_yardstick(base: BasePipeline, config: RunConfig) -> Yardstick:
    """What a run's validation pictures are held against. The base must be as it was loaded."""
    size = config.sampling.size or picture_size(base, config)
    names = config.validation.scorers.resolved(base.source)
    return Yardstick(
        base,
        scored_photos(config.data, size=size),
        templates=validation_templates(config),
        class_noun=config.data.class_noun or "subject",
        num_images=config.validation.num_images,
        sampling=config.sampling.model_copy(update={"size": size}),
        judges=Judges.load(names, device=base.device),
    )


def prepare_training(
    base: BasePipeline, method: Method, config: RunConfig, *, yardstick: Yardstick | None = None
) -> Prepared:
    """What a run trains on, with `method` attached; mistakes in photos and settings come out here.

    `yardstick` is that of another run with the same photos, validation and sampling; without one it is made.
    """
    check_settings(config, base.family, method)
    sample_prompts(method, config)
    with memory_advice(config, method):
        device = training_device()
        offload = config.training.offload and device.type != "cpu"
        base.to(device, resting=base.modules if offload else ())
        data = build_data(base, method, config)
        validation = None
        if config.validation.every is not None and is_main_process():
            validation = Validation(
                config.validation,
                yardstick or build_yardstick(base, config),
                base,
                method,
                RunFolder(config.output).validation,
                class_noun=config.data.class_noun or "subject",
                checkpoint_every=config.training.checkpoint_every,
            )
        # Adapters draw their first weights from the global generator.
        torch.manual_seed(derive_seed(config.training.seed, "prepare"))
        method.prepare(base)
    return Prepared(data, validation)


def run_training(
    base: BasePipeline,
    method: Method,
    config: RunConfig,
    *,
    prepared: Prepared | None = None,
    resume: bool = False,
    name: str = "",
) -> TrainResult:
    """Train `config` on `base` into its run folder and write the artifact; leaves `method` attached.

    The folder must be there (`prepare_folder`); `prepared` is what `prepare_training` gave, which is
    called here without it. The caller detaches the method, also after an error.
    """
    run, is_main = RunFolder(config.output), is_main_process()
    if prepared is None:
        prepared = prepare_training(base, method, config)
    data, validation = prepared.data, prepared.validation
    # One process writes, and as long as it does no other run may.
    claim = claimed(run.path) if is_main else contextlib.nullcontext()
    with claim, memory_advice(config, method):
        if is_main:
            write_text(run.path / "environment.json", json.dumps(_environment(base), indent=1))
            write_provenance(data, run.path)
        result = train(
            base,
            method,
            data,
            config,
            run.path,
            resume=resume,
            on_sample=_Sampler(base, sample_prompts(method, config), config, run.path / "samples"),
            watch=validation,
            description=name or config.method.kind,
        )
        if result.finished and is_main:
            if validation is not None:
                result = replace(result, kept_step=validation.put_back())
            save_artifact(base, method, config, run.artifact)
            if config.training.checkpoint_every is None:  # was kept only until the artifact is safe
                shutil.rmtree(run.checkpoints, ignore_errors=True)
    return result


class _Sampler:
    """Makes the sample grid of a step; what is wrong with grids is said once and stops nothing."""

    def __init__(
        self, base: BasePipeline, prompts: list[str], config: RunConfig, folder: Path
    ) -> None:
        self.base, self.prompts, self.folder = base, prompts, folder
        size = config.sampling.size or config.data.size
        self.sampling = config.sampling.model_copy(update={"size": size})
        self._warned = False

    def __call__(self, step: int) -> None:
        images = generate(self.base, self.prompts, [0] * len(self.prompts), self.sampling)
        remarks = [f"At step {step}: {remark}" for remark in remarks_on_pictures(images)]
        try:
            self.folder.mkdir(exist_ok=True)
            grid = labelled_grid([(f"step {step}", images)], self.prompts)
            grid.save(self.folder / f"step-{step:06d}.png")
        except OSError as error:
            remarks.append(f"The samples of step {step} could not be written: {error}.")
        for remark in remarks if not self._warned else []:
            tqdm.write(f"Warning: {remark}", file=sys.stderr)
            self._warned = True
