"""`checkpoint-watcher average`: average the weights of checkpoints, and evaluate the average."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from watcher.cli import completing
from watcher.cli.options import as_json, print_json, run_folder
from watcher.cli.runs import only_place
from watcher.cli.settings_help import examples
from watcher.config.bucket import as_typed
from watcher.errors import ConfigError

_LUCK = (
    "The more averages are tried on one eval set, the more the best of them owes to luck: trust a"
    " gain whose interval lies above 0, or measure it on other images."
)


@click.command(
    epilog=examples(
        "checkpoint-watcher average models/ssd --last 5",
        "checkpoint-watcher average models/ssd --top 5 --greedy",
        "checkpoint-watcher average models/ssd ckpt-7 ckpt-9",
        "checkpoint-watcher average models/ssd --last 5 --recompute-batch-norm 512",
        "checkpoint-watcher average models/ssd",
    )
)
@run_folder
@click.argument(
    "checkpoints", nargs=-1, metavar="[CHECKPOINT...]", shell_complete=completing.checkpoints
)
@click.option("--top", metavar="K", type=click.IntRange(2, 999), help="The best K.")
@click.option("--last", metavar="K", type=click.IntRange(2, 999), help="The last K.")
@click.option(
    "--greedy",
    is_flag=True,
    help="Begin with the best two, and add what makes the score no worse; each is evaluated.",
)
@click.option(
    "--recompute-batch-norm",
    metavar="IMAGES",
    type=click.IntRange(1),
    help="Compute the statistics of batch normalisation anew, from so many training images.",
)
@as_json
def average(
    model_dir: Path,
    state_dir: str | None,
    checkpoints: tuple[str, ...],
    top: int | None,
    last: int | None,
    greedy: bool,
    recompute_batch_norm: int | None,
    json_output: bool,
) -> None:
    """Average the weights of checkpoints of MODEL_DIR, or show the averages there are.

    Of the checkpoints named, the best, or the last of the newest generation; all must have a score
    of the present evaluation, and their files. The worker writes the average and evaluates it as
    any other, once nothing else waits; best-averages/ keeps the best ones. It is in no curve and
    stops no run, and has a place in best/ as --average-promote of `run` says. Without checkpoints,
    --top or --last it shows what was averaged.
    """
    names = tuple(name for given in checkpoints for name in given.split(",") if name)
    chosen = [bool(names), top is not None, last is not None].count(True)
    if chosen > 1:
        raise click.UsageError("give only one of checkpoints, --top and --last")
    place = only_place(model_dir, state_dir)
    state = place.state_dir
    if not chosen:
        for flag, given in (("greedy", greedy), ("recompute-batch-norm", recompute_batch_norm)):
            if given:
                raise click.UsageError(f"--{flag} needs checkpoints, or --top, or --last")
        _show(state, json_output)
        return
    if json_output:
        raise click.UsageError("--json shows the averages there are: leave it out to ask for one")
    from watcher.cli.asking import carry_out
    from watcher.control.channel import Request

    if recompute_batch_norm:
        _refuse_kind(state)
    choice = f"top-{top}" if top else f"last-{last}" if last else None
    request = Request(
        verb="average",
        checkpoints=names,
        choice=choice,
        greedy=greedy,
        recompute_batch_norm=recompute_batch_norm,
    )
    words = ["checkpoint-watcher", "run", as_typed(place.model_dir), "--exit-when-idle", "0"]
    words += ["--state-dir", state_dir] if state_dir else []
    after = f"no watcher runs now: it is written and evaluated by `{shlex.join(words)}`"
    carry_out(state, request, after=after)


def _refuse_kind(state_dir: Path) -> None:
    from watcher.config.evaluator import MODEL_GARDEN
    from watcher.store.reading import open_reader

    with open_reader(state_dir) as reader:
        kind = (reader.run().get("settings") or {}).get("evaluator")
    if kind == MODEL_GARDEN:
        raise ConfigError(
            "batch normalisation of Model Garden's models cannot be computed anew",
            hint="leave --recompute-batch-norm out: an average has the mean of the checkpoints'"
            " statistics then",
        )


def _show(state_dir: Path, json_output: bool) -> None:
    """Show what was averaged, and how sure a gain over the best is."""
    from watcher.store.reading import open_reader
    from watcher.view import show
    from watcher.view.averages import averages_table, with_gains

    with open_reader(state_dir) as reader:
        rows = with_gains(reader)
    if json_output:
        print_json(rows)
    elif rows:
        show(averages_table(rows))
        if sum(row["score"] is not None for row in rows) > 1:
            click.echo(_LUCK)
    else:
        click.echo("nothing was averaged yet: see `checkpoint-watcher average --help`")
