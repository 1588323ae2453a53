"""What the shell offers on TAB: folders, and what a run's database holds. Silent, and never late.

Each function is click's `shell_complete`: it gets the context of what is typed so far, and the
beginning of the word. A database that is missing, locked or unreadable offers nothing.
"""

from __future__ import annotations

import functools
import os
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from watcher.cli.sources import model_dir_here, state_dir_here
from watcher.config import state_path
from watcher.errors import WatcherError
from watcher.store.queries import OFFERED
from watcher.store.reading import open_reader

Items = list[CompletionItem[str]]
Completer = Callable[[click.Context, click.Parameter, str], Items]

_WAIT_SECONDS = 0.05  # for a lock that another program holds
_MOST = 200


# click's own, for values that are read as text: a wrong one is told with the rule of its setting.
folders: Completer = click.Path(file_okay=False).shell_complete
files: Completer = click.Path().shell_complete


def choices(*values: str) -> Completer:
    """Offer some words."""
    return click.Choice(values).shell_complete


def folders_and_next(context: click.Context, parameter: click.Parameter, begun: str) -> Items:
    """Offer folders, and what the argument after MODEL_DIR may be where the settings file names it.

    The shell completes a folder where none of the words has that beginning.
    """
    items = folders(context, parameter, begun)
    if os.sep in begun or model_dir_here() is None:
        return items
    later = [one for one in context.command.params if isinstance(one, click.Argument)][1:]
    return items + [item for one in later[:1] for item in one.shell_complete(context, begun)]


def checkpoints(
    context: click.Context, _parameter: click.Parameter, begun: str, kind: str = "checkpoints"
) -> Items:
    """Offer the checkpoints whose files may still be there, the newest first, and the words."""
    found = _ask(context, kind)
    words = [("best", "the best one"), ("last", "the one evaluated last")] if found else []
    words += [(row["name"], _said(row)) for row in found]
    return _beginning(begun, words, besides=_given(context))


# Those that have an evaluation.
evaluated: Completer = functools.partial(checkpoints, kind="evaluated")


def metrics(context: click.Context, _parameter: click.Parameter, begun: str) -> Items:
    """Offer the short names of metrics, and those that the run has recorded."""
    from watcher.decision.metric import CATEGORY_NAMES, SHORT_NAMES, of_category

    words = [(name, full[0]) for name, full in SHORT_NAMES.items()]
    if begun.startswith(tuple(f"{figure}[" for figure in CATEGORY_NAMES)):
        figure = begun.partition("[")[0]
        words = [(of_category(figure, row["category"]), "") for row in _ask(context, "categories")]
    else:
        words += [(row["name"], "recorded") for row in _ask(context, "metrics")]
    return _beginning(begun, words)


def boards(context: click.Context, _parameter: click.Parameter, begun: str) -> Items:
    """Offer the boards that hold something."""
    return _beginning(begun, ((row["board"], "") for row in _ask(context, "boards")))


def for_setting(name: str, metavar: str | None) -> Completer | None:
    """Return what completes the value of a setting, by its name and its metavar."""
    if name in ("metric", "tie_break", "veto"):
        return metrics
    if name == "device":
        return choices("cpu", "auto", "gpu:")
    if metavar in ("FILE", "FILE.toml", "INTERPRETER"):
        return files
    if metavar == "FOLDER":
        return folders
    words = [word for word in (metavar or "").split("|") if word and not word.isupper()]
    # every-N and ema:W have yet to be finished; they are offered without what stands for it.
    return choices(*(word.rstrip("NW") for word in words)) if len(words) > 1 else None


def _ask(context: click.Context, kind: str) -> list[dict[str, Any]]:
    """Return what the run that is typed has `OFFERED` of a kind; none when that cannot be had."""
    folders = context.params.get("folders") or ()
    # While an option still lacks its value, click leaves the arguments where they are.
    folder = context.params.get("model_dir") or next(iter((*folders, *context.args)), None)
    folder = folder or model_dir_here()
    if not folder:
        return []
    try:
        # The shell has not expanded what it is still completing.
        model_dir = Path(os.path.expandvars(str(folder))).expanduser()
        state_dir = context.params.get("state_dir") or state_dir_here(model_dir)
        folder_of_state = state_path(model_dir.absolute(), state_dir)
        with open_reader(folder_of_state, timeout_seconds=_WAIT_SECONDS) as reader:
            return reader.all(OFFERED[kind], [_MOST])
    except (WatcherError, OSError, RuntimeError, ValueError, sqlite3.Error):
        return []


def _given(context: click.Context) -> set[str]:
    """Return the words that stand for checkpoints already."""
    values = context.params.values()
    return {str(word) for one in values for word in (one if isinstance(one, tuple) else (one,))}


def _said(row: dict[str, Any]) -> str:
    # No comma: fish's script takes a description up to the first one.
    step = "" if row["global_step"] is None else f"step {row['global_step']}: "
    return f"{step}{row['state']}" + ("" if row["score"] is None else f" {row['score']:.4f}")


def _beginning(
    begun: str, words: Iterable[tuple[str, str]], *, besides: Iterable[str] = ()
) -> Items:
    """Return the words with that beginning, each once. Those with blanks no shell takes whole."""
    found = dict.fromkeys(
        (word, about)
        for word, about in words
        if word.startswith(begun) and word not in besides and not any(c.isspace() for c in word)
    )
    return [CompletionItem(word, help=about or None) for word, about in found]
