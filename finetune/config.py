"""The configuration of a run: YAML and `section.key=value` in, a frozen, checked object out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from data_prep.config import DataConfig, PriorConfig, Section
from finetune.base import BaseConfig
from finetune.errors import ConfigError, did_you_mean
from finetune.generate import SamplingConfig
from finetune.loss import LossConfig
from finetune.method import MethodConfig
from finetune.optim import OptimizerConfig
from finetune.speed import AttentionName
from finetune.validation import ValidationConfig

MethodLoader = Callable[[str], Any]
"""Name of a method -> its class; raises `ConfigError` for an unknown one."""


def is_plain_name(name: str) -> bool:
    """Whether `name` names a file within a folder and nothing elsewhere, on any system."""
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0")


class TrainingConfig(Section):
    """The budget and the mechanics of the loop."""

    num_steps: int = Field(400, gt=0)
    """Optimizer steps."""
    batch_size: int = Field(1, gt=0)
    """Photos per optimizer step; with a prior as many class examples come on top."""
    gradient_accumulation_steps: int = Field(1, gt=0)
    """Parts into which a batch is cut to save memory; the result stays the same."""
    seed: int = 0
    """Seed of everything random while training."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the networks' arithmetic (autocast); trained weights stay float32. With float16, here or
    in `base.dtype`, the loss is scaled so that small gradients survive (Micikevicius et al. 2018, §3.2)."""
    gradient_checkpointing: bool = False
    """Compute the denoiser's activations again in the backward pass instead of keeping them: a third
    slower, a fraction of the memory, the same result."""
    offload: bool = True
    """Keep the autoencoder, and text encoders while they are frozen, in main memory once photos and
    prompts are encoded. Frees the accelerator's memory; makes no difference on a CPU."""
    attention: AttentionName = "auto"
    """Kernel of scaled dot-product attention: `flash`, `efficient` or `cudnn` (NVIDIA), or `math`, which
    writes the whole matrix of weights; `auto` takes torch's choice. A CPU has `flash` and `math`."""
    compile: bool = False
    """Compile the denoiser's repeated blocks (`torch.compile`): minutes at the start, faster steps then.
    Results differ by rounding."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Ship and show a moving average of the trained weights with at most this decay, 0.999 for
    instance; 4 bytes more per trained number. null ships the last weights."""
    checkpoint_every: int | None = Field(None, gt=0)
    """Optimizer steps between checkpoints; null keeps one only of an
    interrupted run."""
    max_seconds: float | None = Field(None, gt=0)
    """End after the step at which all steps together have taken this long, validation and samples not
    counted; null goes to `num_steps`. Such a run cannot be repeated exactly."""
    max_non_finite_steps: int = Field(5, gt=0)
    """Steps in a row whose loss or gradients are not finite, each skipped, after which a run gives up."""

    @model_validator(mode="after")
    def _divides(self) -> TrainingConfig:
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of gradient_accumulation_steps "
                f"{self.gradient_accumulation_steps}"
            )
        return self


class SamplesConfig(Section):
    """Pictures made while training, to watch it by."""

    every: int | None = Field(None, gt=0)
    """Optimizer steps between sample grids; null makes none."""
    prompts: tuple[str, ...] = Field(
        ("a photo of a {subject}", "a photo of a {class}"), min_length=1
    )
    """One picture each; `{subject}` and `{class}` are filled in."""


class TrackingConfig(Section):
    """Where figures go besides `metrics.jsonl`."""

    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Trackers started through accelerate; each needs its package. One that fails never stops a run."""
    project: str = "finetune"
    """Project name that trackers show; tensorboard's is the name of a folder within the run's."""

    @field_validator("project")
    @classmethod
    def _is_a_name(cls, project: str) -> str:
        if not is_plain_name(project):
            raise ValueError("is no plain name; use letters, digits, - and _")
        return project


class RunConfig(Section):
    """One method on one subject."""

    base: BaseConfig = BaseConfig()
    """The frozen base."""
    data: DataConfig
    """The photos."""
    method: SerializeAsAny[MethodConfig]
    """What is learnt; `kind` selects the method."""
    prior: PriorConfig = PriorConfig()
    """Prior preservation."""
    loss: LossConfig = LossConfig()
    """Weighting of the loss."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer and its schedule."""
    training: TrainingConfig = TrainingConfig()
    """Budget and mechanics."""
    sampling: SamplingConfig = SamplingConfig()
    """How pictures are made."""
    validation: ValidationConfig = ValidationConfig()
    """Scores along training, the checkpoint to keep, early stopping."""
    samples: SamplesConfig = SamplesConfig()
    """Pictures made while training."""
    tracking: TrackingConfig = TrackingConfig()
    """Trackers."""
    output: Path = Path("runs/run")
    """The run folder."""

    @model_validator(mode="after")
    def _one_half_precision(self) -> RunConfig:
        if {self.base.dtype, self.training.precision} == {"float16", "bfloat16"}:
            raise ValueError(
                f"base.dtype {self.base.dtype} and training.precision {self.training.precision} are two half "
                "precisions; take one of them for both, or float32 for one"
            )
        return self

    @model_validator(mode="after")
    def _class_pictures_are_square(self) -> RunConfig:
        if self.prior.kind == "class_images" and self.data.buckets:
            raise ValueError(
                "class pictures are square, but data.buckets trains photos at shapes of their own. Set "
                "prior.kind=base_prediction, which uses the photos themselves, or data.buckets=false"
            )
        return self

    @model_validator(mode="after")
    def _prior_has_a_class(self) -> RunConfig:
        if (
            self.prior.kind != "none"
            and not self.data.class_noun
            and "{class}" in self.prior.prompt
        ):
            raise ValueError(
                f"prior.kind is {self.prior.kind}, but data.class_noun is not set. Say what the subject "
                "is (data.class_noun=dog), or set prior.kind=none"
            )
        return self


MAX_YAML_BYTES = 1_000_000
"""Larger files are refused unread."""
MAX_VALUES = 10_000
"""In a YAML file, so that aliases of aliases do not fill the memory."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number, as it is in JSON and Python."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _num_values(values: Any) -> int:
    """How many values a YAML text stands for, aliases written out; stops beyond `MAX_VALUES`."""
    waiting, count = [values], 0
    while waiting and count <= MAX_VALUES:
        value = waiting.pop()
        count += 1
        if isinstance(value, Mapping):
            waiting += [*value, *value.values()]
        elif isinstance(value, (list, tuple, set)):
            waiting += value
    return count


def parse_yaml(text: str, source: str) -> Any:
    """The values of a YAML text. Raises `ConfigError` that names `source` and the line."""
    try:
        values = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    # Dates, numbers and nesting that do not exist in Python.
    except (yaml.YAMLError, ValueError, OverflowError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from error
    if _num_values(values) > MAX_VALUES:
        raise ConfigError(
            f"{source} holds more than {MAX_VALUES} values, aliases (*name) written out. Shorten it."
        )
    return values


def read_yaml(path: Path, *, holding: str = "sections (base:, data:, method: …)") -> dict[str, Any]:
    """The mapping in a YAML file. Raises `ConfigError`, with what it should hold, if there is none."""
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise ConfigError(f"{path} is larger than a megabyte, so it is no configuration.")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason}.") from error
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path} should hold {holding}.")
    return values


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` laid over, section by section."""
    merged = dict(values)
    for key, change in changes.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(change, Mapping)
        merged[key] = merge(old, change) if both else change  # type: ignore[arg-type]
    return merged


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`values` with `section.key=value` texts laid over. Raises `ConfigError` for a malformed one."""
    result = dict(values)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise ConfigError(f"'{override}' is not of the form section.key=value.")
        change: Any = parse_yaml(text, f"the value of {path}")
        for key in reversed(path.split(".")):
            change = {key: change}
        result = merge(result, change)
    return result


def _known_keys(model: type[Section], location: Sequence[Any]) -> list[str]:
    for key in location:
        field = model.model_fields.get(str(key))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, Section)):
            return []
        model = annotation
    return list(model.model_fields)


def _problems(error: ValidationError, model: type[Section], prefix: str = "") -> Iterator[str]:
    for detail in error.errors():
        yield _problem(detail, model, prefix)


def _problem(detail: ErrorDetails, model: type[Section], prefix: str) -> str:
    location = list(detail["loc"])
    path = ".".join([*filter(None, [prefix]), *map(str, location)])
    given = detail["input"]
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    if detail["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        return f"{path}: unknown key.{did_you_mean(str(location[-1]), known)}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{path + ': ' if path else ''}{message[0].lower()}{message[1:]}{shown}."


SectionType = TypeVar("SectionType", bound=Section)


def validate(model: type[SectionType], values: Mapping[str, Any], source: str) -> SectionType:
    """`values` as a `model`. Raises one `ConfigError` with all that is wrong."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{source}:\n  " + "\n  ".join(_problems(error, model))) from error


def build_run_config(
    values: Mapping[str, Any], load_method: MethodLoader, source: str
) -> RunConfig:
    """A run's configuration; its method section is checked by the method that `kind` names."""
    section = values.get("method")
    if not isinstance(section, Mapping) or "kind" not in section:
        raise ConfigError(f"{source}: method.kind is missing; `finetune list methods` shows them.")
    config_class = load_method(str(section["kind"])).config_class
    problems: list[str] = []
    method: Any = None
    try:
        method = config_class.model_validate(dict(section))
    except ValidationError as error:
        problems += _problems(error, config_class, "method")
        # A stand-in lets the other sections be checked in the same go.
        method = MethodConfig(kind=str(section["kind"]), learning_rate=1.0)
    try:
        config = RunConfig.model_validate({**values, "method": method})
    except ValidationError as error:
        problems += _problems(error, RunConfig)
    if problems:
        raise ConfigError(f"{source}:\n  " + "\n  ".join(problems))
    return config


def to_yaml(config: Section) -> str:
    """The resolved configuration as YAML that reads back to the same values."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def differences(old: str, new: str, old_name: str, new_name: str) -> str:
    """A unified diff of two configurations' YAML, or the empty string."""
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), old_name, new_name, lineterm="", n=0
    )
    return "\n".join(line for line in lines if not line.startswith("@@"))


def commented_yaml(config: Section, *, indent: int = 0) -> str:
    """The configuration as YAML with every field's documentation above it."""
    lines: list[str] = []
    pad = " " * indent
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        for line in (field.description or "").splitlines():
            lines.append(f"{pad}# {line.strip()}")
        if isinstance(value, Section):
            lines.append(f"{pad}{name}:")
            lines.append(commented_yaml(value, indent=indent + 2))
        else:
            plain = config.model_dump(mode="json")[name]
            style = None if isinstance(plain, list | dict) else False  # lists on one line
            dumped = yaml.safe_dump({name: plain}, default_flow_style=style, width=1000)
            lines += [pad + line for line in dumped.strip().splitlines()]
    return "\n".join(lines)
