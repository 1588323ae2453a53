"""`checkpoint-watcher run`: the daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from watcher.cli.completing import folders
from watcher.cli.meant import describe_absent, lookalike_told, refuse_run_folder
from watcher.cli.options import config_option, only_given_option, settings_options
from watcher.cli.settings_help import SettingsCommand, examples
from watcher.cli.sources import sources
from watcher.config import Settings


@click.command(
    cls=SettingsCommand,
    epilog=examples(
        "checkpoint-watcher run models/ssd --pipeline-config ssd.config --patience 10",
        "checkpoint-watcher run --config ssd.toml --top-k 5",
        "checkpoint-watcher run models/ssd --patience none",
        "checkpoint-watcher run --config ssd.toml --device gpu:1 --exit-when-idle 600",
    ),
)
@click.argument("model_dir", required=False, shell_complete=folders)
@config_option("Settings from a TOML file; its keys are these flags with underscores.")
@only_given_option
@settings_options
def run(model_dir: str | None, settings_file: Path | None, only_given: bool, **flags: Any) -> None:
    """Watch MODEL_DIR: evaluate each checkpoint, keep the best, and say when to stop.

    Runs until it is stopped by SIGTERM or SIGINT, or idle for --exit-when-idle; after SIGUSR1 it
    finishes what is left to do, and ends. Each flag can be given in the environment, as
    CHECKPOINT_WATCHER_TOP_K=5, or in a file, that of --config or ./checkpoint-watcher.toml. A flag
    overrides the environment, which overrides the file, which overrides the last start: what none
    of them says is as it was then. `none` takes back a setting that is not set by default.
    """
    given = sources({**flags, "model_dir": model_dir}, settings_file, only_given=only_given)
    refuse_run_folder(*given.folders())
    from watcher.runtime.app import run_daemon

    with lookalike_told(model_dir):
        run_daemon(lambda: given.load(Settings), describe_absent)
