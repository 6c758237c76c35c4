"""`finetune train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from data_prep.errors import UserError
from finetune.cli.common import (
    Overrides,
    Overwrite,
    reports_errors,
    run_config,
    warn_about_known_word,
)
from finetune.interrupt import exit_code


@reports_errors
def train(
    config: Annotated[
        Path | None, typer.Argument(help="YAML of a run, e.g. configs/clay/lora.yaml.")
    ] = None,  # noqa: UP007, UP045
    overrides: Overrides = None,
    resume: Annotated[Optional[Path], typer.Option(help="Continue this run folder.")] = None,  # noqa: UP007, UP045
    overwrite: Overwrite = False,
    allow_change: Annotated[
        Optional[list[str]],  # noqa: UP007, UP045
        typer.Option(
            metavar="FIELD",
            help="With --resume: let this field differ from the run's; repeatable. One of "
            "training.num_steps, .gradient_accumulation_steps, .checkpoint_every, .max_non_finite_steps, "
            ".gradient_checkpointing, .offload, .attention, .compile, prior.batch_size, sampling, samples, "
            "tracking, and, with the same content, base.source, base.single_file_config, data.photos, "
            "data.more_photos, prior.photos.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it will cost and stop; no weights are read.")
    ] = False,
) -> None:
    """Train one method on one subject; writes a run folder with the artifact.

    Example: finetune train configs/clay/lora.yaml data.photos=my_dog data.class_noun=dog

    Go on for longer, with a run that kept checkpoints (training.checkpoint_every=100): finetune train
    --resume runs/dog training.num_steps=800 --allow-change training.num_steps
    """
    from finetune.artifact import NOTE
    from finetune.base import load_base, recognise_base, skeleton_of
    from finetune.checkpoint import latest_checkpoint, step_of
    from finetune.resume import check_resumable
    from finetune.run import (
        RunFolder,
        check_family,
        check_folder,
        check_settings,
        preflight,
        prepare_folder,
        prepare_training,
        run_training,
    )
    from finetune.train import is_main_process, wait_for_everyone
    from methods import load_method

    if config is not None and "=" in str(config):
        overrides, config = [str(config), *(overrides or [])], None
    if config is None and resume is None:
        raise UserError("Give a configuration (finetune list configs) or --resume RUN.")
    source = config if config is not None else RunFolder(resume or Path()).config
    if config is None and not source.is_file():
        raise UserError(f"There is no run to resume in {resume} (no config.yaml).")
    if resume is not None:
        overrides = [*(overrides or []), f"output={json.dumps(str(resume))}"]
    run = run_config(source, overrides)
    method = load_method(run.method.kind)(run.method)
    resumes, allowed = resume is not None, tuple(allow_change or ())
    if allowed and not resumes:
        raise UserError("--allow-change goes with --resume RUN; a new run takes what it is given.")
    folder = RunFolder(run.output)
    if not dry_run:
        check_folder(run, resume=resumes, overwrite=overwrite, allow_changes=allowed)
    newest = None
    if resumes and not dry_run:
        newest = latest_checkpoint(folder.checkpoints)[0]
        done = 0 if newest is None else step_of(newest) or 0
        if done > run.training.num_steps:
            raise UserError(
                f"{resume} has done {done} steps already, so training.num_steps {run.training.num_steps} "
                "cannot be reached by going on. Give more, or start a new run."
            )
        if (folder.artifact / NOTE).is_file() and done in (0, run.training.num_steps):
            if allowed and newest is None:
                raise UserError(
                    f"{resume} is finished and kept no checkpoint, so it cannot go on. Start a new run "
                    "with training.checkpoint_every=100."
                )
            typer.echo(f"{resume} is finished already; its artifact is in {resume}/artifact.")
            return
    family = recognise_base(run.base)
    check_family(method, family, source=run.base.source, kind=run.method.kind)
    check_settings(run, family, method)
    skeleton = skeleton_of(run.base)
    preflight(skeleton, method, run)
    if dry_run:
        _print_estimate(skeleton, method, run)
        return
    base = load_base(run.base)
    warn_about_known_word(method, run)
    # A run folder is made, or replaced, only when nothing given can be wrong any more.
    prepared = prepare_training(base, method, run)
    if newest is not None:
        check_resumable(newest, base, prepared.data)
    wait_for_everyone()
    if is_main_process():
        prepare_folder(run, resume=resumes, overwrite=overwrite, allow_changes=allowed)
    wait_for_everyone()
    result = run_training(base, method, run, prepared=prepared, resume=resumes)
    if not is_main_process():
        raise typer.Exit(0 if result.finished else exit_code(result.signal))
    if not result.finished:
        typer.echo(
            f"Stopped after step {result.step}, with a checkpoint. Continue with: finetune train --resume "
            f"{run.output}"
        )
        raise typer.Exit(exit_code(result.signal))
    if result.stopped_early:
        typer.echo(f"Ended early, after step {result.step} of {run.training.num_steps}.")
    if result.kept_step is not None:
        typer.echo(f"The artifact is of step {result.kept_step}, as the checkpoint rule says.")
    typer.echo(
        f"Done in {result.seconds:.0f} s, loss {result.loss:.4f}. Artifact: {run.output}/artifact"
    )
    prompt = f"a photo of a {method.subject_phrase(run.data.class_noun or '')} on the beach"
    typer.echo(f'Try: finetune generate {run.output} --prompt "{prompt}"')


def _print_estimate(skeleton: Any, method: Any, run: Any) -> None:
    from finetune.estimate import estimate
    from finetune.train import training_device

    device = training_device()
    typer.echo(f"{run.method.kind} on {run.base.source}, device {device.type}:")
    for line in estimate(skeleton, method, run, device=device).lines():
        typer.echo(f"  {line}")
