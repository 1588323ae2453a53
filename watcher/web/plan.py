"""What is served: the databases, the names they get, and all that Datasette is told of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from watcher.errors import StoreError
from watcher.store.database_file import DATABASE_NAME
from watcher.store.page_queries import FRESHNESS
from watcher.store.reading import open_reader
from watcher.web.charts import OVERVIEW, home_page, overview_dashboard, run_dashboard
from watcher.web.metadata import database_metadata

# A chart of a long run is one answer; so many points a browser still draws.
MAX_ROWS = 10_000
SQL_MILLISECONDS = 2_000
_BUSY_SECONDS = 2.0
_SETTINGS = {
    "allow_csv_stream": True,
    "allow_download": False,
    "default_cache_ttl": 0,  # in seconds: what is shown is as old as the request
    "max_returned_rows": MAX_ROWS,
    "num_sql_threads": 3,
    "sql_time_limit_ms": SQL_MILLISECONDS,
}


class ServedRun(msgspec.Struct, frozen=True):
    """One run of the page.

    Attributes:
        model_dir: The trainer's folder.
        path: The database.
        frozen: True when nobody writes it and it can only be read as a file that never changes.
        identity: Of the file, so that one that `rebuild` replaced is noticed.
        name: The run's name.
        metric: What ranks it.
    """

    model_dir: Path
    path: Path
    frozen: bool
    identity: tuple[int, int]
    name: str
    metric: str


class Plan(msgspec.Struct, frozen=True):
    """All that the serving process is told; equal plans give the same pages.

    Attributes:
        runs: What is served.
        start: The path of the page to open first.
        told: The order for the serving process, as JSON takes it.
    """

    runs: tuple[ServedRun, ...]
    start: str
    told: dict[str, Any]


def served_run(model_dir: Path, state_dir: Path) -> ServedRun:
    """Look at a run's database; does not write.

    Raises:
        StoreError: there is none, or it cannot be read now.
    """
    with open_reader(state_dir, timeout_seconds=_BUSY_SECONDS) as reader:
        run, frozen = reader.run(), reader.frozen
        reader.require_views()
        status = (state_dir / DATABASE_NAME).stat()
    return ServedRun(
        model_dir,
        state_dir / DATABASE_NAME,
        frozen,
        (status.st_dev, status.st_ino),
        run["name"],
        run["metric"],
    )


def make_plan(runs: Sequence[ServedRun]) -> Plan:
    """Name the databases and put together metadata and dashboards."""
    labels = _labels(runs)
    names = _database_names(labels)
    dashboards: dict[str, Any] = {}
    if len(runs) > 1:
        asked = [(n, lab, run.metric) for n, lab, run in zip(names, labels, runs, strict=True)]
        dashboards[OVERVIEW] = overview_dashboard(asked)
    databases = {}
    for name, label, run in zip(names, labels, runs, strict=True):
        dashboards[name] = run_dashboard(name, label, run.metric)
        databases[name] = database_metadata(label, str(run.model_dir))
    home = home_page(names)
    for dashboard in (home, *dashboards.values()):
        dashboard["freshness"] = FRESHNESS.sql.strip()
    metadata = {
        "title": "checkpoint-watcher",
        "databases": databases,
        "home": home,
        "plugins": {"datasette-dashboards": dashboards},
    }
    served = [
        {"name": name, "path": str(run.path), "frozen": run.frozen}
        for name, run in zip(names, runs, strict=True)
    ]
    told = {"databases": served, "metadata": metadata, "settings": _SETTINGS}
    start = "/" if len(runs) > 1 else f"/-/dashboards/{names[0]}"
    return Plan(tuple(runs), start, told)


def _labels(runs: Sequence[ServedRun]) -> list[str]:
    """Return the runs' names; those that occur twice with their folder."""
    named = Counter(run.name for run in runs)
    return [
        run.name if named[run.name] == 1 else f"{run.model_dir.parent.name}/{run.model_dir.name}"
        for run in runs
    ]


def _database_names(labels: Sequence[str]) -> list[str]:
    """Return names that stand in a URL as they are, each once."""
    names: list[str] = []
    for label in labels:
        base = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-").lower()[:60] or "run"
        name, number = base, 1
        while name in names or name == OVERVIEW:
            number += 1
            name = f"{base}-{number}"
        names.append(name)
    return names


def find_served(
    places: Sequence[tuple[Path, Path]], *, tolerant: bool, known: Sequence[ServedRun] = ()
) -> tuple[ServedRun, ...]:
    """Look at several runs, `(model_dir, state_dir)` each.

    Args:
        places: Where they are.
        tolerant: Pass over those that cannot be read, unless none can.
        known: What was found before: of those, what cannot be read now, being locked say, stays.

    Raises:
        StoreError: the only one, or none of them, can be read.
    """
    found: list[ServedRun] = []
    before = {run.path: run for run in known}
    failed: StoreError | None = None
    for model_dir, state_dir in places:
        try:
            found.append(served_run(model_dir, state_dir))
        except StoreError as error:
            path = state_dir / DATABASE_NAME
            if path in before and path.exists():
                found.append(before[path])
                continue
            if not tolerant:
                raise
            failed = error
    if failed and not found:
        raise failed
    return tuple(found)
