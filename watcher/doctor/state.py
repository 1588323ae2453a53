"""State: what the run's database says of it, if there is one, and what SQLite it is written by."""

from __future__ import annotations

import sqlite3
import statistics
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from watcher.config import Settings
from watcher.config.policies import boards, require_metrics
from watcher.decision.noise import random_doubts
from watcher.doctor.finding import Finding, Severity
from watcher.errors import ConfigError, StoreError
from watcher.evaluation.preflight import refuse_unmeasured
from watcher.store import queries
from watcher.store.database_file import DATABASE_NAME
from watcher.store.reading import Reader, open_reader
from watcher.view.look import is_there, missing_text, remedy

# Before it, two connections that write may damage the database (sqlite.org/wal.html).
_WAL_RESET_FIXED = (3, 51, 3)
_LAST_EVALUATIONS = 10
_LAST_STEPS = 30


class RunState(msgspec.Struct, frozen=True):
    """What is recorded of a run; all empty before its first start.

    Attributes:
        status: What the daemon last said of itself.
        eval_seconds: Median of the last evaluations, None before the first.
        found_seconds: Median between the last discoveries, None when too few are.
        steps: Median of the steps between recorded checkpoints, None when too few are.
        waiting: Checkpoints that wait.
        promoted: Places taken on all boards.
        journal: SQLite's journal mode.
        fingerprint: Of the evaluation that counts.
    """

    status: dict[str, Any]
    eval_seconds: float | None = None
    found_seconds: float | None = None
    steps: int | None = None
    waiting: int = 0
    promoted: int = 0
    journal: str | None = None
    fingerprint: str | None = None


def load(state_dir: Path) -> RunState | None:
    """Read what is recorded, None when there is no database yet.

    Raises:
        StoreError: there is one, and it cannot be read.
    """
    path = state_dir / DATABASE_NAME
    if not path.exists():
        return None
    with Reader(path, timeout_seconds=2.0) as reader:
        return RunState(
            status=reader.status(),
            eval_seconds=_median(reader.last_seconds(_LAST_EVALUATIONS)),
            found_seconds=_apart(queries.last_discoveries(reader, _LAST_EVALUATIONS)),
            steps=_step(queries.last_steps(reader, _LAST_STEPS)),
            waiting=reader.waiting(),
            promoted=queries.places_taken(reader),
            journal=queries.journal_mode(reader),
            fingerprint=reader.run()["fingerprint"],
        )


def database(state_dir: Path) -> list[Finding]:
    """Say what SQLite this is, what its fault means for us, and whether the database is sound."""
    found = [sqlite(sqlite3.sqlite_version)]
    try:
        state = load(state_dir)
    except StoreError as error:
        return [*found, Finding("database", "error", error.message, error.hint)]
    if state is None:
        return [*found, Finding("database", "ok", "none yet; `run` makes it")]
    if state.journal != "wal":
        text = f"its journal mode is {state.journal}, not wal: a reader and the watcher wait for"
        remedy = "this is so on a network file system; --state-dir puts it on another one"
        found.append(Finding("database", "warning", f"{text} each other", remedy))
    else:
        found.append(Finding("database", "ok", "it can be read, and is in WAL mode"))
    return [*found, *watcher(state.status)]


def metric(settings: Settings) -> list[Finding]:
    """Say which metric no evaluation of the run has, and which is drawn at random."""
    with suppress(StoreError), open_reader(settings.run.state_path, timeout_seconds=2.0) as reader:
        return [*_unmeasured(settings, reader), *_noise(settings, reader)]
    return []  # none yet, or the check of the database tells it


def _unmeasured(settings: Settings, reader: Reader) -> list[Finding]:
    try:
        refuse_unmeasured(settings, reader, reader.run().get("settings") or {})
    except ConfigError as error:
        return [Finding("metric", "error", error.message, error.hint)]
    names, categories = reader.measured()
    try:
        if names:
            require_metrics(boards(settings.run, settings.ranking), names, categories or None)
    except ConfigError as error:
        text = f"{error.message.replace('this evaluation', 'the evaluations so far')}: the start"
        text += " is refused unless what changed since then brings it"
        return [Finding("metric", "warning", text, error.hint)]
    return []


def _noise(settings: Settings, reader: Reader) -> list[Finding]:
    details = reader.details_of()
    instead = "rank by what is computed from detections, such as mAP"
    made, drawn = boards(settings.run, settings.ranking), details.get("random_metrics") or ()
    return [Finding("metric", "warning", doubt, instead) for doubt in random_doubts(made, drawn)]


def promoted(state_dir: Path) -> list[Finding]:
    """Say whether the files of what is promoted are there."""
    with suppress(StoreError), open_reader(state_dir, timeout_seconds=2.0) as reader:
        rows = [*reader.leaderboard(), *reader.other_boards()]
        gone = [row["path"] for row in rows if not row["files"]]
        running = is_there(reader.run()["status"].get("pid"))
        if gone:
            severity: Severity = "warning" if running else "error"
            return [Finding("promoted", severity, missing_text(gone), remedy(running))]
        if rows:
            text = f"the files of all {len(rows)} promoted checkpoints are there"
            return [Finding("promoted", "ok", text)]
    return []


def sqlite(version: str) -> Finding:
    """Judge SQLite's version. Pure."""
    if tuple(int(part) for part in version.split(".")[:3]) >= _WAL_RESET_FIXED:
        return Finding("sqlite", "ok", f"SQLite {version}")
    return Finding(
        "sqlite",
        "note",
        f"SQLite {version} has the WAL-reset fault (mended in 3.51.3), which takes two programs"
        " that write: the watcher is the only one, so let no other write into watcher.db; reading"
        " is safe",
    )


def watcher(status: dict[str, Any]) -> list[Finding]:
    """Say whether a watcher runs, and what it says of itself."""
    pid = status.get("pid")
    if ended := status.get("ended"):
        text = f"the last one ended with an error ({status.get('ended_at')}): {ended}"
        return [Finding("watcher", "note", text)]
    if not pid:
        return [Finding("watcher", "ok", "none runs on this MODEL_DIR now")]
    if not is_there(pid):
        text = f"the last one (process {pid}) ended without saying so, killed or with its machine"
        return [Finding("watcher", "note", f"{text}; `run` goes on where it was")]
    found = []
    for what, name in (("watch", "events"), ("pins", "links")):
        said = status.get(what)
        if said not in (None, name):
            text = f"the watcher that runs (process {pid}) does without {name}: {said}"
            found.append(Finding("watcher", "warning", text))
    if problem := status.get("problem"):
        remedy = "`checkpoint-watcher status MODEL_DIR` and the log say more"
        found.append(Finding("watcher", "warning", f"process {pid} says: {problem}", remedy))
    if problem := status.get("tensorboard"):
        text = f"process {pid} cannot write event files for TensorBoard: {problem}"
        remedy = "let the watcher write there, name another --eval-dir, or use --no-tensorboard"
        found.append(Finding("watcher", "warning", text, remedy))
    text = f"process {pid} runs; worker: {status.get('worker')}"
    return found or [Finding("watcher", "ok", text)]


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _apart(times: list[str]) -> float | None:
    moments = [datetime.fromisoformat(text).timestamp() for text in times]
    gaps = [after - before for before, after in pairwise(moments)]
    return statistics.median(gaps) if len(gaps) > 1 else None


def _step(steps: list[int]) -> int | None:
    gaps = [after - before for before, after in pairwise(steps)]
    return round(statistics.median(gaps)) if len(gaps) > 1 else None
