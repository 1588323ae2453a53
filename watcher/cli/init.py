"""`checkpoint-watcher init`: a settings file with what was found."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from watcher.cli import completing
from watcher.cli.meant import lookalike
from watcher.cli.options import time_limit_option
from watcher.cli.settings_help import examples
from watcher.cli.sources import FILE_HERE
from watcher.config.bucket import is_url, parse_place
from watcher.errors import ConfigError, ModelDirError
from watcher.files.atomic_io import write_new_file

if TYPE_CHECKING:
    from watcher.setup.settings_file import Outlook

_FLAGS = frozenset({"pipeline_config", "experiment", "python"})


@click.command(
    epilog=examples(
        "checkpoint-watcher init models/ssd",
        "checkpoint-watcher init models/ssd --pipeline-config ssd.config -o ssd.toml",
    )
)
@click.argument("model_dir", shell_complete=completing.folders)
@click.option(
    "--pipeline-config",
    metavar="FILE",
    shell_complete=completing.files,
    help="The pipeline.config of the run. Default: the trainer's, or one in or beside MODEL_DIR.",
)
@click.option(
    "--experiment",
    metavar="NAME",
    help="Of a Model Garden job, what its trainer got as --experiment. Default: as it runs now.",
)
@click.option(
    "--python",
    metavar="INTERPRETER",
    shell_complete=completing.files,
    help="Interpreter of the training environment. Default: one that imports TensorFlow and the"
    " OD API, or Model Garden, if there is one.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=FILE_HERE,
    metavar="FILE",
    help=f"The file to write, - for standard output. [./{FILE_HERE}]",
)
@click.option("--force", is_flag=True, help="Overwrite a file that is there already.")
@time_limit_option("a")
def init(
    model_dir: str,
    pipeline_config: str | None,
    experiment: str | None,
    python: str | None,
    output: Path,
    force: bool,
    time_limit: float,
) -> None:
    """Write a settings file for MODEL_DIR: what was found, and every other setting as a comment.

    Looks for pipeline.config, or params.yaml and the experiment of a Model Garden job, the training
    environment's interpreter (one that really imports TensorFlow and the OD API, or Model Garden),
    a free device, the eval input and its metric, and how often the
    trainer saves, for the patience. What is not found is a comment that says what to fill in.
    Nothing else is written, and nothing in MODEL_DIR.
    """
    from watcher.setup.look import look
    from watcher.setup.settings_file import render

    asked = {
        "model_dir": model_dir,
        "pipeline_config": pipeline_config,
        "experiment": experiment,
        "python": python,
    }
    to_screen = str(output) == "-"
    _refuse_output(output, is_there=not to_screen and output.exists() and not force)
    _check(model_dir, pipeline_config, experiment)
    given = {name: value for name, value in asked.items() if value is not None}
    outlook = look(given, os.environ, time_limit, lambda text: click.echo(text, err=True))
    text = render(outlook, outlook.found["model_dir"].value)
    if to_screen:
        click.echo(text, nl=False)
    else:
        _write(output, text, force=force)
    _tell_found(outlook)
    if near := lookalike(Path(model_dir)):
        click.echo(f"warning: {model_dir} does not exist yet: did you mean {near}?", err=True)
    if not to_screen:
        _tell_next(output, list(outlook.gaps))


def _refuse_output(output: Path, *, is_there: bool) -> None:
    if output.is_dir():
        raise ConfigError(
            f"{output} is a folder", hint=f"name the file to write, -o {output / FILE_HERE} say"
        )
    if is_there:
        raise ConfigError(
            f"{output} is there already", hint="name another one with -o, or overwrite with --force"
        )


def _tell_found(outlook: Outlook) -> None:
    for name, found in outlook.found.items():
        why = f"  ({found.why})" if found.why else ""
        click.echo(f"{name + ' ':.<24} {found.value}{why}", err=True)
    for name, gap in outlook.gaps.items():
        click.echo(f"{name + ' ':.<24} TO FILL IN: {gap}", err=True)


def _tell_next(output: Path, gaps: Sequence[str]) -> None:
    file = shlex.quote(str(output))
    click.echo(f"\nwrote {output}. Next:", err=True)
    if gaps:
        click.echo(f"  {_to_fill_in(gaps, file)}", err=True)
    config = "" if output == FILE_HERE else f" --config {file}"
    click.echo(f"  checkpoint-watcher doctor{config}", err=True)
    click.echo(f"  checkpoint-watcher run{config}", err=True)


def _to_fill_in(names: Sequence[str], file: str) -> str:
    """Say how what was not found gets its value: in the file, or by a flag of `init`."""
    named = " and ".join(names)
    flags = [f"--{name.replace('_', '-')}" for name in names if name in _FLAGS]
    again = f" (or run init again with {' and '.join(flags)}, and --force)" if flags else ""
    return f"fill in {named} in {file}{again}"


def _check(model_dir: str, pipeline_config: str | None, experiment: str | None) -> None:
    folder = Path(model_dir).absolute()
    if is_url(model_dir):
        try:
            parse_place(model_dir)
        except ValueError as error:
            raise ConfigError(f"model_dir ({model_dir}) is invalid: {error}") from error
        folder = Path.cwd()
    if not model_dir or (folder.exists() and not folder.is_dir()):
        raise ModelDirError(
            f"model_dir ({model_dir}) is not a folder",
            hint="give the folder that the trainer gets as --model_dir",
        )
    if not folder.parent.is_dir():
        raise ModelDirError(
            f"model_dir {folder} does not exist, and {folder.parent} does not either",
            hint="is the path right? MODEL_DIR itself may be missing until the trainer makes it",
        )
    if pipeline_config is not None and not Path(pipeline_config).is_file():
        raise ConfigError(
            f"pipeline_config ({pipeline_config}) does not exist or is not a file",
            hint="give the file that model_main_tf2 gets as --pipeline_config_path",
        )
    if pipeline_config and experiment:
        raise ConfigError(
            f"pipeline_config ({pipeline_config}) and experiment ({experiment}) are of different"
            " trainers",
            hint="give the one that this run is trained with",
        )


def _write(output: Path, text: str, *, force: bool) -> None:
    try:
        if force and output.exists():
            output.write_text(text, encoding="utf-8")
        else:
            write_new_file(output, text.encode())  # its owner's alone: passwords may come into it
    except OSError as error:
        raise ConfigError(
            f"cannot write {output}: {error.strerror}",
            hint="name another file with -o, or - to see it here",
        ) from error
