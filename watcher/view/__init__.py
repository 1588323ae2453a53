"""View: what a person sees of a run, drawn with rich from one look at the database. Reads only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def make_console() -> Console:
    """Return the console on standard output; text is shown as it is, `AP[person]` say."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False)
