"""View: what a person sees of a run, drawn with rich from one look at the database. Reads only."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# A line of a table is never so long: into a pipe nothing is cut or folded.
_PIPE_COLUMNS = 10_000
_PICTURE_COLUMNS = 80


def make_console(into: TextIO | None = None) -> Console:
    """Return the console on standard output; text is shown as it is, `AP[person]` say.

    Args:
        into: What takes it in place of `sys.stdout`.
    """
    from rich.console import Console

    width = _PIPE_COLUMNS if _into_a_pipe() else None
    # rich would draw nothing at all where COLUMNS is 0.
    seen = {name: value for name, value in os.environ.items() if name != "COLUMNS" or _asked()}
    return Console(
        file=into, width=width, markup=False, emoji=False, highlight=False, _environ=seen
    )


def show(drawn: RenderableType) -> None:
    """Print what is drawn on standard output."""
    console = make_console()
    # Where the reader has left rich would end the process, with an exit code of its own.
    with console.capture() as captured:
        console.print(drawn)
    text = captured.get()
    if _into_a_pipe():
        # A cell is as wide as the widest of its column, with blanks; a pager would break the lines.
        text = "".join(f"{line.rstrip(' ')}\n" for line in text.split("\n")[:-1])
    sys.stdout.write(text)


def picture_columns(room: int) -> int:
    """Return how wide a picture is that takes all the room there is: not in a pipe."""
    return _PICTURE_COLUMNS if room >= _PIPE_COLUMNS else room


def _into_a_pipe() -> bool:
    return not sys.stdout.isatty() and not _asked()


def _asked() -> bool:
    """True where COLUMNS asks for a width: 0, and what is no number, ask for none."""
    columns = os.environ.get("COLUMNS", "")
    return columns.isdecimal() and int(columns) > 0
