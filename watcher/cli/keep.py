"""`checkpoint-watcher keep`: keep a checkpoint whatever its score."""

from __future__ import annotations

from pathlib import Path

import click

from watcher.cli import completing
from watcher.cli.options import run_folder
from watcher.cli.runs import only_place
from watcher.cli.settings_help import examples

_KEPT = (
    "MODEL_DIR/kept/kept.json lists what is kept, by --keep-last and --keep-every-steps too;"
    " `checkpoint-watcher history MODEL_DIR` lists all"
)


@click.command(
    epilog=examples(
        "checkpoint-watcher keep models/ssd ckpt-12 ckpt-31",
        "checkpoint-watcher keep models/ssd best",
        "checkpoint-watcher keep models/ssd ckpt-12 --undo",
    )
)
@run_folder
@click.argument(
    "checkpoints",
    nargs=-1,
    required=True,
    metavar="CHECKPOINT...",
    shell_complete=completing.checkpoints,
)
@click.option("--undo", is_flag=True, help="Keep them no longer.")
def keep(model_dir: Path, state_dir: str | None, checkpoints: tuple[str, ...], undo: bool) -> None:
    """Keep checkpoints of MODEL_DIR in kept/, whatever their score.

    CHECKPOINT is a name such as ckpt-12, `best`, `last`, a global step, or the beginning of a
    sha256. Works while the watcher runs and after. One whose files were released is taken again if
    the trainer still has it.
    """
    from watcher.cli.asking import carry_out
    from watcher.control.channel import Request

    verb = "let_go" if undo else "keep"
    request = Request(verb=verb, checkpoints=checkpoints)  # type: ignore[arg-type]
    state = only_place(model_dir, state_dir).state_dir
    if undo:
        carry_out(state, request, hint=_KEPT)
    else:
        carry_out(state, request)
