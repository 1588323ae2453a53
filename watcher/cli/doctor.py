"""`checkpoint-watcher doctor`: checks before and during a run."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from watcher.cli.completing import folders
from watcher.cli.options import as_json, config_option, print_json, settings_options
from watcher.cli.settings_help import SettingsCommand, examples
from watcher.config import ENVIRONMENT_PREFIX, Settings, load_as, state_path
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
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    metavar="SECONDS",
    help="How long the training environment may take to answer. [120]",
)
@as_json
@settings_options
def doctor(
    model_dir: str | None,
    config_file: Path | None,
    strict: bool,
    time_limit: float,
    json_output: bool,
    **flags: Any,
) -> None:
    """Check what a run on MODEL_DIR needs, and say what to do about what is missing.

    Takes the settings of run, before a run or beside one. Where MODEL_DIR is all that is given,
    those count that the last run on it was started with. Writes nothing that lasts and computes on
    no GPU. Exit code 0 without an error, 1 with one (with --strict also for a warning). A check
    that hangs or fails is a warning that says so.
    """
    from watcher.doctor.examine import examine
    from watcher.doctor.finding import Finding, exit_code
    from watcher.doctor.settings import open_to_all

    flags["model_dir"] = model_dir
    recorded = {} if config_file else _recorded(flags)
    settings = _settings(flags, config_file, recorded)
    found = examine(settings, time_limit, _tell)
    _tell("")
    found[:0] = open_to_all(config_file) if config_file else []
    if recorded:
        said = "those that the last run was started with; flags and the environment go before them"
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


def _settings(
    flags: Mapping[str, Any], config_file: Path | None, recorded: Mapping[str, Any]
) -> Settings:
    try:
        return load_as(
            Settings, flags, os.environ, config_file, recorded, defaults_from="the run's database"
        )
    except ConfigError as error:
        # A mistyped folder has no last run whose settings would count, so nothing is set for it.
        folder = flags.get("model_dir")
        if not folder or Path(folder).is_dir() or not error.message.endswith("is not set"):
            raise
        raise ConfigError(
            f"model_dir ({folder}) does not exist, and {error.message}",
            hint="is the path right? Before the first run, give --pipeline-config FILE as well",
        ) from error


def _recorded(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the last run was started with, where no pipeline is given to look at another."""
    from watcher.doctor.examine import settings_of_last_run

    def given(name: str) -> Any:
        value = flags.get(name)
        return os.environ.get(f"{ENVIRONMENT_PREFIX}{name.upper()}") if value is None else value

    if not given("model_dir") or given("pipeline_config"):
        return {}
    try:
        folder = state_path(Path(given("model_dir")).absolute(), given("state_dir"))
        values = settings_of_last_run(folder)
    except StoreError:  # the check of the database tells it
        return {}
    return {name: value for name, value in values.items() if name in Settings.__struct_fields__}


def _show(found: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

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
    console = Console(highlight=False)
    console.print(table)
    kinds = [("error", "errors"), ("warning", "warnings")]
    said = [f"{counts[one]} {one if counts[one] == 1 else many}" for one, many in kinds]
    console.print(f"\n{' and '.join(said)} in {len(found)} findings")
