"""Results to show: any number of rows, subjects, prompts and pictures, with holes where wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.results import (
    FROZEN_BASE,
    PHOTOS_AS_OUTPUTS,
    REAL_PHOTOS,
    BaseInfo,
    Budget,
    Cell,
    Costs,
    CurvePoint,
    CurveSummary,
    Difference,
    EncoderInfo,
    Estimate,
    Finding,
    Made,
    Photo,
    Prompt,
    Results,
    Role,
    Row,
    Rule,
    ScoreInfo,
    Subject,
    Summary,
    Trial,
)

NASTY = """<script>alert(1)</script> "quoted" & 'single' </style> {{ 7 * 7 }}"""
ENCODER = "clay-clip"
SCORES: dict[str, tuple[str, tuple[Role, ...]]] = {
    "subject_fidelity": ("higher", ("test",)),
    "prompt_fidelity": ("higher", ("test",)),
    "class_leak": ("lower", ("class",)),
    "diversity": ("neither", ("test",)),
    "class_drift": ("lower", ("class",)),
    "other_drift": ("lower", ("unrelated",)),
    "copy": ("lower", ("test",)),
}

Paint = Callable[[Path, int], None]


def paint_plain(path: Path, number: int) -> None:
    """A picture of 24 pixels a side whose colour differs from number to number."""
    color = (number * 37 % 256, number * 91 % 256, number * 53 % 256)
    Image.new("RGB", (24, 24), color).save(path)


@dataclass
class Wanted:
    """What results are wanted."""

    methods: Sequence[str] = ("dreambooth", "lora")
    subjects: Sequence[str] = ("rex",)
    prompts: Sequence[str] = ("a photo of a {subject} on the beach", "a {subject} at night")
    num_photos: int = 3
    num_images: int = 2
    seeds: Sequence[int] = (0,)
    steps: Sequence[int] = (50, 100)
    """Of the learning curves; none if empty."""
    failed: Sequence[tuple[str, str, int]] = ()
    """Row, subject, training seed."""
    scores: Sequence[str] = tuple(SCORES)
    has_base: bool = True
    note: str = (
        "Prompt fidelity compares with the prompt whose identifier is replaced by the class noun."
    )
    paint: Paint = field(default=paint_plain)


class _Maker:
    """Builds results and their picture files, every number by its place."""

    def __init__(self, folder: Path, wanted: Wanted):
        self.folder, self.wanted = folder, wanted
        self.random = np.random.default_rng(0)
        self.num_files = 0

    def file(self, name: str) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.wanted.paint(path, self.num_files)
        self.num_files += 1
        return name

    def subject(self, name: str, number: int) -> Subject:
        photos = tuple(
            Photo(file=self.file(f"photos/{number}/{i}.png"), sha256=f"{i:064x}", masked=i == 1)
            for i in range(self.wanted.num_photos)
        )
        templates: list[tuple[Role, str]] = [("test", text) for text in self.wanted.prompts]
        templates += [("class", "a photo of a {class}"), ("unrelated", "a bowl of fruit")]
        prompts = tuple(
            Prompt(
                template=text,
                text=text.replace("{subject}", "dog").replace("{class}", "dog"),
                role=role,
            )
            for role, text in templates
        )
        validation = Prompt(
            template="a {subject} in the rain", text="a dog in the rain", role="validation"
        )
        return Subject(
            name=name,
            class_noun="dog",
            kind="live",
            photos=photos,
            prompts=prompts,
            validation_prompts=(validation,),
        )

    def table(self, id: str, subject: Subject, level: float) -> tuple[tuple[float, ...], ...]:
        number = 1 if id == "diversity" else self.wanted.num_images
        return tuple(
            tuple(np.round(level + 0.05 * self.random.standard_normal(number), 6).tolist())
            if prompt.role in SCORES[id][1]
            else ()
            for prompt in subject.prompts
        )

    def cell(self, row: str, subject: Subject, seed: int) -> Cell:
        wanted = self.wanted
        if (row, subject.name, seed) in wanted.failed:
            return Cell(
                row=row,
                subject=subject.name,
                seed=seed,
                status="failed",
                error=NASTY,
            )
        shape = [(p, i) for p in range(len(subject.prompts)) for i in range(wanted.num_images)]
        place = f"pictures/{row.replace('/', '_')[:40]}/{subject.name[:40]}/{seed}"
        files = {(p, i): self.file(f"{place}/{p}-{i}.png") for p, i in shape}
        trained = row in wanted.methods
        level = 0.6 if trained else 0.3
        scores = {
            f"{id}/{ENCODER}": self.table(id, subject, level)
            for id in wanted.scores
            if trained or "drift" not in id
        }
        nested = [
            [files[p, i] for i in range(wanted.num_images)] for p in range(len(subject.prompts))
        ]
        curve = (
            [self.point(row, subject, seed, step, place) for step in wanted.steps]
            if trained
            else []
        )
        return Cell(
            row=row,
            subject=subject.name,
            seed=seed,
            status="finished",
            subject_phrase=f"sks {subject.class_noun}" if trained else subject.class_noun,
            num_steps=200 if trained else None,
            recommended_step=wanted.steps[0] if curve else None,
            overfits_from=wanted.steps[-1] if curve else None,
            artifact_bytes=3_190_000 if trained else None,
            num_trainable=797_184 if trained else None,
            pictures=tuple(map(tuple, nested)),
            noise_seeds=tuple(
                tuple(1000 * p + i for i in range(wanted.num_images))
                for p in range(len(subject.prompts))
            ),
            scores=scores,
            curve=tuple(curve),
            costs=Costs(train_seconds=83.4, picture_seconds=0.52, peak_memory_bytes=2_100_000_000),
        )

    def point(self, row: str, subject: Subject, seed: int, step: int, place: str) -> CurvePoint:
        return CurvePoint(
            step=step,
            scores={f"subject_fidelity/{ENCODER}": step / 1000},
            pictures=((self.file(f"{place}/curve-{step}.png"),),),
        )

    def estimate(self, values: Sequence[float]) -> Estimate:
        if not values:
            return Estimate(remark="Too few photos to compare them with each other.")
        mean = float(np.mean(values))
        return Estimate(
            mean=mean,
            low=mean - 0.03,
            high=mean + 0.05,
            num_values=len(values),
            speaks_of="this subject and prompts like these",
        )

    def summaries(self, rows: Sequence[Row], cells: Sequence[Cell]) -> list[Summary]:
        found = []
        for row in rows:
            for id in self.wanted.scores:
                key = f"{id}/{ENCODER}"
                tables = [c.scores[key] for c in cells if c.row == row.name and key in c.scores]
                values = [v for table in tables for line in table for v in line if v is not None]
                if values or (row.name == REAL_PHOTOS and id == "subject_fidelity"):
                    found.append(Summary(row=row.name, score=key, estimate=self.estimate(values)))
        return found

    def curve_summary(self, row: str) -> CurveSummary:
        steps = tuple(self.wanted.steps)
        estimates = tuple(
            Estimate(
                mean=step / 1000, low=step / 1000 - 0.02, high=step / 1000 + 0.02, num_values=4
            )
            for step in steps
        )
        return CurveSummary(
            row=row,
            steps=steps,
            scores={f"subject_fidelity/{ENCODER}": estimates},
            limits={f"subject_fidelity/{ENCODER}": 0.08},
            recommended_step=steps[0],
            overfits_from=steps[-1],
        )

    def differences(self) -> list[Difference]:
        wanted, found = self.wanted, []
        for id in wanted.scores:
            for number, row in enumerate(wanted.methods):
                for other in wanted.methods[number + 1 :]:
                    certain = id in ("prompt_fidelity", "class_drift")
                    low = 0.01 if certain else -0.04
                    found.append(
                        Difference(
                            score=f"{id}/{ENCODER}",
                            row=row,
                            other=other,
                            estimate=Estimate(mean=0.03, low=low, high=0.1, num_values=8),
                            conclusion="higher" if certain else "cannot tell",
                            needed=None if certain else "About 12 more prompts would settle it.",
                        )
                    )
        return found

    def make(self) -> Results:
        wanted = self.wanted
        subjects = tuple(self.subject(name, i) for i, name in enumerate(wanted.subjects))
        references = [FROZEN_BASE] * wanted.has_base + [REAL_PHOTOS, PHOTOS_AS_OUTPUTS]
        rows = [Row(name=name, kind="reference") for name in references]
        trial = Trial(settings={"learning_rate": 1e-4}, status="failed", error=NASTY)
        rows += [
            Row(
                name=name,
                kind="method",
                method="lora",
                settings={"training": {"num_steps": 200}, "note": NASTY},
                trials=(trial,),
            )
            for name in wanted.methods
        ]
        drawn = [FROZEN_BASE] * wanted.has_base + list(wanted.methods)
        cells = [self.cell(r, s, seed) for r in drawn for s in subjects for seed in wanted.seeds]
        for subject in subjects:
            if wanted.num_photos > 1 and "subject_fidelity" in wanted.scores:
                values = {f"subject_fidelity/{ENCODER}": ((0.8,) * wanted.num_photos,)}
                cells.append(
                    Cell(
                        row=REAL_PHOTOS,
                        subject=subject.name,
                        seed=0,
                        status="finished",
                        scores=values,
                    )
                )
        return Results(
            title="Which method learnt this dog?",
            made=Made(
                command=f"finetune compare compare.yaml 'note={NASTY}'",
                made_by="finetune 0.1.0",
                python="3.12.3",
                platform="Linux x86_64",
                device="cpu",
                threads=2,
                versions={"torch": "2.13.0", "diffusers": "0.42.1"},
            ),
            base=BaseInfo(
                source="clay", family="sd", fingerprint="c0ffee" * 10, dtype="float32", size=128
            )
            if wanted.has_base
            else None,
            budget=Budget(kind="steps", amount=200, text="Every method had 200 optimizer steps."),
            rule=Rule(
                text="The rule takes the step of highest subject fidelity.", limits={"drift": 0.2}
            ),
            num_images=wanted.num_images,
            seeds=tuple(wanted.seeds),
            sampling={"num_steps": 30, "guidance_scale": 5.0},
            subjects=subjects,
            encoders=(
                EncoderInfo(
                    name=ENCODER,
                    source="embedded",
                    kind="clay-clip",
                    preprocessing="128 pixels, bicubic",
                    sha256="ab" * 32,
                    dimensions=256,
                    scale="plain cosine, from -1 to 1",
                ),
            ),
            scores=tuple(
                ScoreInfo(
                    key=f"{id}/{ENCODER}",
                    id=id,
                    title=id.replace("_", " ").capitalize(),
                    short_title=id.replace("_", " "),
                    encoder=ENCODER,
                    better=SCORES[id][0],
                    roles=SCORES[id][1],
                    definition=f"The definition of {id}.",
                    papers=("arXiv 2208.12242",),
                    headline=True,
                )
                for id in wanted.scores
            ),
            rows=tuple(rows),
            cells=tuple(cells),
            summaries=tuple(self.summaries(rows, cells)),
            differences=tuple(self.differences()),
            curves=tuple(map(self.curve_summary, wanted.methods)) if wanted.steps else (),
            verdict=tuple(
                Finding(
                    question=question,
                    score=f"{id}/{ENCODER}",
                    text=f"{NASTY} leads.",
                    leaders=leaders,
                )
                for question, id, leaders in (
                    ("subject", "subject_fidelity", tuple(wanted.methods)),
                    ("prompt", "prompt_fidelity", tuple(wanted.methods[:1])),
                    ("class", "class_drift", ()),
                )
            ),
            remarks=(wanted.note,),
            settings={"base": {"source": "clay"}, "prompts": list(wanted.prompts)},
        )


def results_in(folder: Path, wanted: Wanted) -> Results:
    """Write picture files to `folder` and return the results that name them."""
    return _Maker(folder, wanted).make()
