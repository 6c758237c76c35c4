"""What every command stands on: errors in one sentence, configurations, shared options and checks."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from data_prep.errors import UserError
from finetune.interrupt import SIGNALS, exit_code, orderly_exit

_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR}

Overrides = Annotated[
    Optional[list[str]],  # noqa: UP007, UP045 - typer reads this form
    typer.Argument(metavar="[section.key=value]...", help="Changes to the configuration."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a run folder that exists.")]


def fail(message: str) -> None:
    """Say what is wrong and exit with code 2."""
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
            fail(str(error))
        except OSError as error:
            from finetune.files import lacks_room

            name = error.filename or "A file"
            if lacks_room(error):
                fail(
                    f"{name} could not be written: {error.strerror}. Free some space or choose another "
                    "folder."
                )
            if error.errno in _NO_ACCESS:
                fail(
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


def config_path(path: Path) -> Path:
    """`path`, or the shipped configuration of that name where there is no such file."""
    if not path.exists() and path.parts[:1] == ("configs",):
        return config_folder().joinpath(*path.parts[1:])
    return path


def config_values(path: Path, overrides: list[str] | None) -> dict[str, Any]:
    """The values of a configuration file with changes laid over."""
    from finetune.config import apply_overrides, read_yaml

    return apply_overrides(read_yaml(config_path(path)), overrides or [])


def run_config(path: Path, overrides: list[str] | None) -> Any:
    """The checked configuration of a run."""
    from finetune.config import build_run_config
    from methods import load_method

    return build_run_config(config_values(path, overrides), load_method, str(path))


def config_folder() -> Path:
    """Where the shipped configurations are, installed or in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def check_kind(kind: str) -> None:
    """Raise `UserError` for a kind of subject that no prompts are for."""
    from finetune.prompts import KINDS

    if kind not in KINDS:
        raise UserError(f"--kind: '{kind}' is not one of {', '.join(KINDS)}.")


def warn_about_known_word(method: Any, run: Any) -> None:
    """Say so where a token that stands for the subject is a common word."""
    from finetune.words import is_common_word

    identifier = run.method.model_dump().get("identifier")
    tokens = [*method.requirements().placeholder_tokens[:1], *filter(None, [identifier])]
    for token in filter(is_common_word, tokens):
        typer.secho(
            f"Warning: '{token}' is a common word; the base already means something by it, which the "
            "subject has to fight. A rare token such as sks learns better.",
            err=True,
            fg=typer.colors.YELLOW,
        )
