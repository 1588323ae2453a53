"""The command line. Each subcommand is a file of its own; only this one prints errors."""

from __future__ import annotations

import importlib
import sys

import click

from watcher import __version__
from watcher.errors import AlreadyRunning, WatcherError

EXIT_ERROR = 1
EXIT_ALREADY_RUNNING = 3


class _Commands(click.Group):
    """Imports a subcommand when it is asked for: reading needs none of the daemon's libraries."""

    names = (
        *("run", "train", "status", "best", "leaderboard", "history"),
        *("metrics", "compare", "explain", "web", "doctor"),
        *("keep", "requeue", "resume", "rebuild", "install-units"),
    )

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.names)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.names:
            return None
        module = name.replace("-", "_")
        command = getattr(importlib.import_module(f"watcher.cli.{module}"), module)
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="checkpoint-watcher")
def cli() -> None:
    """Keep the best checkpoints of a TensorFlow Object Detection API training run.

    Beside an unmodified model_main_tf2, `run` pins each checkpoint as it appears, evaluates it on
    another device, records its metrics in SQLite, keeps the best in best/ and says when to stop.
    The other commands read that database while it is being written.

    Exit codes: 0 done, 1 an error that the message explains, 2 wrong usage, 3 another watcher
    already runs on this model_dir.
    """


def main() -> None:
    """Run the command line; a WatcherError becomes an error line and a hint line."""
    try:
        cli(standalone_mode=False)
    except WatcherError as error:
        click.echo(f"error: {error.message}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        sys.exit(EXIT_ALREADY_RUNNING if isinstance(error, AlreadyRunning) else EXIT_ERROR)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(EXIT_ERROR)
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        sys.stderr.close()
        sys.exit(EXIT_ERROR)
