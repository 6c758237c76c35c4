"""Several methods on one frozen base: same photos, same budget, same seeds; pictures, scores, costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from data_prep.captions import fill_template
from data_prep.decode import decode_each
from data_prep.sources import read_records
from data_prep.transforms import crop_square
from finetune.artifact import artifact_bytes
from finetune.base import BasePipeline, load_base
from finetune.config import (
    CompareConfig,
    MethodLoader,
    RunConfig,
    build_run_config,
    is_plain_name,
    merge,
)
from finetune.errors import ConfigError
from finetune.evaluate import (
    ClipScorer,
    bootstrap_interval,
    prompt_similarity,
    real_similarity,
    subject_similarity,
)
from finetune.export.imported import Source, attached, bases_of, open_source
from finetune.generate import SamplingConfig, generate, labelled_grid
from finetune.interrupt import exit_code
from finetune.run import (
    RunFolder,
    check_family,
    check_folder,
    preflight,
    prepare_folder,
    prepare_training,
    run_training,
)
from finetune.train import training_device

BASE_ROW = "frozen base"


@dataclass(frozen=True)
class Score:
    """A mean over pictures with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(values: Tensor) -> Score:
        """The mean of per-picture values and its interval."""
        return Score(float(values.mean()), *bootstrap_interval(values.tolist()))


@dataclass
class Row:
    """One row of the comparison: the frozen base, or a method."""

    name: str
    subject: str
    scores: dict[str, Score]
    train_seconds: float | None = None
    peak_memory_bytes: int | None = None
    artifact_bytes: int | None = None
    num_steps: int | None = None
    images: list[list[Image.Image]] = field(default_factory=list, repr=False)
    """Pictures per column: the prompts, then the class prompt."""


@dataclass
class Comparison:
    """All that the report shows."""

    photos: list[Image.Image]
    columns: list[str]
    rows: list[Row]
    scorer: str
    real_similarity: float | None
    """None where there is a single photo."""
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, for results.json."""
        rows = []
        for row in self.rows:
            values = {key: value for key, value in vars(row).items() if key != "images"}
            rows.append({**values, "scores": {name: asdict(s) for name, s in row.scores.items()}})
        return {
            "scorer": self.scorer,
            "real_similarity": self.real_similarity,
            "columns": self.columns,
            "rows": rows,
            "settings": self.settings,
        }


def method_configs(config: CompareConfig, load_method: MethodLoader) -> dict[str, RunConfig]:
    """Every row's run configuration. Raises `ConfigError` with the row's name."""
    configs = {}
    for name, sections in config.methods.items():
        if name == BASE_ROW or not is_plain_name(name):
            raise ConfigError(f"methods.{name}: choose another name for this row.")
        for key in sorted({"base", "data", "output"} & {*config.shared, *sections}):
            raise ConfigError(f"methods.{name}: set {key} for the whole comparison, at the top.")
        if "sampling" in sections:
            raise ConfigError(f"methods.{name}: set sampling for all rows, under shared.")
        values = merge(config.shared, sections)
        common = config.model_dump(mode="json", include={"base", "data"})
        values = merge(common, values)
        values["output"] = str(config.output / "runs" / name)
        configs[name] = build_run_config(values, load_method, f"methods.{name}")
    return configs


def finished_sources(config: CompareConfig) -> dict[str, Source]:
    """The artifacts of a comparison. Raises `ConfigError` with the row's name."""
    sources = {}
    for name, row in config.artifacts.items():
        if name in (BASE_ROW, *config.methods) or not is_plain_name(name):
            raise ConfigError(f"artifacts.{name}: choose another name for this row.")
        source = open_source(row.path)
        if row.subject is None and source.subject is None:
            raise ConfigError(
                f"artifacts.{name}.subject is not set, and {row.path} does not say what stands for its "
                "subject. Give the words, for instance 'sks dog'."
            )
        sources[name] = source
    return sources


def base_for(source: Source, base: BasePipeline) -> BasePipeline:
    """Where an artifact is shown: on `base`, or a whole pipeline made elsewhere by itself."""
    if source.kind != "pipeline":
        return base
    return load_base(bases_of([source], base.source)[0]).to(base.device)


def row_pictures(
    base: BasePipeline, config: CompareConfig, sampling: SamplingConfig, subject: str
) -> list[list[Image.Image]]:
    """Pictures of every column, `num_images` each; the same seeds for every row."""
    templates = [*config.prompts, config.class_prompt]
    prompts = [
        fill_template(t, subject=subject, class_noun=config.data.class_noun, field="prompts")
        for t in templates
        for _ in range(config.num_images)
    ]
    seeds = [config.seed + index for _ in templates for index in range(config.num_images)]
    images = generate(base, prompts, seeds, sampling, show_progress=True)
    return [images[i : i + config.num_images] for i in range(0, len(images), config.num_images)]


def score_row(
    images: Sequence[Sequence[Image.Image]],
    prompts: Sequence[str],
    *,
    photos: Tensor,
    scorer: ClipScorer,
) -> dict[str, Score]:
    """Scores of one row: `images` per column, the class prompt's last; `prompts` without identifier."""
    flat = [image for column in images for image in column]
    embeddings = scorer.embed_images(flat)
    texts = scorer.embed_texts(
        [p for p, column in zip(prompts, images, strict=True) for _ in column]
    )
    num_class = len(images[-1])
    subject = subject_similarity(embeddings, photos)
    return {
        "subject": Score.of(subject[:-num_class]),
        "prompt": Score.of(prompt_similarity(embeddings, texts)[:-num_class]),
        "class_to_subject": Score.of(subject[-num_class:]),
    }


def compare(
    config: CompareConfig,
    base: BasePipeline,
    load_method: MethodLoader,
    *,
    overwrite: bool = False,
    announce: Callable[[str], None] = print,
) -> Comparison:
    """Train every method in turn on `base` and compare what they and finished artifacts make.

    Raises `RuntimeError` if a method does not leave the base bit-identical.
    """
    configs = method_configs(config, load_method)
    class_noun = config.data.class_noun
    if not class_noun:
        raise ConfigError(
            "data.class_noun is not set; the frozen base needs it (data.class_noun=dog)."
        )
    methods = {name: load_method(run.method.kind)(run.method) for name, run in configs.items()}
    for name, method in methods.items():
        kind = configs[name].method.kind
        check_family(method, base.family, source=base.source, kind=kind)
    size = config.data.size or base.family.default_size(base.components)
    decoded = decode_each(read_records(config.data), background=config.data.background)
    photos = [crop_square(photo.image, size)[0] for photo in decoded]
    scorer = ClipScorer.load()
    photo_embeddings = scorer.embed_images(photos)
    templates = [*config.prompts, config.class_prompt]
    plain = [
        fill_template(t, subject=class_noun, class_noun=class_noun, field="prompts")
        for t in templates
    ]
    sampling = next(iter(configs.values())).sampling
    sampling = sampling.model_copy(update={"size": sampling.size or size})

    def finish(name: str, subject: str, base: BasePipeline = base) -> Row:
        images = row_pictures(base, config, sampling, subject)
        return Row(
            name,
            subject,
            score_row(images, plain, photos=photo_embeddings, scorer=scorer),
            images=images,
        )

    for name, run in configs.items():  # mistakes come out before anything is trained
        check_folder(run, resume=False, overwrite=overwrite)
        methods[name].subject_phrase(class_noun)
        preflight(base, methods[name], run)
    sources = finished_sources(config)
    for source in sources.values():
        with attached(source, base, load_method):
            pass
    device = training_device()
    offload = sampling.cpu_offload and device.type != "cpu"
    base.to(device, resting=base.modules if offload else ())
    announce(f"{BASE_ROW}: pictures of the class, for reference")
    rows = [finish(BASE_ROW, class_noun)]
    for name, run in configs.items():
        announce(f"{name}: {run.training.num_steps} steps on {len(photos)} photos")
        method = methods[name]
        try:
            data = prepare_training(base, method, run)
            prepare_folder(run, resume=False, overwrite=overwrite)
            result = run_training(base, method, run, data=data, name=name)
            if not result.finished:
                announce(f"{name} stopped: finetune train --resume {run.output} goes on with it.")
                raise SystemExit(exit_code(result.signal))
            row = finish(name, method.subject_phrase(class_noun))
        finally:
            method.detach(base)
        if base.current_fingerprint() != base.fingerprint:
            raise RuntimeError(f"The method {name} did not leave the base as it was.")
        row.train_seconds = result.seconds
        row.peak_memory_bytes = result.peak_memory_bytes
        row.artifact_bytes = artifact_bytes(RunFolder(run.output).artifact)
        row.num_steps = result.step
        rows.append(row)
    for name, source in sources.items():
        announce(f"{name}: pictures of {config.artifacts[name].path}")
        place = base_for(source, base)
        with attached(source, place, load_method) as note:
            rows.append(finish(name, config.artifacts[name].subject or note.subject, place))
    return Comparison(
        photos=photos,
        columns=plain,
        rows=rows,
        scorer=scorer.name,
        real_similarity=real_similarity(photo_embeddings),
        settings=config.model_dump(mode="json"),
    )


def comparison_grid(comparison: Comparison) -> Image.Image:
    """Rows: photos, frozen base, methods. Columns: prompts. The first picture of each prompt."""
    count = len(comparison.columns)
    photos = [comparison.photos[i % len(comparison.photos)] for i in range(count)]
    rows = [("photos", photos[: min(count, len(comparison.photos))])]
    rows += [(row.name, [column[0] for column in row.images]) for row in comparison.rows]
    return labelled_grid(rows, comparison.columns)


def save_comparison(comparison: Comparison, folder: Path) -> Mapping[str, Path]:
    """Write grid.png, results.json and every picture under `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in comparison.rows:
        target = folder / "pictures" / row.name
        target.mkdir(parents=True, exist_ok=True)
        for number, column in enumerate(row.images):
            for index, image in enumerate(column):
                image.save(target / f"{number:02d}-{index:02d}.png")
    paths = {"grid": folder / "grid.png", "results": folder / "results.json"}
    comparison_grid(comparison).save(paths["grid"])
    text = json.dumps(comparison.to_dict(), indent=1)
    paths["results"].write_text(text, encoding="utf-8")
    return paths
