"""`checkpoint-watcher metrics`: everything that was measured on one checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from watcher.cli.completing import evaluated
from watcher.cli.evaluations import find_evaluation
from watcher.cli.options import as_json, print_json, run_folder
from watcher.cli.runs import only_reader
from watcher.cli.settings_help import examples
from watcher.view import show


@click.command(
    epilog=examples(
        "checkpoint-watcher metrics models/ssd",
        "checkpoint-watcher metrics models/ssd ckpt-12 --categories",
    )
)
@run_folder
@click.argument("checkpoint", required=False, shell_complete=evaluated)
@as_json
@click.option("--categories", is_flag=True, help="Show the figures of each category, too.")
def metrics(
    model_dir: Path,
    checkpoint: str | None,
    state_dir: str | None,
    json_output: bool,
    categories: bool,
) -> None:
    """Show every metric of CHECKPOINT, by default the best one.

    CHECKPOINT is a name such as ckpt-12, `best`, `last`, a global step, or the beginning of a
    sha256. -1 is what COCO writes where the eval set has nothing of that kind. With --json the
    figures of the categories are always there.
    """
    with only_reader(model_dir, state_dir) as reader:
        found = find_evaluation(reader, checkpoint)
    if json_output:
        print_json(found.as_data())
    else:
        from watcher.view.tables import metrics_table

        show(metrics_table(found, categories=categories))
