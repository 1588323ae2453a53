"""Options that commands share, and those that the settings table writes by itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click
import msgspec

from watcher.cli.completing import folders, for_setting
from watcher.cli.meant import refuse_mistaken
from watcher.cli.settings_help import SettingOption
from watcher.cli.sources import FILE_HERE, model_dir_here, state_dir_here
from watcher.config import (
    ENVIRONMENT_PREFIX,
    FILE_ONLY,
    Setting,
    Settings,
    describe,
    state_path,
)

Command = Callable[..., Any]


def settings_options(command: Command) -> Command:
    """Give a command one option for each setting but `model_dir` and tables, in their order."""
    return options_of(Settings, without=("model_dir",))(command)


def options_of(
    kind: type[Settings], *, without: Collection[str] = ()
) -> Callable[[Command], Command]:
    """Give a command one option for each setting of a kind, those that `run` has not first."""
    settings = sorted(describe(kind), key=lambda one: one.name in Settings.__struct_fields__)

    def decorate(command: Command) -> Command:
        for setting in reversed(settings):
            if setting.name not in without and setting.name not in FILE_ONLY:
                command = _option(setting)(command)
        return command

    return decorate


def _option(setting: Setting) -> Callable[[Command], Command]:
    flag = f"--{setting.name.replace('_', '-')}"
    default = "" if setting.default in (None, False, (), "") else f" [{setting.default}]"
    # Values are validated with those of the file and the environment, so all are text here and
    # an absent one is None.
    arguments: dict[str, Any] = {
        "default": None,
        "help": f"{setting.about}{default}",
        "metavar": setting.metavar,
        "cls": SettingOption,
        "group": setting.group,
        "shell_complete": for_setting(setting.name, setting.metavar),
    }
    if setting.kind == "switch":
        return click.option(f"{flag}/--no-{flag[2:]}", **{**arguments, "metavar": None})
    if setting.kind == "list":
        arguments["help"] += " Can be given several times."
        return click.option(flag, multiple=True, callback=_none_if_empty, **arguments)
    return click.option(flag, **arguments)


def _none_if_empty(_context: object, _parameter: object, given: tuple[str, ...]) -> Any:
    return given or None


def config_option(about: str) -> Callable[[Command], Command]:
    """Make the `--config` of the commands that take settings; `about` is its help."""
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        metavar="FILE.toml",
        help=about,
    )


def only_given_option(command: Command) -> Command:
    """Give a command that takes settings `--only-given`."""
    return click.option(
        "--only-given",
        is_flag=True,
        envvar=f"{ENVIRONMENT_PREFIX}ONLY_GIVEN",
        help="Take nothing from the last start: what is not given now has its default.",
    )(command)


def state_dir_option(command: Command) -> Command:
    """Give a reading command `--state-dir`."""
    return click.option(
        "--state-dir",
        metavar="FOLDER",
        shell_complete=folders,
        envvar=f"{ENVIRONMENT_PREFIX}STATE_DIR",
        help="Where the database is, if not in MODEL_DIR/watcher.",
    )(command)


def run_folder(command: Command) -> Command:
    """Give a reading command its MODEL_DIR argument and `--state-dir`."""
    argument = click.argument("model_dir", type=click.Path(path_type=Path), shell_complete=folders)
    return argument(state_dir_option(command))


def run_folder_or_here(command: Command) -> Command:
    """Give a command them, and let the settings file in the current folder name the MODEL_DIR."""
    argument = click.argument(
        "model_dir",
        required=False,
        callback=folder_or_here,
        type=click.Path(path_type=Path),
        shell_complete=folders,
    )
    return argument(state_dir_option(command))


def folder_or_here(context: click.Context, _parameter: object, given: Path | None) -> Path | None:
    """Return the MODEL_DIR that is given, else the one of `./checkpoint-watcher.toml`.

    None only while the shell completes a line.
    """
    if given is None and not context.resilient_parsing:
        given = model_dir_here()
        if given is None:
            raise click.UsageError(
                f"Missing argument 'MODEL_DIR', and no ./{FILE_HERE} that names one.", context
            )
    return given


def as_json(command: Command) -> Command:
    """Give a command `--json`."""
    return click.option("--json", "json_output", is_flag=True, help="Print JSON.")(command)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    click.echo(msgspec.json.format(json_line(value), indent=2))


def json_line(value: Any) -> str:
    """Return a value as JSON on one line; what is not UTF-8 in a file's name becomes `?`."""
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        text = json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
        return text.encode(errors="replace").decode()


def state_folder(model_dir: Path, state_dir: str | None) -> Path:
    """Return the state folder that the reading commands open.

    Raises:
        StoreError: there is no run, and it can be told what was meant.
    """
    state_dir = state_dir or state_dir_here(model_dir)
    if not state_dir:
        refuse_mistaken(model_dir.absolute())
    return state_path(model_dir.absolute(), state_dir)
