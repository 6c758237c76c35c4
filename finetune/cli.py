"""The command line: the composition root, the only module that knows methods and everything else.

Heavy imports stand inside the commands, so that `finetune --help` answers at once.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from data_prep.errors import UserError
from finetune.interrupt import SIGNALS, exit_code, orderly_exit

app = typer.Typer(
    name="finetune",
    help="Teach a text-to-image model your subject from a few photos, and compare the ways to do it.",
    epilog="Start with: finetune compare configs/clay/compare.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
clay_app = typer.Typer(
    help="Render the clay world that the embedded base was made from.", no_args_is_help=True
)
list_app = typer.Typer(help="Show what there is.", no_args_is_help=True)
app.add_typer(clay_app, name="clay")
app.add_typer(list_app, name="list")

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR}

Overrides = Annotated[
    Optional[list[str]],  # noqa: UP007, UP045 - typer reads this form
    typer.Argument(metavar="[section.key=value]...", help="Changes to the configuration."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a run folder that exists.")]


def _fail(message: str) -> None:
    typer.secho(f"Error: {message}", err=True, fg=typer.colors.RED)
    raise typer.Exit(2)


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what the user can mend into one sentence and exit code 2; bugs keep their traceback."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        # Libraries remark on optional packages that are not used here.
        for library in ("TRANSFORMERS", "DIFFUSERS"):
            os.environ.setdefault(f"{library}_VERBOSITY", "error")
        try:
            _check_our_methods()
            with orderly_exit():
                command(*args, **kwargs)
        except UserError as error:
            _fail(str(error))
        except OSError as error:
            name = error.filename or "A file"
            if error.errno in _NO_ROOM:
                _fail(
                    f"{name} could not be written: {error.strerror}. Free some space or choose another "
                    "folder."
                )
            if error.errno in _NO_ACCESS:
                _fail(
                    f"{name} could not be opened: {error.strerror}. Give yourself access, or choose "
                    "another file or folder."
                )
            raise
        except (KeyboardInterrupt, SystemExit) as error:
            code = error.code if isinstance(error, SystemExit) else exit_code(signal.SIGINT)
            if code not in [exit_code(number) for number in SIGNALS]:
                raise
            typer.secho("Stopped. What was finished is kept.", err=True)
            raise typer.Exit(int(code or 0)) from error

    return wrapped


def _check_our_methods() -> None:
    import methods

    if not hasattr(methods, "available_methods"):
        raise UserError(
            f"The package `methods` at {methods.__file__} hides the one that comes with finetune. Run "
            "from another folder or rename that package."
        )


def _config_path(path: Path) -> Path:
    """`path`, or the shipped configuration of that name where there is no such file."""
    if not path.exists() and path.parts[:1] == ("configs",):
        return config_folder().joinpath(*path.parts[1:])
    return path


def _config_values(path: Path, overrides: list[str] | None) -> dict[str, Any]:
    from finetune.config import apply_overrides, read_yaml

    return apply_overrides(read_yaml(_config_path(path)), overrides or [])


def _run_config(path: Path, overrides: list[str] | None) -> Any:
    from finetune.config import build_run_config
    from methods import load_method

    return build_run_config(_config_values(path, overrides), load_method, str(path))


@app.command()
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

    Go on, for longer: finetune train --resume runs/dog training.num_steps=800 --allow-change
    training.num_steps
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
    run = _run_config(source, overrides)
    method = load_method(run.method.kind)(run.method)
    _check_identifier(run)
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
    _warn_about_known_word(method, run)
    # A run folder is made, or replaced, only when nothing given can be wrong any more.
    data = prepare_training(base, method, run)
    if newest is not None:
        check_resumable(newest, base, data)
    wait_for_everyone()
    if is_main_process():
        prepare_folder(run, resume=resumes, overwrite=overwrite, allow_changes=allowed)
    wait_for_everyone()
    result = run_training(base, method, run, data=data, resume=resumes)
    if not is_main_process():
        raise typer.Exit(0 if result.finished else exit_code(result.signal))
    if not result.finished:
        typer.echo(
            f"Stopped after step {result.step}, with a checkpoint. Continue with: finetune train --resume "
            f"{run.output}"
        )
        raise typer.Exit(exit_code(result.signal))
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


def _identifier(run: Any) -> str | None:
    identifier: str | None = run.method.model_dump().get("identifier")
    return identifier


def _check_identifier(run: Any) -> None:
    identifier = _identifier(run)
    if identifier is not None and identifier == run.data.class_noun:
        raise UserError(
            f"method.identifier is '{identifier}', the class noun itself, so the two could not be told "
            "apart. Choose a rare token such as sks."
        )


def _warn_about_known_word(method: Any, run: Any) -> None:
    from finetune.words import is_common_word

    tokens = [*method.requirements().placeholder_tokens[:1], *filter(None, [_identifier(run)])]
    for token in filter(is_common_word, tokens):
        typer.secho(
            f"Warning: '{token}' is a common word; the base already means something by it, which the "
            "subject has to fight. A rare token such as sks learns better.",
            err=True,
            fg=typer.colors.YELLOW,
        )


def _distinct_names(paths: list[Path]) -> list[str]:
    """A name for each run or artifact, from its folder; numbered where two would be alike."""
    whole = [path.resolve() for path in paths]
    names = [
        path.parent.name if path.name == "artifact" else path.stem if path.is_file() else path.name
        for path in whole
    ]
    if len(set(names)) == len(names):
        return names
    return [f"{number}-{name}" for number, name in enumerate(names, 1)]


@app.command()
@reports_errors
def generate(
    artifacts: Annotated[
        list[Path],
        typer.Argument(
            help="Runs, artifacts, or files of other tools (LoRA, embedding, checkpoint); several stand "
            "side by side."
        ),
    ],
    prompt: Annotated[
        list[str] | None, typer.Option(help="May hold {subject} and {class}; repeatable.")
    ] = None,  # noqa: UP007, UP045
    prompts: Annotated[Optional[Path], typer.Option(help="Text file with a prompt a line.")] = None,  # noqa: UP007, UP045
    num_images: Annotated[int, typer.Option(min=1, help="Pictures per prompt.")] = 4,
    seed: Annotated[
        int, typer.Option(help="Seed of the first picture; the next has seed + 1.")
    ] = 0,
    scheduler: Annotated[
        str, typer.Option(help="ddpm, ddim, dpm-solver++ or sde-dpm-solver++.")
    ] = "sde-dpm-solver++",
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 25,
    guidance_scale: Annotated[float, typer.Option(min=0, help="Classifier-free guidance.")] = 4.0,
    negative_prompt: Annotated[str, typer.Option(help="What to steer away from.")] = "",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 8,
    cpu_offload: Annotated[
        bool, typer.Option("--cpu-offload", help="For bases larger than the accelerator.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(help="Base of artifacts made elsewhere: name, Hub id, folder or file."),
    ] = None,  # noqa: UP007, UP045
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow-pickle", help="Read .pt and .bin files too, tensors only."),
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder for pictures and grid.png.")] = Path(
        "pictures"
    ),
) -> None:
    """Make pictures with one or several artifacts: same prompts, same seeds, one grid.

    Example: finetune generate runs/dog --prompt "a photo of a {subject} on the beach"

    What other tools made needs its base: finetune generate dog.safetensors --base clay --prompt "..."
    """
    from data_prep.captions import fill_template
    from finetune.base import load_base
    from finetune.config import validate
    from finetune.export.imported import attached, bases_of, open_source, with_token
    from finetune.generate import SamplingConfig, check_sampling, labelled_grid
    from finetune.generate import generate as make
    from finetune.guards import remarks_on_pictures
    from finetune.train import training_device
    from methods import load_method

    templates = list(prompt or [])
    if prompts is not None:
        if not prompts.is_file():
            raise UserError(f"There is no prompts file {prompts}.")
        try:
            lines = prompts.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{prompts} is not UTF-8 text: {error.reason}.") from error
        templates += [line.strip() for line in lines if line.strip()]
    if not templates:
        raise UserError('Give --prompt "a photo of a {subject} ..." or --prompts FILE.')
    sampling = validate(
        SamplingConfig,
        {
            "scheduler": scheduler,
            "num_steps": steps,
            "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt,
            "batch_size": batch_size,
            "cpu_offload": cpu_offload,
        },
        "options",
    )
    check_sampling(sampling, training_device())
    sources = [open_source(path, allow_pickle=allow_pickle) for path in artifacts]
    for path, source in zip(artifacts, sources, strict=True):
        unknown = [] if source.note else ["{class}"]
        unknown += [] if source.subject else ["{subject}"]
        for word in unknown:
            if any(word in template for template in templates):
                raise UserError(
                    f"{path} does not say what {word} is. Write the words themselves in its place."
                )
    bases = bases_of(sources, base)
    rows = []
    loaded, loaded_from = None, None
    names = _distinct_names(artifacts)
    for name, source, wanted in zip(names, sources, bases, strict=True):
        if loaded is None or wanted != loaded_from:
            loaded, loaded_from = load_base(wanted), wanted
            resting = loaded.modules if cpu_offload else ()
            loaded.to(training_device(), resting=resting)
        with attached(source, loaded, load_method) as note:
            filled = [
                fill_template(t, subject=note.subject, class_noun=note.class_noun, field="--prompt")
                for t in templates
                for _ in range(num_images)
            ]
            filled = [with_token(text, note) for text in filled]
            seeds = [seed + index for _ in templates for index in range(num_images)]
            sized = sampling.model_copy(update={"size": note.size})
            images = make(loaded, filled, seeds, sized, show_progress=True)
        for remark in remarks_on_pictures(images):
            typer.secho(f"Warning: {name}: {remark}", err=True, fg=typer.colors.YELLOW)
        target = output / name if len(sources) > 1 else output
        target.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            place, index = divmod(number, num_images)
            image.save(target / f"{place:02d}-{seed + index:04d}.png")
        rows.append((name, images))
    columns = [t for t in templates for _ in range(num_images)]
    labelled_grid(rows, columns).save(output / "grid.png")
    typer.echo(
        f"{len(rows) * len(columns)} pictures in {output}, side by side in {output}/grid.png"
    )


@app.command()
@reports_errors
def export(
    artifact: Annotated[Path, typer.Argument(help="A finished run or its artifact.")],
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            help="kohya (LoRA), a1111 (Textual Inversion), single-file (DreamBooth) or diffusers (any).",
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="The .safetensors file to write; with diffusers a folder.")
    ],
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; default: as in the artifact."),
    ] = None,  # noqa: UP007, UP045
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")] = False,
) -> None:
    """Write an artifact as a file that ComfyUI, A1111 or another tool reads.

    A LoRA goes into a kohya file (put it into models/loras or models/Lora), a Textual Inversion into an A1111
    embedding (its file name becomes the trigger word), a DreamBooth model into one checkpoint of the original
    layout. The picture stays the same.

    Example: finetune export runs/dog --format kohya --output dog.safetensors --dtype float16
    """
    from finetune.export import export_artifact

    made = export_artifact(artifact, format_name, output, dtype=dtype, overwrite=overwrite)
    for remark in made.remarks:
        typer.secho(f"Note: {remark}", err=True, fg=typer.colors.YELLOW)
    typer.echo(f"Wrote {made.path}")


@app.command()
@reports_errors
def compare(
    config: Annotated[
        Path, typer.Argument(help="YAML of a comparison, e.g. configs/clay/compare.yaml.")
    ],
    overrides: Overrides = None,
    overwrite: Overwrite = False,
) -> None:
    """Train several methods on the same photos and show which kept the subject.

    Example: finetune compare configs/clay/compare.yaml data.photos=my_dog data.class_noun=dog
    """
    from finetune.base import load_base, recognise_base
    from finetune.compare import compare as run_comparison
    from finetune.compare import method_configs, save_comparison
    from finetune.config import CompareConfig, validate
    from finetune.errors import CheckpointError
    from finetune.report import write_page
    from finetune.run import check_family
    from methods import load_method

    settings = validate(CompareConfig, _config_values(config, overrides), str(config))
    family = recognise_base(settings.base)
    for run in method_configs(settings, load_method).values():
        _check_identifier(run)
        method = load_method(run.method.kind)(run.method)
        check_family(method, family, source=run.base.source, kind=run.method.kind)
        _warn_about_known_word(method, run)
    if (settings.output / "results.json").exists() and not overwrite:
        raise CheckpointError(
            f"{settings.output} holds a comparison. Replace it with --overwrite or choose another "
            "folder with output=..."
        )
    base = load_base(settings.base)
    result = run_comparison(settings, base, load_method, overwrite=overwrite, announce=typer.echo)
    paths = save_comparison(result, settings.output)
    write_page(result, settings.output / "report.html")
    typer.echo(f"Grid: {paths['grid']}\nPage: {settings.output / 'report.html'}")


@app.command()
@reports_errors
def inspect(
    photos: Annotated[str, typer.Argument(help="Folder of photos, dataset, or YAML of a run.")],
    overrides: Overrides = None,
    size: Annotated[
        int | None,
        typer.Option(min=8, help="Side in pixels they would be trained at; of a folder, 512."),
    ] = None,  # noqa: UP007, UP045
    background: Annotated[
        str, typer.Option(help="Colour that shows where photos of a folder are transparent.")
    ] = "white",
    output: Annotated[
        Path, typer.Option(help="The contact sheet, a PNG; findings go beside it as JSON.")
    ] = Path("inspection.png"),
) -> None:
    """Examine photos before training: what is fixed, refused or doubtful, and the crops.

    Of a run's configuration it shows, in a second sheet, exactly what the loader will yield: pictures after
    all that is done to them, captions, and how often each is seen.

    Example: finetune inspect my_dog --size 512

    Example: finetune inspect configs/clay/lora.yaml data.photos=my_dog data.crop=subject
    """
    from data_prep.config import DataConfig
    from data_prep.doctor import inspect_photos
    from finetune.config import validate

    if output.suffix.lower() != ".png":
        raise UserError(f"--output: the contact sheet is a PNG, so {output} should end in .png.")
    run = None
    if photos.endswith((".yaml", ".yml")):
        run = _run_config(Path(photos), overrides)
        data = run.data
        size = size or data.size or _default_size(run)
    elif overrides:
        raise UserError(f"{overrides[0]}: changes are for a configuration, and {photos} is none.")
    else:
        data = validate(DataConfig, {"photos": photos, "background": background}, "PHOTOS")
    inspection = inspect_photos(data, size=size or 512, show_progress=True)
    typer.echo(inspection.table())
    output.parent.mkdir(parents=True, exist_ok=True)
    inspection.contact_sheet().save(output)
    found, sheets = inspection.as_json(), str(output)
    if run is not None and not inspection.num_refused:
        shown = _preview(run, size or 512)
        sheet = output.with_name(f"{output.stem}-training.png")
        shown.contact_sheet().save(sheet)
        typer.echo(f"\n{shown.table()}")
        found, sheets = {**found, "training": shown.as_json()}, f"{output}, {sheet}"
    text = json.dumps(found, indent=2, ensure_ascii=False)
    findings = output.with_suffix(".json")
    findings.write_text(text + "\n", encoding="utf-8")
    typer.echo(f"Contact sheet: {sheets}\nFindings: {findings}")
    if inspection.num_refused:
        raise UserError(f"{inspection.num_refused} of the pictures cannot be used; see above.")


def _default_size(run: Any) -> int:
    """The side in pixels that a run's base was trained at; reads the base."""
    from finetune.base import load_base

    base = load_base(run.base)
    return base.family.default_size(base.components)


def _preview(run: Any, size: int) -> Any:
    from data_prep.preview import preview_of
    from finetune.examples import build_preview
    from methods import load_method

    method = load_method(run.method.kind)(run.method)
    data = build_preview(method, run, size=size)
    subject = method.subject_phrase(run.data.class_noun or "")
    return preview_of(data, num_steps=run.training.num_steps, subject=subject)


@app.command(name="show-config")
@reports_errors
def show_config(method: Annotated[str, typer.Argument(help="Name of a method.")]) -> None:
    """Print a commented YAML with every field and its default."""
    from data_prep.config import DataConfig
    from finetune.config import RunConfig, commented_yaml
    from methods import load_method

    config_class = load_method(method).config_class
    data = DataConfig(photos="photos", class_noun="dog")
    values = RunConfig(data=data, method=config_class(), output=Path("runs") / method)
    typer.echo(commented_yaml(RunConfig, values))


@list_app.command("methods")
@reports_errors
def list_methods() -> None:
    """The methods, those of other packages included."""
    import inspect as python_inspect

    from finetune.errors import ConfigError
    from methods import available_methods, load_method

    for name, place in sorted(available_methods().items()):
        try:
            module = sys.modules[load_method(name).__module__]
            summary = (python_inspect.getdoc(module) or "").splitlines()[0]
        except ConfigError as error:
            summary = f"broken: {error}"
        typer.echo(f"{name:20} {summary}  [{place}]")


@list_app.command("bases")
@reports_errors
def list_bases() -> None:
    """The embedded bases, and which method trains which family of bases."""
    from finetune.bases import embedded_bases
    from finetune.support import as_markdown, support_table
    from methods import METHODS, load_method

    for name, folder in embedded_bases().items():
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        typer.echo(f"{name:20} {size / 1e6:.0f} MB  {folder}")
    classes = {name: load_method(name) for name in METHODS}
    rows = support_table({name: kind(kind.config_class()) for name, kind in classes.items()})
    typer.echo(f"\n{as_markdown(rows)}\n")
    typer.echo("or: a Hub id (owner/name), a diffusers folder, a single .safetensors file")


def config_folder() -> Path:
    """Where the shipped configurations are, installed or in a checkout."""
    inside = Path(__file__).resolve().parent / "configs"
    return inside if inside.is_dir() else Path(__file__).resolve().parent.parent / "configs"


@list_app.command("configs")
@reports_errors
def list_configs() -> None:
    """The shipped configurations and what each is for."""
    for path in sorted(config_folder().rglob("*.yaml")):
        first = path.read_text("utf-8").splitlines()[0].lstrip("# ")
        typer.echo(f"{path}  {first}")


@app.command()
@reports_errors
def pretrain(
    config: Annotated[
        Path, typer.Argument(help="YAML of the recipe, e.g. configs/clay/pretrain.yaml.")
    ],
    overrides: Overrides = None,
    stage: Annotated[
        str, typer.Option(help="autoencoder, contrast, denoiser, assemble or all.")
    ] = "all",
    max_minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop a stage early, to be resumed.")
    ] = None,  # noqa: UP007, UP045
) -> None:
    """Make a base from nothing: autoencoder, text-image contrast, denoiser. Run again to resume."""
    from finetune.config import validate
    from finetune.pretrain.recipe import STAGES, PretrainConfig, run_stages

    if stage not in (*STAGES, "all"):
        raise UserError(f"--stage: '{stage}' is not one of {', '.join(STAGES)}, all.")
    recipe = validate(PretrainConfig, _config_values(config, overrides), str(config))
    stages = STAGES if stage == "all" else (stage,)
    run_stages(recipe, stages, max_minutes=max_minutes, announce=typer.echo)


@clay_app.command("render")
@reports_errors
def clay_render(
    folder: Annotated[Path, typer.Argument(help="Where pictures and metadata.jsonl go.")],
    num_pictures: Annotated[
        int, typer.Option(min=1, help="Rounded up to whole shards of 96.")
    ] = 8064,
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
            folder, num_pictures=num_pictures, seed=seed, num_workers=workers
        ):
            progress.update(min(count, num_pictures - progress.n))
    typer.echo(f"Pictures and metadata.jsonl in {folder}")


@clay_app.command("subjects")
@reports_errors
def clay_subjects(
    folder: Annotated[Path, typer.Argument(help="Where the subject folders go.")],
) -> None:
    """Render the example subjects: training photos and held-out views of each."""
    from data_prep.clay.subjects import render_subjects

    for name in render_subjects(folder):
        typer.echo(f"{folder / name}")


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
