"""Options that commands share, and those that the settings table writes by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from watcher.cli.completing import folders, folders_and_next, for_setting
from watcher.cli.meant import (
    is_run,
    names_checkpoint,
    reads_as_checkpoint,
    refuse_bucket,
    refuse_mistaken,
)
from watcher.cli.settings_help import SettingOption
from watcher.cli.sources import FILE_HERE, model_dir_here, state_dir_here
from watcher.config import (
    ENVIRONMENT_PREFIX,
    FILE_ONLY,
    Setting,
    Settings,
    describe,
    names,
    state_path,
)
from watcher.store.database_file import DATABASE_NAME

Command = Callable[..., Any]

_A_DAY = 86400


def settings_options(command: Command) -> Command:
    """Give a command one option for each setting but `model_dir` and tables, in their order."""
    return options_of(Settings, without=("model_dir",))(command)


def options_of(
    kind: type[Settings], *, without: Collection[str] = ()
) -> Callable[[Command], Command]:
    """Give a command one option for each setting of a kind, those that `run` has not first."""
    settings = sorted(describe(kind), key=lambda one: one.name in names(Settings))

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
        "settings_file",
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


class _Seconds(click.FloatRange):
    """A range that holds no `nan`, which no comparison refuses."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the seconds, or end with what is wrong with them."""
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value} is no number of seconds.", param, ctx)
        return seconds


def time_limit_option(whose: str) -> Callable[[Command], Command]:
    """Make the `--time-limit` of the commands that ask training environments."""
    return click.option(
        "--time-limit",
        type=_Seconds(min=0, max=_A_DAY, min_open=True),
        default=120.0,
        metavar="SECONDS",
        help=f"How long {whose} training environment may take to answer. [120]",
    )


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
    """Give a command its MODEL_DIR argument, which may be left out, and `--state-dir`.

    Then the settings file in the current folder names it, and arguments after it move up.
    """
    argument = click.argument(
        "model_dir",
        cls=_FolderFirst,
        required=False,
        callback=folder_or_here,
        type=click.Path(path_type=Path),
        shell_complete=folders_and_next,
    )
    return argument(state_dir_option(command))


class _FolderFirst(click.Argument):
    """MODEL_DIR, before arguments that name checkpoints."""

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        """Where the first word names a checkpoint, take the settings file's and move the words up.

        `opts` holds the words of the arguments that come after this one, too.
        """
        first = opts.get("model_dir")
        if isinstance(first, str):
            later = [one for one in ctx.command.params if isinstance(one, click.Argument)][1:]
            opts.update(_moved_up(ctx, opts, first, later))  # type: ignore[attr-defined]
        return super().handle_parse_result(ctx, opts, args)


def _moved_up(
    ctx: click.Context, opts: Mapping[str, Any], first: str, later: list[click.Argument]
) -> dict[str, Any]:
    names = [str(one.name) for one in later]
    given = [opts.get(name) for name in names]
    every = [word for one in given for word in (one if isinstance(one, tuple) else [one])]
    # What stands for an argument that is not given is no text.
    others = [word for word in every if isinstance(word, str)]
    several = any(one.nargs == -1 for one in later)
    if not several and len(others) >= len(later):
        return {}
    if not names_checkpoint(first, others, alone=not (several and others)):
        if is_run(Path(first)) and reads_as_checkpoint(first) and FILE_HERE.exists():
            click.echo(f"MODEL_DIR is the folder ./{first}: there is a run in it", err=True)
        return {}
    folder = model_dir_here()
    if folder is None:
        if not reads_as_checkpoint(first) or ctx.resilient_parsing:
            return {}
        exists = FILE_HERE.exists()
        lacks = f"./{FILE_HERE} names no MODEL_DIR" if exists else f"no {FILE_HERE} here"
        meant = " ".join([ctx.command_path, "MODEL_DIR", first, *others])
        raise click.UsageError(f"{lacks}: name MODEL_DIR first, `{meant}`", ctx)
    if Path(first).is_dir():
        click.echo(f"{first} is taken for a checkpoint, and not for the folder ./{first}", err=True)
    words = [first, *others]
    moved = {names[0]: tuple(words)} if several else dict(zip(names, words, strict=False))
    return {"model_dir": str(folder), **moved}


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
        refuse_bucket(model_dir)
        if (model_dir / DATABASE_NAME).is_file():
            return model_dir.absolute()  # the state folder itself
        refuse_mistaken(model_dir.absolute())
    return state_path(model_dir.absolute(), state_dir)
