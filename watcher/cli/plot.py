"""`checkpoint-watcher plot`: scores over steps, as a picture or in the terminal."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

from watcher.cli import completing
from watcher.cli.runs import RunPlace, each_reader, find_runs, run_folders
from watcher.cli.settings_help import examples
from watcher.errors import ConfigError, WatcherError

if TYPE_CHECKING:
    from watcher.plot.recorded import Run
    from watcher.plot.series import Picture

_STANDARD_OUTPUT = Path("-")


@click.command(
    epilog=examples(
        "checkpoint-watcher plot models/ssd",
        "checkpoint-watcher plot models/ssd --losses --categories -o scores.png",
        "checkpoint-watcher plot models/a models/b -o both.svg",
    )
)
@run_folders
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    shell_complete=completing.files,
    help="Write a picture: .png, .svg or .pdf, or - for an SVG on standard output. Without, it is"
    " drawn in the terminal.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    shell_complete=completing.metrics,
    help="Draw this metric and not the one that the run is ranked by; named as for `run --metric`."
    " Can be given several times.",
)
@click.option("--categories", is_flag=True, help="Draw a curve for each category, too.")
@click.option("--losses", is_flag=True, help="Draw the losses, too.")
def plot(
    folders: tuple[Path, ...],
    state_dir: str | None,
    output: Path | None,
    metrics: tuple[str, ...],
    categories: bool,
    losses: bool,
) -> None:
    """Draw the scores of MODEL_DIR over the global steps.

    The checkpoints in best/ are marked, also those that were there for a while, and the early stop.
    Several MODEL_DIRs, or a folder that holds some, are drawn over one another.

    Needs `pip install 'checkpoint-watcher[plot]'`.
    """
    from watcher.plot.close_up import with_close_ups
    from watcher.plot.series import make_picture

    _check_output(output)
    runs = _read(folders, state_dir, metrics, categories=categories, losses=losses)
    picture = make_picture(runs, metrics, categories=categories, losses=losses)
    picture = with_close_ups(picture)
    if output:
        _write(output, picture)
    else:
        from watcher.plot.terminal import Drawing
        from watcher.view import show

        show(Drawing(picture))


def _read(
    folders: Sequence[Path],
    state_dir: str | None,
    metrics: Sequence[str],
    *,
    categories: bool,
    losses: bool,
) -> list[Run]:
    """Read the runs that can be drawn; what cannot is told."""
    from watcher.plot.gather import lacks, read_run, require_points
    from watcher.plot.series import MOST_RUNS

    asked = find_runs(folders, state_dir)
    found: list[tuple[RunPlace, Run]] = []
    measured: tuple[set[str], set[str]] = (set(), set())
    for place, reader in each_reader(asked):
        run = read_run(reader, metrics, categories=categories, losses=losses)
        found.append((place, run))
        for known, new in zip(measured, reader.measured(), strict=True):
            known |= new
    every = list(dict.fromkeys(run.metric for _, run in found))
    if not metrics and len(every) > 1:  # each is drawn of all runs
        found = []
        for place, reader in each_reader(asked):
            run = read_run(reader, every, categories=categories, losses=losses)
            found.append((place, run))
    runs = _named(found)
    require_points(runs, metrics, measured)
    for run in runs:
        for lacking in lacks(run, metrics):
            click.echo(f"warning: {lacking}", err=True)
    runs = [run for run in runs if run.evaluations]
    if len(runs) > MOST_RUNS:
        raise WatcherError(
            f"{len(runs)} runs: no more than {MOST_RUNS} can be told apart",
            hint="give the MODEL_DIRs of those to be compared",
        )
    return runs


def _named(found: Sequence[tuple[RunPlace, Run]]) -> list[Run]:
    """Return the runs; those of one name are named by their folders."""
    names = [run.name for _, run in found]
    folders = [str(place.model_dir) for place, _ in found]
    common = os.path.commonpath(folders)
    return [
        run
        if names.count(run.name) == 1
        else replace(run, name=str(place.model_dir.relative_to(common)))
        for place, run in found
    ]


def _check_output(output: Path | None) -> None:
    from watcher.plot.figure import SUFFIXES

    if output is None or output == _STANDARD_OUTPUT:
        return
    hint = f"there are: {', '.join(SUFFIXES)}"
    if output.suffix.lower() not in SUFFIXES:
        kind = output.suffix or "no suffix"
        raise ConfigError(f"output ({output}): {kind} is not a kind of picture", hint=hint)
    if output.is_dir() or (output.exists() and not output.is_file()):
        raise ConfigError(f"output ({output}) is not a file", hint="name the file to be written")


def _write(output: Path, picture: Picture) -> None:
    from watcher.files.atomic_io import replace_file
    from watcher.plot.figure import boxes, size_of, to_bytes

    kind = ".svg" if output == _STANDARD_OUTPUT else output.suffix.lower()
    if kind != ".svg" and (lacking := boxes(picture)):
        click.echo(
            f"warning: no font here has {lacking}: boxes stand for it; an .svg keeps it", err=True
        )
    content = to_bytes(picture, kind)
    if output == _STANDARD_OUTPUT:
        sys.stdout.buffer.write(content)
        return
    try:
        replace_file(output, content, mode=_mode(output))
    except OSError as error:
        raise WatcherError(
            f"cannot write {output}: {error.strerror}",
            hint="give --output a file in a folder that is there and may be written",
        ) from error
    click.echo(f"wrote {output} ({size_of(content)})", err=True)


def _mode(output: Path) -> int:
    """Return the permissions of the file that is there, else those of any new one."""
    if output.exists():
        return stat.S_IMODE(output.stat().st_mode)
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask
