"""`finetune compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.common import (
    Overrides,
    Overwrite,
    check_identifier,
    config_values,
    reports_errors,
    warn_about_known_word,
)


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

    settings = validate(CompareConfig, config_values(config, overrides), str(config))
    family = recognise_base(settings.base)
    for run in method_configs(settings, load_method).values():
        check_identifier(run)
        method = load_method(run.method.kind)(run.method)
        check_family(method, family, source=run.base.source, kind=run.method.kind)
        warn_about_known_word(method, run)
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
