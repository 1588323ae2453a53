"""`checkpoint-watcher requeue`: evaluate checkpoints anew."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

import click

from watcher.cli import completing
from watcher.cli.options import run_folder
from watcher.cli.runs import only_place
from watcher.cli.settings_help import examples
from watcher.config.bucket import as_typed


@click.command(
    epilog=examples(
        "checkpoint-watcher requeue models/ssd --failed",
        "checkpoint-watcher requeue models/ssd ckpt-12",
    )
)
@run_folder
@click.argument(
    "checkpoints", nargs=-1, metavar="[CHECKPOINT...]", shell_complete=completing.checkpoints
)
@click.option("--all", "everything", is_flag=True, help="All whose files are kept.")
@click.option("--failed", is_flag=True, help="All that failed.")
def requeue(
    model_dir: Path,
    state_dir: str | None,
    checkpoints: tuple[str, ...],
    everything: bool,
    failed: bool,
) -> None:
    """Evaluate checkpoints of MODEL_DIR anew: those named, all that are kept, or all that failed.

    CHECKPOINT is a name such as ckpt-12, `best`, `last`, a global step, or the beginning of a
    sha256. best/ stays as it is until they are measured. What is neither kept nor in MODEL_DIR any
    more cannot be evaluated, and is named.
    """
    from watcher.cli.asking import carry_out
    from watcher.control.channel import Request

    chosen = [bool(checkpoints), everything, failed].count(True)
    if chosen > 1:
        raise click.UsageError("give only one of checkpoints, --all and --failed")
    if not chosen:
        raise click.UsageError("give checkpoints, or --all, or --failed")
    every: Literal["pinned", "failed"] | None = "failed" if failed else None
    every = "pinned" if everything else every
    request = Request(verb="requeue", checkpoints=checkpoints, every=every)
    place = only_place(model_dir, state_dir)
    words = ["checkpoint-watcher", "run", as_typed(place.model_dir)]
    words += ["--state-dir", state_dir] if state_dir else []
    after = f"no watcher runs now: evaluation begins with the next start of `{shlex.join(words)}`"
    carry_out(place.state_dir, request, after=after)
