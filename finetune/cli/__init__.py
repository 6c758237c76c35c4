"""The command line: the composition root, the only package that knows methods and everything else.

One file for each group of commands. Heavy imports stand inside the commands, so that `finetune --help`
answers at once.
"""

from __future__ import annotations

import typer

from finetune.cli.artifacts import export, generate
from finetune.cli.common import reports_errors
from finetune.cli.comparing import compare, evaluate
from finetune.cli.make_base import clay_app, pretrain
from finetune.cli.show import inspect, list_app, show_config
from finetune.cli.training import train

__all__ = ["app", "main", "reports_errors"]

app = typer.Typer(
    name="finetune",
    help="Teach a text-to-image model your subject from a few photos, and compare the ways to do it.",
    epilog="Start with: finetune compare configs/clay/compare.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (train, generate, export, compare, evaluate, inspect):
    app.command()(command)
app.command(name="show-config")(show_config)
app.command()(pretrain)
app.add_typer(clay_app, name="clay")
app.add_typer(list_app, name="list")


def main() -> None:
    """Entry point of the console script."""
    app()
