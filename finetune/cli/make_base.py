"""Bases from nothing: `finetune pretrain` and `finetune clay`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from data_prep.errors import UserError
from finetune.cli.common import Overrides, config_values, reports_errors

clay_app = typer.Typer(
    help="Render the clay world that the embedded base was made from.", no_args_is_help=True
)


@reports_errors
def pretrain(
    config: Annotated[
        Path, typer.Argument(help="YAML of the recipe, e.g. configs/clay/pretrain.yaml.")
    ],
    overrides: Overrides = None,
    stage: Annotated[
        str,
        typer.Option(help="autoencoder, contrast, judge, denoiser, decoder, assemble or all."),
    ] = "all",
    max_minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after this time in all, to be resumed.")
    ] = None,  # noqa: UP007, UP045
) -> None:
    """Make a base, its CLIP and its judge from nothing, in stages. Run again to resume."""
    from finetune.config import validate
    from finetune.pretrain.recipe import STAGES, PretrainConfig, run_stages

    if stage not in (*STAGES, "all"):
        raise UserError(f"--stage: '{stage}' is not one of {', '.join(STAGES)}, all.")
    recipe = validate(PretrainConfig, config_values(config, overrides), str(config))
    stages = STAGES if stage == "all" else (stage,)
    command = shlex.join(["finetune", "pretrain", str(config), *(overrides or [])])
    run_stages(recipe, stages, max_minutes=max_minutes, announce=typer.echo, command=command)


@clay_app.command("render")
@reports_errors
def clay_render(
    folder: Annotated[Path, typer.Argument(help="Where pictures and metadata.jsonl go.")],
    num_pictures: Annotated[
        int, typer.Option(min=1, help="Rounded up to whole shards of 96; no fewer than are there.")
    ] = 26400,
    seed: Annotated[int, typer.Option(help="Seed of the world; 0 is the training set.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; default: all cores.")
    ] = None,  # noqa: UP007, UP045
) -> None:
    """Render captioned pictures of clay subjects. Run again to resume."""
    from tqdm import tqdm

    from data_prep.clay.dataset import render_dataset

    with tqdm(total=num_pictures, desc="rendering", unit="picture") as progress:
        for count in render_dataset(
            folder, num_pictures=num_pictures, seed=seed, num_workers=workers, warn=tqdm.write
        ):
            progress.update(min(count, num_pictures - progress.n))
    typer.echo(f"Pictures and metadata.jsonl in {folder}")


@clay_app.command("subjects")
@reports_errors
def clay_subjects(
    folder: Annotated[Path, typer.Argument(help="Where the subject folders go.")],
    group: Annotated[
        str,
        typer.Option(help="examples (of the package), tuning (of rates) or study (of methods)."),
    ] = "examples",
) -> None:
    """Render subjects to learn from: training photos and held-out views of each, with masks."""
    from data_prep.clay.subjects import GROUPS, render_subjects

    if group not in GROUPS:
        raise UserError(f"--group: '{group}' is not one of {', '.join(GROUPS)}.")
    for name in render_subjects(folder, group=group):
        typer.echo(f"{folder / name}")
