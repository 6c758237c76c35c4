"""What there is and what would be done: `finetune inspect`, `show-config` and `list`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from data_prep.errors import UserError
from finetune.cli.common import Overrides, config_folder, reports_errors, run_config

list_app = typer.Typer(help="Show what there is.", no_args_is_help=True)


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
        run = run_config(Path(photos), overrides)
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


@reports_errors
def show_config(
    of: Annotated[
        str,
        typer.Argument(
            metavar="METHOD|compare|pretrain",
            help="A method of `finetune list methods`, or a command.",
        ),
    ],
) -> None:
    """Print a commented YAML with every field of a run, a comparison or a recipe, and its default.

    Example: finetune show-config lora
    """
    from finetune.config import commented_yaml

    if of == "compare":
        values = _comparison()
    elif of == "pretrain":
        values = _recipe()
    else:
        values = _run(of)
    typer.echo(commented_yaml(values))


def _run(method: str) -> Any:
    from data_prep.config import DataConfig
    from finetune.config import RunConfig
    from methods import load_method

    config_class = load_method(method).config_class
    data = DataConfig(photos="photos", class_noun="dog")
    return RunConfig(data=data, method=config_class(), output=Path("runs") / method)


def _comparison() -> Any:
    from data_prep.config import DataConfig
    from finetune.compare.config import CompareConfig
    from methods import METHODS

    return CompareConfig(
        data=DataConfig(photos="photos", class_noun="dog"),
        methods={name: {"method": {"kind": name}} for name in METHODS},
        prompts=("a photo of a {subject} on the beach", "a photo of a {subject} in the snow"),
    )


def _recipe() -> Any:
    from finetune.config import read_yaml, validate
    from finetune.pretrain.recipe import PretrainConfig

    path = config_folder() / "clay" / "pretrain.yaml"
    return validate(PretrainConfig, read_yaml(path), str(path))


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


@list_app.command("configs")
@reports_errors
def list_configs() -> None:
    """The shipped configurations and what each is for."""
    for path in sorted(config_folder().rglob("*.yaml")):
        first = path.read_text("utf-8").splitlines()[0].lstrip("# ")
        typer.echo(f"{path}  {first}")
