"""What compares: `finetune compare` and `finetune evaluate`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from data_prep.errors import UserError
from finetune.cli.common import (
    Overrides,
    check_kind,
    config_values,
    reports_errors,
    warn_about_known_word,
)

FAILED = 3
"""Exit code of a comparison that is finished but for rows that failed."""


def command_line() -> str:
    """The command as it was given."""
    return " ".join(["finetune", *(shlex.quote(argument) for argument in sys.argv[1:])])


@reports_errors
def compare(
    config: Annotated[
        Path | None,
        typer.Argument(help="YAML of a comparison, e.g. configs/clay/compare.yaml."),
    ] = None,
    overrides: Overrides = None,
    merge: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="RESULTS",
            help="Instead: join finished comparisons; more of them may follow, and output=FOLDER.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a comparison that exists.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try what failed before once more.")
    ] = False,
) -> None:
    """Train several methods on the same photos and show which kept the subject.

    A comparison that was stopped goes on when it is called again; finished parts are kept, and rows, training
    seeds and scorers may be added. If a row failed somewhere the others finish, and the exit code is 3.

    Example: finetune compare configs/clay/compare.yaml data.photos=my_dog data.class_noun=dog

    Many subjects: data.photos is a folder of theirs with a subjects.yaml, a line for each ('rex: {class_noun:
    dog, kind: live}'), and data.class_noun=null. All fields: finetune show-config compare.

    Join: finetune compare --from runs/monday runs/tuesday output=runs/both
    """
    if merge:
        given = [*merge, *([] if config is None else [config]), *map(Path, overrides or [])]
        if retry_failed:
            raise UserError(
                "--retry-failed: joining trains nothing. Call the comparison itself again."
            )
        _merge([str(path) for path in given], overwrite=overwrite)
        return
    if config is None:
        raise UserError(
            "Give a configuration (finetune list configs), or --from RESULTS to join finished comparisons."
        )
    _compare(config, overrides, overwrite=overwrite, retry_failed=retry_failed)


def _compare(
    config: Path, overrides: list[str] | None, *, overwrite: bool, retry_failed: bool
) -> None:
    from finetune.base import load_base, recognise_base
    from finetune.compare.assemble import assembled
    from finetune.compare.config import CompareConfig
    from finetune.compare.grid import save_grid
    from finetune.compare.measure import Scorers, load_judges
    from finetune.compare.plan import method_runs
    from finetune.compare.planned import plan
    from finetune.compare.run import check_output, make_cells
    from finetune.config import validate
    from finetune.report import write_page
    from finetune.results import write_results
    from finetune.run import check_family, check_settings
    from finetune.train import training_device
    from methods import load_method

    settings = validate(CompareConfig, config_values(config, overrides), str(config))
    family = recognise_base(settings.base)
    for run in method_runs(settings, load_method).values():
        method = load_method(run.method.kind)(run.method)
        check_family(method, family, source=run.base.source, kind=run.method.kind)
        check_settings(run, family, method)
    base = load_base(settings.base)
    planned = plan(settings, base, load_method)
    for run in planned.runs.values():
        warn_about_known_word(load_method(run.method.kind)(run.method), run)
    check_output(planned, overwrite=overwrite)  # before networks are fetched
    names = settings.scorers.resolved(settings.base.source)
    scorers = Scorers.load(names, device=training_device())
    judges = load_judges(settings, scorers, device=training_device())
    made = make_cells(
        planned,
        base,
        load_method,
        judges=judges,
        overwrite=overwrite,
        retry_failed=retry_failed,
        announce=typer.echo,
    )
    results = assembled(made, base, scorers, command=command_line())
    write_results(results, settings.output)
    grid = save_grid(results, settings.output)
    page = write_page(results, settings.output)
    failed = _say(results)
    typer.echo(f"Grid: {grid}\nPage: {page}")
    if failed:
        typer.echo(
            "To try again what failed, and nothing else: the same command with --retry-failed."
        )
        raise typer.Exit(FAILED)


def _merge(given: list[str], *, overwrite: bool) -> None:
    from finetune.compare.merge import merged
    from finetune.report import write_page

    if overwrite:
        raise UserError("--overwrite: joining writes over nothing. Give another output=FOLDER.")
    outputs = [text.removeprefix("output=") for text in given if text.startswith("output=")]
    folders = [Path(text) for text in given if not text.startswith("output=")]
    if len(outputs) > 1:
        raise UserError(f"output is given {len(outputs)} times. Give it once.")
    output = Path(outputs[0] if outputs else "runs/merged")
    results = merged(folders, output, command=command_line())
    page = write_page(results, output)
    _say(results)
    typer.echo(f"Page: {page}")


def _say(results: Any) -> bool:
    """Say the verdict and what failed; whether anything did."""
    from finetune.report.tables import ALL, failures

    for finding in results.verdict:
        typer.echo(finding.text)
    failed = failures(results)
    for failure in failed:
        everywhere = failure.subject == ALL
        where = "" if everywhere else f" on {failure.subject}, seed {failure.seed}"
        words = f"Failed: {failure.row}{where}: {failure.error}"
        typer.secho(words, err=True, fg=typer.colors.YELLOW)
    return bool(failed)


@reports_errors
def evaluate(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders of pictures, each a row; NN-SEED.png is of prompt NN."),
    ],
    subject: Annotated[str, typer.Option(help="Folder of the subject's real photos.")],
    class_noun: Annotated[str, typer.Option(help="What the subject is: dog, coffee mug.")],
    prompts: Annotated[
        str,
        typer.Option(
            help="The prompts they were made with: a file with one a line, YAML, or dreambooth. Those with "
            "{subject} tell fidelity, with {class} drift of the class, with neither drift of the rest."
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(help="What the subject is called; its folder's name if not told."),
    ] = None,
    kind: Annotated[str, typer.Option(help="live or object, for prompts per kind.")] = "object",
    base: Annotated[
        str | None,
        typer.Option(help="Make the frozen base's pictures at the same seeds: name, id or folder."),
    ] = None,
    base_pictures: Annotated[
        Path | None,
        typer.Option(help="Or its pictures by the same tool, in the same layout."),
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            help="Network that judges subjects: clay-clip, clay-judge, dino-s16, dino-b16, dinov2-s14, "
            "dinov2-b14, clip-b32, clip-l14, a Hub id or folder; repeatable, the first one's count. Without: "
            "clay-clip where --base is embedded, else dino-s16."
        ),
    ] = None,
    prompt_scorer: Annotated[
        str | None,
        typer.Option(
            help="Network that judges how well prompts are met. Without: clay-clip where --base is embedded, "
            "else clip-b32."
        ),
    ] = None,
    scheduler: Annotated[str, typer.Option(help="Of --base.")] = "sde-dpm-solver++",
    steps: Annotated[int, typer.Option(min=1, help="Of --base.")] = 25,
    guidance_scale: Annotated[float, typer.Option(min=0, help="Of --base.")] = 4.0,
    output: Annotated[Path, typer.Option(help="Folder of the results; must be new.")] = Path(
        "runs/evaluation"
    ),
) -> None:
    """Score pictures that any tool made, against the subject's photos and the prompts.

    A picture's name tells its prompt, counted from 0, and its seed: 03-0007.png, or 03/0007.png; or a
    metadata.jsonl does, with file_name, prompt and seed. Drift from the frozen base needs --base, whose
    pictures match those of `finetune generate`, or --base-pictures.

    Example: finetune evaluate pictures --subject my_dog --class-noun dog --prompts prompts.txt --base clay
    """
    from data_prep.config import DataConfig
    from finetune.base import BaseConfig, load_base
    from finetune.compare.evaluation import Wanted, check_base, evaluated, find_all
    from finetune.compare.folders import prompts_of
    from finetune.compare.measure import Scorers
    from finetune.compare.suite import subject_name
    from finetune.config import is_plain_name, validate
    from finetune.encoders import ScorersConfig
    from finetune.files import is_reserved, require_new
    from finetune.generate import SamplingConfig
    from finetune.prompts import read_prompts
    from finetune.report import write_page
    from finetune.train import training_device

    check_kind(kind)
    if name is not None and (not is_plain_name(name) or is_reserved(name)):
        raise UserError(f"--name: '{name}' cannot be a folder's name. Choose another.")
    if base is not None and base_pictures is not None:
        raise UserError("Give --base or --base-pictures, not both.")
    lines = read_prompts(prompts, field="--prompts").of(kind)
    wanted = Wanted(
        folders=_rows(folders),
        name=name or subject_name(subject),
        kind="live" if kind == "live" else "object",
        photos=validate(DataConfig, {"photos": subject, "class_noun": class_noun}, "options"),
        prompts=prompts_of([line.text for line in lines], class_noun),
        base_pictures=base_pictures,
    )
    sampling = validate(
        SamplingConfig,
        {"scheduler": scheduler, "num_steps": steps, "guidance_scale": guidance_scale},
        "options",
    )
    require_new(output, "--output")
    tables, _ = find_all(wanted)
    loaded = None if base is None else load_base(BaseConfig(source=base)).to(training_device())
    if loaded is not None:
        check_base(tables, loaded)
    names = ScorersConfig(subject=tuple(scorer or ()), prompt=prompt_scorer).resolved(base)
    scorers = Scorers.load(names, device=training_device())
    results = evaluated(
        wanted, output, scorers=scorers, base=loaded, sampling=sampling, command=command_line()
    )
    page = write_page(results, output)
    _say_scores(results)
    _say(results)
    typer.echo(f"Page: {page}")


def _rows(folders: list[Path]) -> dict[str, Path]:
    """A name for each folder; numbered where two are called alike."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [f"{number}-{name}" for number, name in enumerate(names, 1)]
    return dict(zip(names, folders, strict=True))


def _say_scores(results: Any) -> None:
    """Every row's scores by their titles, and what a reader has to know."""
    ids = [score.id for score in results.scores]
    titles = {
        score.key: score.title if ids.count(score.id) == 1 else f"{score.title} ({score.encoder})"
        for score in results.scores
    }
    for summary in results.summaries:
        found = summary.estimate
        if found.mean is not None:
            interval = "" if found.low is None else f" [{found.low:.3f}, {found.high:.3f}]"
            title = titles[summary.score]
            typer.echo(f"{summary.row:24} {title:42} {found.mean:.3f}{interval}")
    for remark in results.remarks:
        typer.echo(remark)
