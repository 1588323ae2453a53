"""`checkpoint-watcher rebuild`: the database again, after it was lost."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import click

from watcher.cli.options import run_folder, state_folder
from watcher.config.bucket import as_typed, is_url
from watcher.errors import StoreError
from watcher.store.database_file import DATABASE_NAME


@click.command()
@run_folder
@click.option(
    "--best-dir",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    envvar="CHECKPOINT_WATCHER_BEST_DIR",
    help="The best checkpoints, if not in MODEL_DIR/best.",
)
@click.option(
    "--kept-dir",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    envvar="CHECKPOINT_WATCHER_KEPT_DIR",
    help="The checkpoints that are kept for another reason, if not in MODEL_DIR/kept.",
)
def rebuild(
    model_dir: Path, state_dir: str | None, best_dir: Path | None, kept_dir: Path | None
) -> None:
    """Make the database of MODEL_DIR anew from best.json and the pins, after it was lost.

    Brings back the run's identity, the promoted checkpoints with their scores, those that are kept
    by hand, and the pins that wait to be evaluated. Refuses while a watcher runs and when the
    database is whole or is another program's. A damaged one is kept beside the new one. Then start
    `checkpoint-watcher run` again.
    """
    from watcher.config.source import SourceSettings
    from watcher.control import rebuild as rebuilding
    from watcher.control.restore import whole_board
    from watcher.sources.choice import open_source
    from watcher.store.lock import hold_lock

    state = state_folder(model_dir, state_dir)
    folders = {"--state-dir": state_dir, "--best-dir": best_dir, "--kept-dir": kept_dir}
    flags = [word for flag, at in folders.items() if at for word in (flag, str(at))]
    again = shlex.join(["checkpoint-watcher", "run", as_typed(model_dir), *flags])
    # That of a bucket is the local folder that stands for it.
    model_dir = state if is_url(str(model_dir)) else model_dir.absolute()
    source = open_source(SourceSettings(), model_dir)
    best = (best_dir or model_dir / "best").absolute()
    kept = (kept_dir or model_dir / "kept").absolute()
    if not state.is_dir() and not whole_board(best, source.format):
        raise StoreError(
            f"neither {state} nor {best} is there: nothing to rebuild from",
            hint="give the model_dir that `checkpoint-watcher run` was started on",
        )
    try:
        state.mkdir(mode=0o700, exist_ok=True)
        with hold_lock(state / "lock"):
            rebuilding.require_damage(state / DATABASE_NAME)
            done = rebuilding.rebuild(state, best, kept, model_dir, source, time.time())
    except OSError as error:
        raise StoreError(
            f"cannot rebuild {state / DATABASE_NAME}: {error}",
            hint=f"check free space and permissions of {state}",
        ) from error
    click.echo(f"scored, from {best}: {', '.join(done.scored) or 'none'}")
    if done.kept:
        click.echo(f"kept, from {kept}: {', '.join(done.kept)}")
    click.echo(f"pending, from the pins: {', '.join(done.pending) or 'none'}")
    if done.lost:
        click.echo(f"damaged or gone: {', '.join(done.lost)}")
    if done.unnamed:
        names = ", ".join(done.unnamed)
        click.echo(f"in {best} but not in best.json, left alone from now on: {names}")
    if done.old:
        click.echo(f"the old database is {done.old}")
    click.echo(
        f"next: start `{again}` again with the settings of the run, which the new"
        " database does not hold"
    )
