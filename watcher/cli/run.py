"""`checkpoint-watcher run`: the daemon."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from watcher.cli.completing import folders
from watcher.cli.options import config_option, settings_options
from watcher.cli.settings_help import SettingsCommand, examples
from watcher.config import load_settings


@click.command(
    cls=SettingsCommand,
    epilog=examples(
        "checkpoint-watcher run models/ssd --pipeline-config ssd.config --patience 10",
        "checkpoint-watcher run --config ssd.toml --top-k 5",
        "checkpoint-watcher run --config ssd.toml --device gpu:1 --exit-when-idle 600",
    ),
)
@click.argument("model_dir", required=False, shell_complete=folders)
@config_option("Settings from a TOML file; its keys are these flags with underscores.")
@settings_options
def run(model_dir: str | None, config_file: Path | None, **flags: Any) -> None:
    """Watch MODEL_DIR: evaluate each checkpoint, keep the best, and say when to stop.

    Runs until it is stopped by SIGTERM or SIGINT, or idle for --exit-when-idle; after SIGUSR1 it
    finishes what is left to do, and ends. Each flag can be given in the environment, as
    CHECKPOINT_WATCHER_TOP_K=5, or in the file of --config; a flag overrides the environment, which
    overrides the file.
    """
    settings = load_settings({**flags, "model_dir": model_dir}, os.environ, config_file)
    from watcher.running import run_daemon

    run_daemon(settings)
