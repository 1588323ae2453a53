"""Help texts: examples at their end, and the options of the settings in their groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click


def examples(*lines: str) -> str:
    """Return an epilog with command lines that are shown as they are."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


class SettingOption(click.Option):
    """The option of one setting.

    Attributes:
        group: What the help text says above the options of its kind; None for the command's own.
    """

    def __init__(self, *arguments: Any, group: str | None = None, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self.group = group


class SettingsCommand(click.Command):
    """A command with the options of the settings, which its help text shows in their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, and those of each group under its heading."""
        groups: dict[str | None, list[tuple[str, str]]] = {None: []}
        for parameter in self.get_params(ctx):
            # Arguments are in the usage line and in the text.
            if not isinstance(parameter, click.Option):
                continue
            if record := parameter.get_help_record(ctx):
                groups.setdefault(getattr(parameter, "group", None), []).append(record)
        width = _width([row for rows in groups.values() for row in rows])
        for title, rows in groups.items():
            if rows:
                with formatter.section(title or "Options"):
                    formatter.write_dl(_widened(rows, width), col_max=width)


def _width(rows: Iterable[tuple[str, str]]) -> int:
    """Return a width of the first column that is the same in all groups."""
    return max((len(first) for first, _ in rows if len(first) <= 30), default=30)


def _widened(rows: list[tuple[str, str]], width: int) -> list[tuple[str, str]]:
    return [(first.ljust(width), text) for first, text in rows]
