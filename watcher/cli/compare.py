"""`checkpoint-watcher compare`: what got better and worse between two checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import asdict

from watcher.cli.completing import evaluated
from watcher.cli.evaluations import find_evaluation
from watcher.cli.options import as_json, print_json, run_folder
from watcher.cli.runs import only_reader
from watcher.cli.settings_help import examples
from watcher.store.reading import Reader
from watcher.store.replicates import draws_of
from watcher.view import show
from watcher.view.changes import Measured, changes
from watcher.view.machines import remarks, standing_of

if TYPE_CHECKING:
    from watcher.view.images import ImageChange


@click.command(
    epilog=examples(
        "checkpoint-watcher compare models/ssd ckpt-12 best",
        "checkpoint-watcher compare models/ssd 12000 31000 --json",
    )
)
@run_folder
@click.argument("old", metavar="FROM", shell_complete=evaluated)
@click.argument("new", metavar="TO", shell_complete=evaluated)
@click.option("--images", is_flag=True, help="Also which images gained and lost the most.")
@as_json
def compare(
    model_dir: Path, old: str, new: str, state_dir: str | None, images: bool, json_output: bool
) -> None:
    """Compare two checkpoints of MODEL_DIR, metric by metric and category by category.

    The largest changes come first; those of losses, times and memory, which have other units, come
    after the others. A change has its 95 % interval, on eval sets drawn from this one, where both
    have replicates; it "cannot be told" where that holds 0. Those of categories are kept for what
    has a place, and for the last 20.

    FROM and TO are names such as ckpt-12, `best`, `last`, global steps, or the beginnings of
    sha256s. Only evaluations of the present evaluation are compared.
    """
    with only_reader(model_dir, state_dir) as reader:
        before, after = find_evaluation(reader, old), find_evaluation(reader, new)
        ids = [one.row["evaluation_id"] for one in (before, after)]
        drawn = draws_of(reader, ids)
        changed = _changed(reader, before, after) if images else []
        named = {id_: one.title for id_, one in zip(ids, (before, after), strict=True)}
        machines = remarks(reader, named)
        standings = [standing_of(reader, id_) for id_ in ids]
    both = (drawn[ids[0]], drawn[ids[1]]) if len(drawn.keys() & set(ids)) == 2 else None
    overall, categories = changes(before, after, both)
    if json_output:
        print_json(
            {
                "from": {**_identity(before.as_data()), **standings[0]},
                "to": {**_identity(after.as_data()), **standings[1]},
                "metrics": [change.as_data() for change in overall],
                "categories": [change.as_data() for change in categories],
                **({"images": [asdict(one) for one in changed]} if images else {}),
            }
        )
    else:
        from watcher.view.tables import changes_table

        show(changes_table(overall, categories, before, after))
        for one in machines:
            click.echo(one.sentence)
        if images:
            from watcher.view.images import images_table, main_metric

            click.echo()
            show(images_table(changed, main_metric(before)))


def _identity(data: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in data.items() if name not in ("metrics", "categories")}


def _changed(reader: Reader, before: Measured, after: Measured) -> list[ImageChange]:
    from watcher.view.images import changes_between

    return changes_between(reader, before, after)
