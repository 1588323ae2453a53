"""The command line. Each subcommand is a file of its own; only this one prints errors."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import sys
from pathlib import Path
from typing import ClassVar

import click

from watcher import __version__
from watcher.cli.completion import COMPLETE_VARIABLE, PROGRAM
from watcher.cli.failures import (
    close_output,
    debug_option,
    did_you_mean,
    end,
    prepare_streams,
    reader_left,
)
from watcher.cli.meant import refuse_empty
from watcher.cli.variables import warn_of_unknown

# What others call them.
_MEANT = {
    "run": ("watch", "start", "evaluate", "eval", "daemon"),
    "status": ("show", "ps", "state"),
    "history": ("list", "ls", "checkpoints"),
    "doctor": ("check", "validate", "diagnose"),
    "web": ("serve", "dashboard", "report"),
    "resume": ("continue", "unstop"),
    "explain": ("why",),
    "install-units": ("systemd", "install", "service"),
}


class _Commands(click.Group):
    """Imports a subcommand when it is asked for: reading needs none of the daemon's libraries."""

    groups: ClassVar = {
        "Set up and run": ("init", "doctor", "run", "train", "install-units", "agent"),
        "See how it goes": (
            *("status", "best", "leaderboard", "history", "metrics", "compare"),
            *("plot", "web", "explain"),
        ),
        "Change what is kept, and go on": ("keep", "average", "requeue", "resume", "rebuild"),
        "The shell": ("completion",),
    }
    names = tuple(name for group in groups.values() for name in group)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.names)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.names:
            return None
        module = name.replace("-", "_")
        command = getattr(importlib.import_module(f"watcher.cli.{module}"), module)
        assert isinstance(command, click.Command)
        if not any(parameter.name == "debug" for parameter in command.params):
            command.params.append(debug_option())
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in self.names or name.startswith("-") or ctx.resilient_parsing:
            found = super().resolve_command(ctx, args)
            if found[1] and not ctx.resilient_parsing:
                refuse_empty(found[1], found[2], ctx)
            return found
        if name == "help":
            about = [word for word in args[1:] if word in self.names]
            asked = " ".join([PROGRAM, *about[:1], "--help"])
            raise click.UsageError(f"No such command 'help'. `{asked}` tells.", ctx)
        meant = [command for command, words in _MEANT.items() if name in words]
        close = meant or difflib.get_close_matches(name, self.names, cutoff=0.5)
        raise click.UsageError(f"No such command {name!r}.{did_you_mean(close)}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands in their groups, each with all of its first sentence."""
        width = max(map(len, self.names))
        for title, names in self.groups.items():
            commands = {name: self.get_command(ctx, name) for name in names}
            rows = [
                (name.ljust(width), (command.help or "").partition("\n\n")[0].replace("\n", " "))
                for name, command in commands.items()
                if command
            ]
            with formatter.section(title):
                formatter.write_dl(rows)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="checkpoint-watcher")
@click.pass_context
def cli(context: click.Context) -> None:
    """Keep the best checkpoints of a TensorFlow Object Detection API training run.

    Beside an unmodified model_main_tf2, or Model Garden's official.vision.train, `run` pins each
    checkpoint as it appears, evaluates it on another device, records its metrics in SQLite, keeps
    the best in best/ and says when to stop.
    The other commands read that database while it is being written. MODEL_DIR may be left out
    beside the checkpoint-watcher.toml that `init` writes. `COMMAND --help` has examples.

    Exit codes: 0 done, 1 an error that the message explains, 2 wrong usage, 3 another watcher
    already runs on this model_dir, 4 a run that ended with work left that it could not do, 70 a
    fault of checkpoint-watcher itself, 130 Ctrl-C.
    """
    # These read no settings, and others read what they say.
    if context.invoked_subcommand not in ("agent", "completion"):
        warn_of_unknown()


cli.params.append(debug_option())


def _complete() -> None:
    """Answer the shell's TAB, or say nothing: whatever is said lands in the line being typed."""
    with contextlib.suppress(Exception), Path(os.devnull).open("w") as nowhere:
        sys.stderr = nowhere
        cli(standalone_mode=False, prog_name=PROGRAM)
    sys.exit(0)


def main() -> None:
    """Run the command line; whatever ends it becomes an error line, a hint line and a code."""
    prepare_streams()
    if os.environ.get(COMPLETE_VARIABLE, "").endswith("_complete"):
        _complete()
    code, output = 0, sys.stdout
    try:
        # Also when it is started as `python -m watcher`.
        returned = cli(standalone_mode=False, prog_name=PROGRAM)
        code = returned if isinstance(returned, int) else 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        # click ends with 1 at any broken pipe, and puts another stream in the place of this one.
        if sys.stdout is not output and reader_left():
            code = 0
    except BaseException as error:
        code = end(error)
    if (unwritten := close_output()) and code == 0:
        code = end(unwritten)
    sys.exit(code)
