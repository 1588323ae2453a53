"""`checkpoint-watcher resume`: go on after an early stop."""

from __future__ import annotations

from pathlib import Path

import click

from watcher.cli.options import run_folder
from watcher.cli.runs import only_place


@click.command()
@run_folder
def resume(model_dir: Path, state_dir: str | None) -> None:
    """Withdraw the early stop of MODEL_DIR: what is evaluated so far stops it no more.

    The sentinel goes, and patience counts from the last evaluation on. A rule whose limit is still
    exceeded at the next one, such as --max-steps, stops the run again unless it is set otherwise.
    Where no early stop stands nothing is changed, and that is said.
    """
    from watcher.cli.asking import carry_out
    from watcher.control.channel import Request

    carry_out(only_place(model_dir, state_dir).state_dir, Request(verb="resume"))
