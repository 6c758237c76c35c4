"""Rows of a comparison as runs: overrides, budgets, trials. Knows settings, reads no base and no photo."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from data_prep.config import DataConfig
from finetune.compare.config import BudgetConfig, CompareConfig, TuneConfig
from finetune.compare.suite import SuiteSubject, subject_names, uses_validation
from finetune.config import (
    MethodLoader,
    RunConfig,
    build_run_config,
    is_plain_name,
    merge,
)
from finetune.errors import ConfigError, did_you_mean
from finetune.files import is_reserved
from finetune.method import Method
from finetune.results import REFERENCE_ROWS

CLASS_NOUN = "class_noun"
UNLIMITED_STEPS = 1_000_000
"""Of a run that time ends."""
_WHOLE = ("base", "data", "output")
_SHARED_VALIDATION = {"every", "prompts", "num_images", "limits", "scorers"}


@dataclass(frozen=True)
class Trial:
    """Settings to try in place of a row's own."""

    learning_rate_factor: float
    num_steps: int | None
    """None keeps the row's."""

    def settings(self, run: RunConfig) -> dict[str, float | int]:
        """What it has set in a run; no steps where time ends it."""
        settings: dict[str, float | int] = {f"method.{n}": v for n, v in _rates(run).items()}
        if run.training.max_seconds is None:
            settings["training.num_steps"] = run.training.num_steps
        return settings


def trials_of(tune: TuneConfig) -> list[Trial]:
    """The settings every row tries: all combinations, or as many drawn from them, always the same."""
    factors, steps = dict.fromkeys(tune.learning_rate_factors), dict.fromkeys(tune.num_steps)
    combinations = list(product(factors, steps or (None,)))
    places = sorted(random.Random("trials").sample(range(len(combinations)), tune.trials))
    return [Trial(*combinations[place]) for place in places]


def check_row_name(
    name: str,
    where: str,
    taken: Mapping[str, object],
    *,
    remedy: str = "choose another name for this row",
) -> None:
    """Raise `ConfigError` for a name that no row can have; `remedy` says what to do about it."""
    if name in REFERENCE_ROWS or name in taken or not is_plain_name(name) or is_reserved(name):
        raise ConfigError(f"{where}: {remedy}.")


def _check_sections(config: CompareConfig, name: str) -> None:
    sections = config.methods[name]
    for key in _WHOLE:
        if key in config.shared or key in sections:
            raise ConfigError(f"methods.{name}: set {key} for the whole comparison, at the top.")
    if "sampling" in sections:
        raise ConfigError(f"methods.{name}: set sampling for all rows, under shared.")
    if "validation" in config.shared:
        raise ConfigError("shared.validation: set validation at the top, beside shared.")
    validation = sections.get("validation", {})
    if isinstance(validation, Mapping):
        for key in sorted(_SHARED_VALIDATION & set(validation)):
            raise ConfigError(
                f"methods.{name}.validation.{key}: set it for all rows, under validation at the top."
            )
    for part in (config.shared, sections):
        training = part.get("training", {})
        if isinstance(training, Mapping) and "seed" in training:
            raise ConfigError(
                f"methods.{name}: training.seed is set by the comparison. Give seeds: [...] at the top."
            )
        if isinstance(training, Mapping) and "max_seconds" in training:
            raise ConfigError(
                f"methods.{name}: set training.max_seconds through budget: {{kind: seconds, amount: 60}}."
            )


def noun_of(config: CompareConfig, name: str, subject: SuiteSubject) -> str:
    """What a row calls a subject's class. Raises `ConfigError` if it names subjects that are not there."""
    given = config.methods[name].get(CLASS_NOUN, subject.class_noun)
    if isinstance(given, Mapping):
        given = given.get(subject.name, subject.class_noun)
    if not isinstance(given, str) or not given.strip():
        raise ConfigError(f"methods.{name}.{CLASS_NOUN}: should be a word, or a word per subject.")
    return given


def check_nouns(config: CompareConfig) -> None:
    """Raise `ConfigError` if a row's class nouns are for subjects that are not there."""
    known = subject_names(config)
    for name, sections in config.methods.items():
        given = sections.get(CLASS_NOUN)
        for key in given if isinstance(given, Mapping) else ():
            if key not in known:
                raise ConfigError(
                    f"methods.{name}.{CLASS_NOUN}: there is no subject '{key}'."
                    f"{did_you_mean(str(key), known)}"
                )


def row_run(
    config: CompareConfig,
    name: str,
    subject: SuiteSubject,
    seed: int,
    output: Path,
    load_method: MethodLoader,
    *,
    trial: Trial | None = None,
) -> RunConfig:
    """The run of one row on one subject at one training seed. Raises `ConfigError` with the row's name."""
    data = subject.data.model_copy(update={"class_noun": noun_of(config, name, subject)})
    validation: dict[str, Any] = {}
    if uses_validation(config):
        validation = config.validation.model_dump(mode="json")
        validation["prompts"] = list(subject.validation)
        scorers = config.validation_scorers.resolved(config.base.source)
        validation["scorers"] = scorers.model_dump(mode="json")
    run = _built(config, name, data, validation, seed, output, load_method)
    return run if trial is None else with_trial(run, trial)


def _built(
    config: CompareConfig,
    name: str,
    data: DataConfig,
    validation: Mapping[str, Any],
    seed: int,
    output: Path,
    load_method: MethodLoader,
) -> RunConfig:
    _check_sections(config, name)
    sections = {key: v for key, v in config.methods[name].items() if key != CLASS_NOUN}
    values = merge({"validation": validation}, merge(config.shared, sections))
    values["data"] = data.model_dump(mode="json")
    values["base"] = config.base.model_dump(mode="json")
    values["output"] = str(output)
    values = merge(values, {"training": {"seed": seed}})
    run = build_run_config(values, load_method, f"methods.{name}")
    return with_budget(run, config.budget, load_method(run.method.kind)(run.method))


def method_runs(config: CompareConfig, load_method: MethodLoader) -> dict[str, RunConfig]:
    """Every row's run before any photo or base is read. Raises `ConfigError` with the row's name."""
    taken: dict[str, object] = {}
    for field, names in (("methods", config.methods), ("artifacts", config.artifacts)):
        for name in names:
            check_row_name(name, f"{field}.{name}", taken)
            taken[name] = None
    # A folder of subjects says what they are later.
    data = config.data.model_copy(update={"class_noun": config.data.class_noun or "subject"})
    looks = config.validation.model_dump(mode="json", include={"every", "patience", "keep"})
    return {
        name: _built(config, name, data, looks, config.seeds[0], config.output, load_method)
        for name in config.methods
    }


def pictures_per_step(run: RunConfig, method: Method) -> int:
    """Training pictures an optimizer step sees, class examples included."""
    has_class = run.prior.kind != "none" and method.requirements().uses_class_examples
    return run.training.batch_size * (2 if has_class else 1)


def with_budget(run: RunConfig, budget: BudgetConfig, method: Method) -> RunConfig:
    """A run at the comparison's budget. Raises `ConfigError` for a budget below one step."""
    if budget.kind == "own" or budget.amount is None:
        return run
    changes: dict[str, Any]
    if budget.kind == "seconds":
        changes = {"num_steps": UNLIMITED_STEPS, "max_seconds": budget.amount}
    else:
        per_step = pictures_per_step(run, method) if budget.kind == "pictures" else 1
        steps = int(budget.amount) // per_step
        if steps < 1:
            raise ConfigError(
                f"budget.amount: {run.method.kind} sees {per_step} pictures in one step, so "
                f"{budget.amount:g} are none. Give more."
            )
        changes = {"num_steps": steps}
    return run.model_copy(update={"training": run.training.model_copy(update=changes)})


def _rates(run: RunConfig) -> dict[str, float]:
    """A method's learning rates by field: `learning_rate`, and those of parts that have one of their own."""
    fields = run.method.model_dump().items()
    return {name: rate for name, rate in fields if name.endswith("learning_rate") and rate}


def with_trial(run: RunConfig, trial: Trial) -> RunConfig:
    """A run with the settings of a trial."""
    rates = {
        # Without the last digits, which are of binary arithmetic alone: 1e-4 * 3.
        name: float(f"{rate * trial.learning_rate_factor:.12g}")
        for name, rate in _rates(run).items()
    }
    training = run.training
    if trial.num_steps is not None:
        training = training.model_copy(update={"num_steps": trial.num_steps})
    return run.model_copy(
        update={"method": run.method.model_copy(update=rates), "training": training}
    )


def budget_text(config: CompareConfig, runs: Mapping[str, RunConfig]) -> str:
    """What was made equal, in a sentence."""
    budget, tune = config.budget, config.tune
    amount = f"{budget.amount or 0:,.15g}"
    is_patient = any(run.validation.patience is not None for run in runs.values())
    tries_fewer = tune is not None and any(steps != budget.amount for steps in tune.num_steps)
    at_most = "at most " if is_patient or tries_fewer else ""
    if budget.kind == "steps":
        text = f"Every method trained for {at_most}{amount} optimizer steps."
    elif budget.kind == "pictures":  # the last ones may not be enough for a step
        text = f"Every method saw at most {amount} training pictures, class examples included."
    elif budget.kind == "seconds":
        text = f"Every method trained for {at_most}{amount} seconds of optimizer steps."
    else:
        text = _own_steps(config, runs, at_most="at most " if is_patient else "")
    if tune is not None:
        text += f" Each was tuned before, with {tune.trials} trials on validation prompts."
    return text


def _own_steps(config: CompareConfig, runs: Mapping[str, RunConfig], *, at_most: str) -> str:
    """What rows have in common that train as they are configured."""
    steps = {run.training.num_steps for run in runs.values()}
    if config.tune is not None and config.tune.num_steps:
        steps = set(config.tune.num_steps)
    batches = {run.training.batch_size for run in runs.values()}
    if len(runs) < 2 or len(steps) > 1 or len(batches) > 1:
        return "Every method trained for its own number of steps."
    (num_steps,), (count,) = steps, batches
    same = f"{num_steps:,} optimizer steps with {count} photo{'s' if count > 1 else ''} each"
    return f"Every method trained as configured, all for {at_most}{same}."
