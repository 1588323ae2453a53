"""Which databases a reading command is about: one run's, several, or all below a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from watcher.cli import completing
from watcher.cli.meant import refuse_mistaken
from watcher.cli.options import folder_or_here, print_json, state_dir_option, state_folder
from watcher.config.bucket import as_typed, is_url
from watcher.errors import StoreError
from watcher.store.database_file import DATABASE_NAME
from watcher.store.reading import Reader, open_reader

_BELOW = (f"*/watcher/{DATABASE_NAME}", f"*/*/watcher/{DATABASE_NAME}")


class RunPlace(msgspec.Struct, frozen=True):
    """Where a run's files are."""

    model_dir: Path
    state_dir: Path


class Asked(msgspec.Struct, frozen=True):
    """The runs that a command is about; `many` when it was asked for more than one MODEL_DIR."""

    places: tuple[RunPlace, ...]
    many: bool


def run_folders(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a reading command its MODEL_DIR arguments and `--state-dir`."""
    command = state_dir_option(command)
    return click.argument(
        "folders",
        metavar="[MODEL_DIR]...",
        nargs=-1,
        callback=_or_here,
        type=click.Path(path_type=Path),
        shell_complete=completing.folders,
    )(command)


def _or_here(
    context: click.Context, parameter: click.Parameter, given: tuple[Path, ...]
) -> tuple[Path, ...]:
    folder = None if given else folder_or_here(context, parameter, None)
    return given if folder is None else (folder,)


def find_runs(folders: Sequence[Path], state_dir: str | None) -> Asked:
    """Return the runs in `folders`: each is a MODEL_DIR, a state folder, or above some.

    Below a folder that is neither, databases one and two levels down are found. A MODEL_DIR without
    a database is returned all the same: opening it says what is wrong.
    """
    if state_dir:
        if len(folders) > 1:
            raise click.UsageError("--state-dir is of one run, and several were given")
        from watcher.control.copied import refuse_other_run  # reads settings, which takes a while

        place = RunPlace(folders[0].absolute(), state_folder(folders[0], state_dir))
        refuse_other_run(as_typed(folders[0]), place.model_dir, place.state_dir)
        return Asked((place,), False)
    places: list[RunPlace] = []
    many = len(folders) > 1
    for folder in folders:
        if is_url(str(folder)):
            places.append(RunPlace(Path(as_typed(folder)), state_folder(folder, None)))
            continue
        here = folder.absolute()
        own = _own_place(here)
        below = [] if own else sorted({path for one in _BELOW for path in here.glob(one)})
        many = many or bool(below)
        found = [RunPlace(path.parent.parent, path.parent) for path in below]
        if not state_dir and not own and not found:
            refuse_mistaken(here)
        places += found or [own or RunPlace(here, state_folder(here, None))]
    return Asked(tuple(dict.fromkeys(places)), many)


def each_reader(asked: Asked) -> Iterator[tuple[RunPlace, Reader]]:
    """Open one run after the other; of several, one that cannot be read is told and passed over.

    Raises:
        StoreError: the only one, or none of them, can be read.
    """
    failed: StoreError | None = None
    read = 0
    for place in asked.places:
        try:
            with open_reader(place.state_dir) as reader:
                yield place, reader
                read += 1
        except StoreError as error:
            if not asked.many:
                raise
            failed = error
            click.echo(f"warning: {error.message}", err=True)
    if failed and not read:
        raise failed


def each_shown(
    asked: Asked, rows_of: Callable[[Reader], list[dict[str, Any]]], *, json_output: bool
) -> Iterator[tuple[RunPlace, Reader, list[dict[str, Any]]]]:
    """Open one run after the other to show its rows, a blank line between; or print all as JSON."""
    every: list[Any] = []
    for place, reader in each_reader(asked):
        rows = rows_of(reader)
        if json_output:
            every += with_folder(rows, place, asked)
            continue
        if place is not asked.places[0]:
            click.echo()
        yield place, reader, rows
    if json_output:
        print_json(every)


@contextmanager
def only_reader(folder: Path, state_dir: str | None) -> Iterator[Reader]:
    """Open the one run that a command is about."""
    with open_reader(only_place(folder, state_dir).state_dir) as reader:
        yield reader


def only_place(folder: Path, state_dir: str | None) -> RunPlace:
    """Return where the one run is that a command is about: in a folder, or somewhere below it."""
    asked = find_runs([folder], state_dir)
    if len(asked.places) > 1:
        names = ", ".join(str(place.model_dir) for place in asked.places[:5])
        raise click.UsageError(f"{folder} holds several runs, give one of them: {names}")
    return asked.places[0]


def with_folder(rows: Sequence[dict[str, Any]], place: RunPlace, asked: Asked) -> list[Any]:
    """Return rows as they are, and of several runs with the folder that they are from."""
    if not asked.many:
        return list(rows)
    return [{"model_dir": str(place.model_dir), **row} for row in rows]


def _own_place(folder: Path) -> RunPlace | None:
    for state_dir, model_dir in ((folder / "watcher", folder), (folder, folder.parent)):
        try:
            if (state_dir / DATABASE_NAME).is_file():
                return RunPlace(model_dir, state_dir)
        except OSError:  # opening it says why
            return RunPlace(model_dir, state_dir)
    return None
