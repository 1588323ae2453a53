"""What was probably meant: a mistyped MODEL_DIR, a folder inside of it, arguments in another order.

Looks at names and folders; what is right is never doubted.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from watcher.checkpoints.naming import USUAL_STEM
from watcher.config.bucket import as_typed, is_url
from watcher.errors import ConfigError, ModelDirError, StoreError
from watcher.sources.passed_over import is_ours
from watcher.store.database_file import DATABASE_NAME
from watcher.store.reading import open_reader

# What names a checkpoint and hardly a folder; a sha256 is named by six of its characters or more.
_WORD = re.compile(rf"best|last|\d+|(model\.)?{USUAL_STEM}\d+")
_SHA256 = re.compile(r"[0-9a-fA-F]{6,64}")
_ABOVE = 3
_MOST = 1000


def is_run(folder: Path) -> bool:
    """Tell whether a folder is a MODEL_DIR with a database in it, or such a database's folder."""
    try:
        return any((place / DATABASE_NAME).is_file() for place in (folder / "watcher", folder))
    except OSError:
        return False


def names_checkpoint(word: str, others: Sequence[str], *, alone: bool) -> bool:
    """Tell whether the word where MODEL_DIR may stand names a checkpoint, as the others do.

    A folder with a run in it is always a MODEL_DIR, and so is what is written as a path.

    Args:
        word: The first one.
        others: Those after it.
        alone: Nothing is done to the others when this one is wrong.
    """
    folder = Path(word)
    if os.sep in word or any(is_run(Path(other)) for other in others):
        return False
    if folder.is_dir():
        return bool(_WORD.fullmatch(word)) and not is_run(folder)
    if reads_as_checkpoint(word):
        return True
    # Of a mistyped MODEL_DIR nothing may be done to the checkpoints of another one.
    return alone and lookalike(folder, runs=True) is None


def reads_as_checkpoint(word: str) -> bool:
    """Tell whether a word has the form of a checkpoint's name, whatever folders there are."""
    return bool(_WORD.fullmatch(word) or _SHA256.fullmatch(word))


def refuse_mistaken(model_dir: Path) -> None:
    """Raise StoreError where a MODEL_DIR has no database and something else was probably meant."""
    if is_run(model_dir):
        return
    hint = _swapped(model_dir) or _inside(model_dir)
    if not hint and (near := lookalike(model_dir, runs=True)):
        hint = f"did you mean {near}?"
    elif not hint and (near := lookalike(model_dir)):
        hint = f"did you mean {near}? There is no run in it yet: `checkpoint-watcher run` makes one"
    if hint:
        raise StoreError(f"no database at {model_dir / 'watcher' / DATABASE_NAME}", hint=hint)


def refuse_run_folder(model_dir: str | None, state_dir: str | None) -> None:
    """Raise ModelDirError where a MODEL_DIR is what a run made: its best/, its database's folder.

    A second run would be made inside of it. What counts is what lies there and around it; folders
    of the trainer's, such as one for a second training, are none of the run's.

    Args:
        model_dir: As given, None where nothing is.
        state_dir: The setting, if it is set.
    """
    if model_dir is None or is_url(model_dir):
        return
    folder = Path(model_dir).resolve()
    if state_dir and Path(state_dir).resolve() == folder:  # its run keeps all in one folder
        return
    above = _run_around(folder)
    if above and above != str(folder):
        raise ModelDirError(
            f"model_dir ({model_dir}) is not a folder that a trainer saves into",
            hint=_meant_run(above),
        )


def refuse_bucket(model_dir: Path) -> None:
    """Raise StoreError where only the URL of a run is given, and nothing tells of its database."""
    if is_url(typed := as_typed(model_dir)):
        raise StoreError(
            f"the database of {typed} is on the machine that watches it, and not in the bucket",
            hint="give its folder there, which `run` got as --state-dir, in place of the URL",
        )


def lookalike(folder: Path, *, runs: bool = False) -> Path | None:
    """Return the folder beside one that does not exist whose name is most like its name.

    Args:
        folder: As given.
        runs: Only folders with a database in them count.
    """
    if folder.exists():
        return None
    try:
        beside = [path for path, _ in zip(folder.parent.iterdir(), range(_MOST), strict=False)]
    except OSError:
        return None
    wanted = [path.name for path in beside if (is_run(path) if runs else path.is_dir())]
    # What was typed only in part is the beginning of a name.
    begun = [name for name in wanted if folder.name and name.startswith(folder.name)]
    near = difflib.get_close_matches(folder.name, wanted, n=1) or begun[:1]
    return folder.parent / near[0] if near else None


@contextmanager
def lookalike_told(model_dir: str | None) -> Iterator[None]:
    """Add to an error about a MODEL_DIR that does not exist which one may be meant."""
    try:
        yield
    except (ConfigError, ModelDirError) as error:
        folder = Path(model_dir).absolute() if model_dir else None
        if folder is None or folder.is_dir():
            raise
        if folder.is_file():
            meant = f"MODEL_DIR is a folder; `--pipeline-config {model_dir}` gives a file."
        elif near := lookalike(folder):
            meant = f"did you mean {near}?"
        else:
            raise
        raise type(error)(error.message, hint=f"{meant} If not: {error.hint}") from error


def describe_absent(path: Path) -> str:
    """Say what is waited for, and which folder may be meant instead."""
    near = lookalike(path)
    meant = f": did you mean {near}?" if near else ""
    return f"waiting for {path}, which does not exist yet{meant}"


def refuse_empty(command: click.Command, words: list[str], above: click.Context) -> None:
    """Raise BadParameter where a command is given an empty text, as "$RUN" is that is not set.

    It would mean what is meant where nothing is given, or the current folder.

    Args:
        command: What is started.
        words: Its arguments and options.
        above: The context that it is started in.
    """
    if all(word and not word.endswith("=") for word in words):
        return
    context = click.Context(
        command, info_name=command.name, parent=above, **command.context_settings
    )
    given = command.make_parser(context).parse_args(list(words))[0]
    for parameter in command.params:
        value = given.get(parameter.name)
        every = value if isinstance(value, list | tuple) else [value]
        # A trainer's words are not ours, and none are what some options hold by default.
        if "" in every and parameter.type is not click.UNPROCESSED and parameter.default != "":
            raise click.BadParameter("it is empty", context, parameter)


def in_order(command: str, given: str | None, extra: Iterable[str]) -> str:
    """Return the end of a sentence about arguments too many: the command line that was meant."""
    words = [*([given] if given else []), *extra]
    folders = [word for word in words if Path(word).is_dir()]
    files = [word for word in words if Path(word).is_file()]
    if len(folders) != 1 or len(files) != 1 or len(words) != 2:
        return ""
    flag = "--config" if files[0].endswith(".toml") else "--pipeline-config"
    return f" Did you mean '{command} {folders[0]} {flag} {files[0]}'?"


def _swapped(model_dir: Path) -> str | None:
    """Say so where one of the other arguments is the run, and what stands first is no folder."""
    context = click.get_current_context(silent=True)
    if context is None or model_dir.is_dir():
        return None
    for name in ("checkpoint", "checkpoints", "old", "new"):
        value = context.params.get(name) or ()
        for word in [value] if isinstance(value, str) else value:
            if is_run(Path(word)):
                return f"MODEL_DIR comes first: `{context.command_path} {word} ...`"
    return None


def _inside(model_dir: Path) -> str | None:
    for above in list(model_dir.parents)[:_ABOVE]:
        if is_run(above / "watcher") and above != model_dir:
            return _meant_run(above)
    return None


def _meant_run(model_dir: Path | str) -> str:
    return f"it is a folder of the run in {model_dir}: give that"


def _run_around(folder: Path) -> str | None:
    """Return the MODEL_DIR of the run that a folder belongs to; None where it belongs to none."""
    for inside in (folder, *list(folder.parents)[: _ABOVE - 1]):
        if not is_ours(inside):
            continue
        if (inside.parent / "watcher" / DATABASE_NAME).is_file():
            return str(inside.parent)
        if of := _watched_from(inside.parent):  # best/ of a bucket's run lies beside its database
            return of
    return _watched_from(folder)


def _watched_from(state_dir: Path) -> str | None:
    """Return the MODEL_DIR of the run whose database lies in a folder; None for none."""
    if not (state_dir / DATABASE_NAME).is_file():
        return None
    try:
        with open_reader(state_dir, timeout_seconds=1.0) as reader:
            run = reader.run()
    except StoreError:  # nothing is known of it
        return None
    given = (run.get("settings") or {}).get("model_dir")
    return str(given if is_url(given) else run["model_dir"])
