"""What results.json holds: every number of a comparison, versioned, without any picture's pixels.

Only data: how numbers are made is told in `scores`, `statistics` and `verdict`, how they are shown in
`report`. Paths are relative to the folder that holds results.json. Everything but `Costs`, `Made` and the
like-named fields is a function of the settings and the machine's arithmetic, so that an interrupted
comparison ends with the same file as an unbroken one; `without_times` leaves the others out.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from data_prep.config import Section
from finetune.errors import ArtifactError
from finetune.files import read_json, write_text

SCHEMA_VERSION = 1
RESULTS = "results.json"
MAX_RESULTS_BYTES = 500_000_000
"""Of a file that is read: two million scored pictures."""
FROZEN_BASE, REAL_PHOTOS, PHOTOS_AS_OUTPUTS = "frozen base", "real photos", "photos as outputs"
REFERENCE_ROWS = (REAL_PHOTOS, PHOTOS_AS_OUTPUTS, FROZEN_BASE)
"""In the order in which they stand before other rows."""


def _rounded(value: Any) -> Any:
    """Six decimals; what is not a finite number becomes None, as JSON knows no NaN."""
    if isinstance(value, float):
        return round(value, 6) + 0.0 if math.isfinite(value) else None
    return value


Number = Annotated[float | None, BeforeValidator(_rounded)]
"""None where there is no number."""
Table = tuple[tuple[Number, ...], ...]
"""A value per [prompt, picture] in the order of `Subject.prompts`; an inner tuple is empty where the score is
not of that prompt's role, and holds one value where the score is of a prompt (diversity)."""
Role = Literal["test", "class", "unrelated", "validation"]
RowKind = Literal["reference", "method", "artifact", "folder"]
Better = Literal["higher", "lower", "neither"]


def score_key(id: str, encoder: str) -> str:
    """What a score by an encoder is called everywhere in the file."""
    return f"{id}/{encoder}"


class Record(Section):
    """A part of results.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Prompt(Record):
    """A column of the comparison."""

    template: str
    """With `{subject}` and `{class}`, as it was given."""
    text: str
    """What prompt fidelity compares pictures with: the identifier replaced by the class noun."""
    role: Role
    """`test`: about the subject; `class`: about its class; `unrelated`: about neither; `validation`: for
    tuning and learning curves alone."""


class Photo(Record):
    """One real photo of a subject."""

    file: str
    """A copy, cropped as it was scored."""
    sha256: str
    """Of the pixels that were scored."""
    masked: bool


class Subject(Record):
    """One subject of the suite."""

    name: str
    class_noun: str
    kind: Literal["live", "object"]
    photos: tuple[Photo, ...]
    prompts: tuple[Prompt, ...]
    """In the order test, class, unrelated; validation prompts are in `validation_prompts`."""
    validation_prompts: tuple[Prompt, ...] = ()


class EncoderInfo(Record):
    """A network that judges pictures, as far as it shapes a number."""

    name: str
    """As it was asked for, without a local path: a preset, a Hub id, a folder's name."""
    source: str
    """Where the weights came from: a Hub id, or a folder's name without its path."""
    kind: str
    preprocessing: str
    """In words and numbers."""
    sha256: str
    """Of the file of weights; of its parts' hashes where there are several."""
    dimensions: int
    scale: str
    """What a similarity is: the plain cosine, with its range."""


class ScoreInfo(Record):
    """What one score is. `key` names it everywhere else in the file."""

    key: str
    """`id/encoder`; see `score_key`."""
    id: str
    """`subject_fidelity`, `prompt_fidelity`, `class_leak`, `diversity`, `class_drift`, `other_drift`, `copy`,
    `copy_share`, `subject_fidelity_masked`."""
    title: str
    short_title: str
    encoder: str
    """An `EncoderInfo.name`."""
    better: Better
    roles: tuple[Role, ...]
    """Prompts whose pictures it is about."""
    definition: str
    papers: tuple[str, ...]
    headline: bool
    """Whether it is the one of its id that the verdict and plots take (one encoder per id)."""


class Costs(Record):
    """What varies from run to run even where pictures do not."""

    train_seconds: Number = None
    """Of the optimizer steps alone."""
    picture_seconds: Number = None
    """Per picture, in batches as configured."""
    peak_memory_bytes: int | None = None


class CurvePoint(Record):
    """One checkpoint of one cell, on the validation prompts."""

    step: int
    scores: dict[str, Number]
    """Score key -> mean over this checkpoint's pictures; `drift` is over all prompts without the subject."""
    pictures: tuple[tuple[str, ...], ...]
    """Files, [validation prompt, picture]: the same seeds at every step."""


class Cell(Record):
    """One row on one subject at one training seed."""

    row: str
    subject: str
    seed: int
    """Training seed."""
    status: Literal["finished", "failed"]
    error: str | None = None
    """Why it failed, in a sentence."""
    subject_phrase: str | None = None
    """What stands for the subject in this row's prompts."""
    num_steps: int | None = None
    """Optimizer steps done."""
    kept_step: int | None = None
    """Step whose weights made the pictures, where checkpoints were looked at."""
    recommended_step: int | None = None
    """By the checkpoint rule, where there is a curve."""
    overfits_from: int | None = None
    """Step from which on no checkpoint meets the rule's limits any more; None if it never overfits."""
    artifact_bytes: int | None = None
    num_trainable: int | None = None
    """Trained numbers."""
    pictures: tuple[tuple[str, ...], ...] = ()
    """Files, [prompt, picture]; empty for a failed cell, `()` where a row has none of a prompt."""
    noise_seeds: tuple[tuple[int, ...], ...] = ()
    """Seed of each picture's noise, the same in every row."""
    scores: dict[str, Table] = Field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    curve_scale: dict[str, Number] = Field(default_factory=dict)
    """What the rule's limits are relative to: the frozen base's `prompt_fidelity` and `noise` (mean 1 -
    cosine between its pictures of one prompt) on the validation prompts."""
    costs: Costs = Costs()


class Trial(Record):
    """One try at a row's settings, on validation prompts."""

    settings: dict[str, float | int]
    status: Literal["finished", "failed"]
    error: str | None = None
    scores: dict[str, Number] = Field(default_factory=dict)
    allowed: bool | None = None
    """Whether it meets the limits of the checkpoint rule."""


class Row(Record):
    """One row of the comparison."""

    name: str
    kind: RowKind
    method: str | None = None
    """Kind of the method, for rows that were trained."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The resolved sections of the run but for base, data and output; of an artifact what it says."""
    class_noun: str | None = None
    """Where the row calls the subjects by another noun than the suite."""
    trials: tuple[Trial, ...] = ()
    chosen_trial: int | None = None
    """Index among `trials` of the settings that were ranked."""
    error: str | None = None
    """Why the row was not compared (all its trials failed)."""


class Estimate(Record):
    """A mean with its interval of 95 %; all None where it cannot be told, with the reason in `remark`."""

    mean: Number = None
    low: Number = None
    high: Number = None
    num_values: int = 0
    """Pictures, or prompts for diversity, that went in."""
    speaks_of: str = ""
    """What the interval generalises to: "subjects and prompts like these", "these 2 subjects" …"""
    remark: str | None = None


class Summary(Record):
    """One score of one row."""

    row: str
    score: str
    """A `ScoreInfo.key`."""
    estimate: Estimate


class Difference(Record):
    """`row` minus `other` in one score, paired by subject, seed, prompt and noise."""

    score: str
    row: str
    other: str
    estimate: Estimate
    conclusion: Literal["higher", "lower", "cannot tell"]
    needed: str | None = None
    """Where it cannot be told: what would settle it, if anything can."""


class CurveSummary(Record):
    """A row's learning curve over all its cells."""

    row: str
    steps: tuple[int, ...]
    """At which all its cells were looked at; where some have ended, the others do not speak for the row."""
    scores: dict[str, tuple[Estimate, ...]]
    """Score key -> an estimate per step."""
    limits: dict[str, Number]
    """Score key -> the rule's limit in that score's own unit; prompt fidelity's is a lower one."""
    recommended_step: int | None
    """By the rule on the means over all cells."""
    overfits_from: int | None


class Finding(Record):
    """One sentence of the verdict."""

    question: Literal["subject", "prompt", "class"]
    score: str
    text: str
    leaders: tuple[str, ...]
    """One row, or those that cannot be told apart."""
    scope: str = ""
    """What a lead is limited to, such as "1 subject, 1 training run"; empty where it speaks of the method."""


class Budget(Record):
    """What was made equal between methods."""

    kind: Literal["steps", "pictures", "seconds", "own"]
    amount: float | None
    text: str
    """In a sentence."""


class Rule(Record):
    """The checkpoint rule that curves, early stopping and tuning follow."""

    text: str
    limits: dict[str, float]


class BaseInfo(Record):
    """The frozen base."""

    source: str
    family: str
    fingerprint: str
    dtype: str
    size: int
    """Side of the pictures in pixels."""


class Made(Record):
    """How and where the file was made; not compared by `without_times`."""

    command: str
    made_by: str
    python: str
    platform: str
    device: str
    threads: int
    versions: dict[str, str]


class Results(Record):
    """A whole comparison."""

    schema_version: int = SCHEMA_VERSION
    title: str
    made: Made
    base: BaseInfo | None
    """None where pictures of other tools were scored without a base."""
    budget: Budget | None
    rule: Rule | None
    num_images: int
    """Pictures per prompt, row, subject and seed."""
    seeds: tuple[int, ...]
    """Training seeds."""
    sampling: dict[str, Any]
    subjects: tuple[Subject, ...]
    encoders: tuple[EncoderInfo, ...]
    scores: tuple[ScoreInfo, ...]
    rows: tuple[Row, ...]
    """References first."""
    cells: tuple[Cell, ...]
    summaries: tuple[Summary, ...]
    differences: tuple[Difference, ...]
    curves: tuple[CurveSummary, ...]
    verdict: tuple[Finding, ...]
    remarks: tuple[str, ...] = ()
    """What a reader has to know: identifier replaced by the class noun, failed cells, odd pictures …"""
    settings: dict[str, Any]
    """The comparison's configuration."""

    def score(self, id: str) -> ScoreInfo | None:
        """The headline score of an id, if it was measured."""
        return next((score for score in self.scores if score.id == id and score.headline), None)

    def cells_of(self, row: str) -> tuple[Cell, ...]:
        """A row's cells, by subject and seed."""
        return tuple(cell for cell in self.cells if cell.row == row)

    @property
    def failed(self) -> tuple[Cell, ...]:
        """Cells without pictures."""
        return tuple(cell for cell in self.cells if cell.status == "failed")

    def without_times(self) -> dict[str, Any]:
        """All values but seconds, memory and where it was made: equal for equal comparisons."""
        values = self.model_dump(mode="json", exclude={"made"})
        for cell in values["cells"]:
            del cell["costs"]
        return values


def write_results(results: Results, folder: Path) -> Path:
    """Write `folder`/results.json, whole or not at all."""
    path = folder / RESULTS
    text = json.dumps(results.model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_text(path, text + "\n")
    return path


def read_results(path: Path) -> Results:
    """The results in a file, or in a folder that holds results.json. Raises `ArtifactError`."""
    file = path / RESULTS if path.is_dir() else path
    try:
        values = read_json(file, max_bytes=MAX_RESULTS_BYTES)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{file} cannot be read as results of a comparison: {error}. Give the folder that `finetune "
            "compare` or `finetune evaluate` wrote."
        ) from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{file} has the schema version {version}, this finetune reads {SCHEMA_VERSION}. Make it "
            "again with this version."
        )
    try:
        return Results.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"{file} cannot be read as results of a comparison: {field}: {first['msg']}."
        ) from error
