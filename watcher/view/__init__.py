"""View: what a person sees of a run, drawn with rich from one look at the database. Reads only."""

from __future__ import annotations

from rich.console import Console


def make_console() -> Console:
    """Return the console on standard output; text is shown as it is, `AP[person]` say."""
    return Console(markup=False, emoji=False, highlight=False)
