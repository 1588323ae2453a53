"""`checkpoint-watcher doctor`: checks before and during a run."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from watcher.cli.completing import folders
from watcher.cli.meant import lookalike_told, refuse_run_folder
from watcher.cli.options import (
    as_json,
    config_option,
    only_given_option,
    print_json,
    settings_options,
    time_limit_option,
)
from watcher.cli.settings_help import SettingsCommand, examples
from watcher.cli.sources import Sources, sources
from watcher.config import Loaded, Settings, shown
from watcher.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from watcher.doctor.finding import Finding

_STYLE = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}


@click.command(
    cls=SettingsCommand,
    epilog=examples(
        "checkpoint-watcher doctor --config ssd.toml",
        "checkpoint-watcher doctor models/ssd --json --strict",
    ),
)
@click.argument("model_dir", required=False, shell_complete=folders)
@config_option("Settings from a TOML file, as for run.")
@click.option("--strict", is_flag=True, help="Exit with code 1 for warnings too.")
@time_limit_option("the")
@as_json
@only_given_option
@settings_options
def doctor(
    model_dir: str | None,
    settings_file: Path | None,
    strict: bool,
    time_limit: float,
    json_output: bool,
    only_given: bool,
    **flags: Any,
) -> None:
    """Check what a run on MODEL_DIR needs, and say what to do about what is missing.

    Takes the settings that run would take, before a run or beside one: what is not given is as at
    the last start of run on MODEL_DIR. Writes nothing that lasts and computes on no GPU of this
    machine; of a device on another host it has a worker there get ready. Exit code 0 without an
    error, 1 with one (with --strict also for a warning). A check that hangs or fails is a warning
    that says so.
    """
    from watcher.doctor.examine import examine
    from watcher.doctor.finding import Finding, exit_code
    from watcher.doctor.settings import open_to_all

    given = sources({**flags, "model_dir": model_dir}, settings_file, only_given=only_given)
    refuse_run_folder(*given.folders())
    with lookalike_told(model_dir):
        loaded = _load(given)
    found = examine(loaded.settings, time_limit, _tell, loaded.source("device"))
    _tell("")
    found[:0] = open_to_all(given.file) if given.file else []
    if loaded.inherited:
        told = [f"{name} {shown(value)}" for name, value in sorted(loaded.inherited.items())]
        said = f"what is not given now is as at the last start: {', '.join(told)}"
        found.insert(0, Finding("settings", "ok", said))
    code = exit_code(found, strict=strict)
    if json_output:
        counts = Counter(finding.severity for finding in found)
        numbers = {severity: counts[severity] for severity in ("ok", "note", "warning", "error")}
        print_json({"ok": code == 0, "counts": numbers, "findings": found})
    else:
        _show(found)
    # Not sys.exit: a check that was left hanging must not hold up the end.
    sys.stdout.flush()
    os._exit(code)


def _tell(text: str) -> None:
    """Show how far it is in a line of its own on a terminal, which the next text replaces."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _load(given: Sources) -> Loaded[Settings]:
    try:
        return given.load(Settings)
    except (ConfigError, StoreError) as error:
        incomplete = error.__cause__ if isinstance(error, StoreError) else error
        if not isinstance(incomplete, ConfigError) or not incomplete.message.endswith("is not set"):
            raise
        # A mistyped folder has no last run whose settings would count, so nothing is set for it.
        folder = given.flags.get("model_dir")
        if not folder or Path(folder).is_dir():
            raise
        raise ConfigError(
            f"model_dir ({folder}) does not exist, and {incomplete.message}",
            hint="is the path right? Before the first run, give --pipeline-config FILE as well",
        ) from error


def _show(found: Sequence[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    from watcher.view import show

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found:
        mark = Text(finding.severity, style=_STYLE[finding.severity])
        table.add_row(mark, finding.check, Text(finding.message))
        if finding.remedy:
            table.add_row("", "", Text.assemble(("-> ", "bold"), finding.remedy))
    counts = Counter[str](finding.severity for finding in found)
    show(table)
    kinds = [("error", "errors"), ("warning", "warnings")]
    said = [f"{counts[one]} {one if counts[one] == 1 else many}" for one, many in kinds]
    click.echo(f"\n{' and '.join(said)} in {len(found)} findings")
