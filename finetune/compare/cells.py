"""Cells: each row on each subject at each seed, in a folder of its own that is complete or is gone on with.

`cell.json` is written last: a cell that has one is never touched again.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from data_prep.cache import cache_key
from data_prep.captions import fill_template
from finetune.artifact import NOTE, artifact_bytes, attach, read_artifact
from finetune.base import BasePipeline, load_base
from finetune.compare.config import CompareConfig
from finetune.compare.pictures import Place, make_pictures, noise_seeds, picture_files
from finetune.compare.suite import SuiteSubject
from finetune.config import MethodLoader, RunConfig
from finetune.errors import CheckpointError, UserError
from finetune.files import read_json, write_json
from finetune.generate import SamplingConfig
from finetune.guards import picture_memory_advice
from finetune.interrupt import exit_code
from finetune.method import Method
from finetune.results import Cell, Costs, CurvePoint
from finetune.run import RunFolder, prepare_folder, prepare_training, run_training
from finetune.train import TrainResult
from finetune.validation import STATE, Validation
from finetune.yardstick import Judges, Yardstick

CELL, TRAINED, TRACEBACK = "cell.json", "trained.json", "error.txt"
VOUCHED_FOR = (
    "base.source", "base.single_file_config", "data.photos", "data.more_photos", "prior.photos", "samples",
    "tracking",
)  # fmt: skip
"""What may be called otherwise when a cell goes on: the comparison knows by content that it is the same, or
it shapes nothing."""


@dataclass
class Bench:
    """What all cells share: the base in memory, and what has been made of it."""

    base: BasePipeline
    config: CompareConfig
    sampling: SamplingConfig
    load_method: MethodLoader
    announce: Callable[[str], None]
    judges: Judges | None
    """Of validation pictures; None where there are none."""
    yardsticks: dict[str, Yardstick] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """Folder of the comparison."""
        return self.config.output

    def yardstick(self, subject: SuiteSubject) -> Yardstick:
        """What a subject's validation pictures are held against; made when first asked for."""
        if subject.name not in self.yardsticks:
            assert self.judges is not None
            with self.memory_advice():
                self.yardsticks[subject.name] = Yardstick(
                    self.base,
                    subject.photos,
                    templates=subject.validation,
                    class_noun=subject.class_noun,
                    num_images=self.config.validation.num_images,
                    sampling=self.sampling,
                    judges=self.judges,
                )
        return self.yardsticks[subject.name]

    def memory_advice(self) -> AbstractContextManager[None]:
        """A context in which making pictures says what would need less memory."""
        return picture_memory_advice(self.sampling, self.config.base.dtype)

    def mend_base(self) -> bool:
        """Whether the base is as it was loaded; if not it is read again."""
        if self.base.current_fingerprint() == self.base.fingerprint:
            return True
        device, resting = self.base.device, self.base.resting
        self.base = load_base(self.config.base).to(device, resting=resting)
        return False


def read_cell(place: Place, root: Path, key: str) -> Cell | None:
    """A finished or failed cell; None if it is not there yet.

    Raises `CheckpointError` if it was made of something else than `key` stands for.
    """
    path = place.folder(root) / CELL
    if not path.is_file():
        return None
    try:
        values = read_json(path)
        cell = Cell.model_validate(values["cell"])
        stored = values["key"]
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Remove its folder, and the cell is made again."
        ) from error
    if stored != key:
        raise CheckpointError(
            f"{path.parent} was made with other settings, photos or prompts. Remove it, and it is made again."
        )
    return cell


def write_cell(place: Place, root: Path, key: str, cell: Cell) -> Cell:
    """Mark a cell as done."""
    write_json(place.folder(root) / CELL, {"key": key, "cell": cell.model_dump(mode="json")})
    return cell


def cell_key(**inputs: Any) -> str:
    """What a cell is of, in 32 hex digits."""
    return cache_key(**inputs)


def _pictures(
    bench: Bench, place: Place, subject: SuiteSubject, phrase: str, base: BasePipeline
) -> dict[str, Any]:
    """Make a cell's pictures; fields of its `Cell`."""
    config = bench.config
    seeds = noise_seeds(
        subject, root_seed=config.seed, training_seed=place.seed, num_images=config.num_images
    )
    files = picture_files(place.folder(bench.root), len(subject.prompts), config.num_images)
    prompts = [
        fill_template(
            prompt.template, subject=phrase, class_noun=subject.class_noun, field="prompts"
        )
        for prompt in subject.prompts
        for _ in range(config.num_images)
    ]
    flat = [path for row in files for path in row]
    with bench.memory_advice():
        noise = [seed for row in seeds for seed in row]
        seconds = make_pictures(base, prompts, noise, flat, bench.sampling)
    return {
        "subject_phrase": phrase,
        "pictures": [[path.relative_to(bench.root).as_posix() for path in row] for row in files],
        "noise_seeds": seeds,
        "costs": {"picture_seconds": seconds},
    }


def shown_cell(
    bench: Bench,
    place: Place,
    subject: SuiteSubject,
    *,
    phrase: str,
    key: str,
    base: BasePipeline | None = None,
    artifact_size: int | None = None,
) -> Cell:
    """The cell of what needs no training: the frozen base, or an artifact that is on `base`."""
    made = _pictures(bench, place, subject, phrase, base or bench.base)
    fields = {"row": place.row, "subject": place.subject, "seed": place.seed, **made}
    cell = Cell.model_validate({**fields, "status": "finished", "artifact_bytes": artifact_size})
    return write_cell(place, bench.root, key, cell)


def failed_cell(bench: Bench, place: Place, error: BaseException, *, key: str) -> Cell:
    """The cell of what could not be made, with the reason; the traceback is in a file beside it."""
    keep_traceback(error, place.folder(bench.root))
    cell = Cell(
        row=place.row,
        subject=place.subject,
        seed=place.seed,
        status="failed",
        error=in_a_sentence(error),
    )
    return write_cell(place, bench.root, key, cell)


def keep_traceback(error: BaseException, folder: Path) -> None:
    """Write down where something failed, for whoever wrote the method."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(traceback.format_exception(error))
    (folder / TRACEBACK).write_text(text, encoding="utf-8")


def in_a_sentence(error: BaseException) -> str:
    """An exception for people: its own words if it is meant for them, else with its kind."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


@contextmanager
def trained(
    bench: Bench, run: RunConfig, subject: SuiteSubject, name: str
) -> Iterator[tuple[Method, dict[str, Any]]]:
    """A context in which a run's method is on the base with what it has learnt; trains it if need be.

    Hands back the method and what is known of its training. Ends the program, resumable, when a signal came.
    """
    method = bench.load_method(run.method.kind)(run.method)
    folder = RunFolder(run.output)
    note = folder.path / TRAINED
    try:
        if note.is_file() and (folder.artifact / NOTE).is_file():
            attach(bench.base, method, folder.artifact, read_artifact(folder.artifact))
            yield method, read_json(note)
            return
        resume = folder.config.is_file()
        yardstick = None if run.validation.every is None else bench.yardstick(subject)
        prepared = prepare_training(bench.base, method, run, yardstick=yardstick)
        num_trainable = sum(p.numel() for p in bench.base.trainable_parameters().values())
        prepare_folder(run, resume=resume, overwrite=False, allow_changes=VOUCHED_FOR)
        result = run_training(bench.base, method, run, prepared=prepared, resume=resume, name=name)
        if not result.finished:
            _leave(bench, name, result)
        told = {
            "num_steps": result.step,
            "kept_step": result.kept_step,
            "num_trainable": num_trainable,
            "artifact_bytes": artifact_bytes(folder.artifact),
            "train_seconds": result.step_seconds,
            "peak_memory_bytes": result.peak_memory_bytes,
            "curve": _curve(prepared.validation, bench.root),
        }
        write_json(note, told)
        if result.signal:  # it came in the last step
            _leave(bench, name, result)
        yield method, told
    finally:
        method.detach(bench.base)


def _leave(bench: Bench, name: str, result: TrainResult) -> NoReturn:
    bench.announce(f"{name} stopped after step {result.step}; the same command goes on.")
    raise SystemExit(exit_code(result.signal))


def _curve(validation: Validation | None, root: Path) -> dict[str, Any]:
    if validation is None:
        return {}
    points = [
        CurvePoint(
            step=point.step,
            scores=dict(means),
            pictures=tuple(
                tuple(path.relative_to(root).as_posix() for path in row)
                for row in validation.pictures_of(point.step)
            ),
        ).model_dump(mode="json")
        for point, means in zip(validation.points, validation.means, strict=True)
    ]
    return {
        "curve": points,
        "curve_scale": asdict(validation.yardstick.scale),
        "recommended_step": validation.recommended_step,
        "overfits_from": validation.overfits_from,
    }


def method_cell(
    bench: Bench, place: Place, subject: SuiteSubject, run: RunConfig, *, key: str
) -> Cell:
    """Train one row on one subject at one seed and make its pictures."""
    name = f"{place.row}, {place.subject}, seed {place.seed}"
    with trained(bench, run, subject, name) as (method, told):
        phrase = method.subject_phrase(run.data.class_noun or "")
        made = _pictures(bench, place, subject, phrase, bench.base)
    if not bench.mend_base():
        raise RuntimeError(f"The method {run.method.kind} did not leave the base as it was.")
    costs = Costs(
        train_seconds=told["train_seconds"],
        peak_memory_bytes=told["peak_memory_bytes"],
        picture_seconds=made.pop("costs")["picture_seconds"],
    )
    cell = Cell.model_validate(
        {
            "row": place.row,
            "subject": place.subject,
            "seed": place.seed,
            "status": "finished",
            "num_steps": told["num_steps"],
            "kept_step": told["kept_step"],
            "num_trainable": told["num_trainable"],
            "artifact_bytes": told["artifact_bytes"],
            **told["curve"],
            **made,
            "costs": costs.model_dump(),
        }
    )
    written = write_cell(place, bench.root, key, cell)
    if not bench.config.keep_artifacts:
        forget_learnt(RunFolder(run.output))
    return written


def forget_learnt(run: RunFolder) -> None:
    """Remove the weights of a run: its artifact, its checkpoints, those at steps that were looked at."""
    for folder in (run.artifact, run.checkpoints):
        shutil.rmtree(folder, ignore_errors=True)
    for state in run.validation.glob(f"*/{STATE}"):
        state.unlink()
