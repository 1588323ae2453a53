"""Look: what is to be seen of a run at one moment, as plain data. Reads only."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from watcher.store import queries
from watcher.store.reading import Reader
from watcher.view.machines import remarks

_PACE_OF = 5
_FAILURES = 3
_AT_WORK = ("evaluating", "probing", "proving")
# What the status says of a trouble, and how that is put.
_SAID = {
    "problem": "problem: {}",
    "held_back": "{}",
    "tensorboard": "no event files for TensorBoard: {}",
    "lacking": "{}",
    "waiting_for": "{}",
    "watch": "degraded to polling: {}",
    "pins": "pins are copies: {}",
}
_USUAL = {"watch": "events", "pins": "links"}


class Look(msgspec.Struct, frozen=True):
    """One look at a run's database.

    Attributes:
        run: The row of `runs`; `status` is what the daemon last said of itself.
        running: True while the process that wrote the status is there.
        states: State to the number of checkpoints in it, only those that occur.
        board: The view `leaderboard`.
        boards: The other rows of the view `boards`: what lies in the other boards and in kept/.
        recent: The last rows of the view `history`.
        queue: `checkpoint, global_step` of what waits, next first; perhaps only the first of it.
        waiting: How many wait.
        running_now: The running evaluations, one a worker: `checkpoint, global_step, device`, and
            as far as they were told `done`, `total`, `images_per_second`, `seconds_left`; `proving`
            where it is measured again to compare machines.
        generation: The newest of the trainer's lives.
        curve: (global step, score) of what can rank of it, in step order.
        pace_seconds: What an evaluation took lately, None before the first.
        patience_left: `evaluations` and `steps` that may pass without improvement, where limited.
        stop: Why the run should stop, None when it should not.
        stop_awaits: The checkpoint whose score a stop waits for, since a gain there would undo it.
        failures: `checkpoint, state, reason` of what failed or is corrupt, the latest first.
        outdated: How many are promoted by a score of an earlier evaluation.
        unranked: Of how many the score cannot rank, and why not, None for none.
        unmeasured: Which classes are never detected, None for none.
        caution: Which categories have too few objects for their scores, None for none.
        starting: What the worker does that is not ready yet and for how long, None where that is
            not known.
        averages_waiting: How many averages are yet to be written or evaluated, none of `waiting`.
        machines: Which scores with a place are not known to be those of the others' machine.
    """

    run: dict[str, Any]
    running: bool
    states: dict[str, int]
    board: list[dict[str, Any]]
    boards: list[dict[str, Any]]
    recent: list[dict[str, Any]]
    queue: list[dict[str, Any]]
    waiting: int
    running_now: list[dict[str, Any]]
    generation: int
    curve: tuple[tuple[int, float], ...]
    pace_seconds: float | None
    patience_left: dict[str, int]
    stop: str | None
    stop_awaits: str | None
    failures: list[dict[str, Any]]
    outdated: int = 0
    unranked: str | None = None
    unmeasured: str | None = None
    caution: str | None = None
    starting: str | None = None
    machines: tuple[str, ...] = ()
    averages_waiting: int = 0

    @property
    def status(self) -> dict[str, Any]:
        """What the daemon last said of itself: empty when it ended in peace, `ended` with an error.

        `ended` is the error, and stands without the others of a run.
        """
        status: dict[str, Any] = self.run["status"]
        return status

    @property
    def queued(self) -> int:
        """How many wait for a worker, averages among them."""
        return self.waiting + self.averages_waiting

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the view `best`."""
        row = next((row for row in self.board if row["rank"] == 1), None)
        return row and {name: row[name] for name in row if name != "rank"}

    @property
    def current(self) -> dict[str, Any] | None:
        """The running evaluation, of several the first; None when there is none."""
        return self.running_now[0] if self.running_now else None

    @property
    def last(self) -> tuple[int, float] | None:
        """Step and score of the last point of the curve."""
        return self.curve[-1] if self.curve else None

    @property
    def queue_seconds(self) -> float | None:
        """Seconds until all that waits is evaluated, None when that cannot be told.

        Nor while nobody evaluates.
        """
        if self.pace_seconds is None or not self.running:
            return None
        workers = max(len(self.running_now), 1)
        left = [one.get("seconds_left", self.pace_seconds) for one in self.running_now]
        return float(sum(left) + self.waiting * self.pace_seconds) / workers

    @property
    def pending_metric(self) -> str | None:
        """What the run will be ranked by once a worker is ready, None where it is by that now."""
        pending = self.status.get("pending_metric") if self.running else None
        ranked = f"{self.run['metric']} ({self.run['mode']})"
        return None if pending == ranked else pending

    @property
    def failed(self) -> int:
        """How many checkpoints failed or are corrupt."""
        return sum(self.states.get(state, 0) for state in ("failed", "corrupt"))

    @property
    def warnings(self) -> list[str]:
        """What does not work as it should, a sentence each, failed checkpoints last."""
        outdated, earlier = self.outdated, self.failed - len(self.failures)
        found = [
            *self.troubles,
            *self.status.get("doubts", ()),
            *self.machines,
            outdated
            and f"{outdated} promoted by an earlier evaluation, which stay until there are new"
            " scores: theirs do not compare",
            self.unmeasured,
            self.caution,
            self.unranked,
            *_outcomes(self.failures),
            earlier > 0 and f"and {earlier} earlier ones, see `history`",
            self.states.get("failed")
            and "once that is mended, `requeue --failed` evaluates what failed anew",
        ]
        return [text for text in found if text]

    @property
    def troubles(self) -> list[str]:
        """What the watcher itself has to cope with, a sentence each."""
        status, found = self.status, []
        if status.get("ended"):
            found.append(
                f"the watcher ended with an error ({status['ended_at']}): {status['ended']}"
            )
        elif status and not self.running:
            found.append(
                f"process {status.get('pid')} wrote this and is not there any more: the watcher was"
                " killed, or runs on another machine"
            )
        said = {**dict.fromkeys(_SAID, ""), **status, "lacking": self._lacking}
        said |= {name: "" for name, usual in _USUAL.items() if said[name] == usual}
        found += [text.format(said[name]) for name, text in _SAID.items() if said[name]]
        found += status.get("changed_files", [])
        if status.get("notice"):
            found.append(f"notice: {status['notice']}")
        return found

    @property
    def _lacking(self) -> str | None:
        """What is promoted, and not there."""
        gone = [row["path"] for row in (*self.board, *self.boards) if row.get("files") is False]
        return f"{missing_text(gone)}; {remedy(self.running)}" if gone else None


def missing_text(paths: Sequence[str]) -> str:
    """Say that promoted checkpoints are not there, each with its folder."""
    names = [f"{Path(path).parent.name}/{Path(path).name}" for path in paths]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"the files of {', '.join(names[:5])}{more} are missing"


def remedy(running: bool) -> str:
    """Say what brings back what is missing in a board's folder."""
    if running:
        return "the watcher brings them back from its pins when it looks next"
    return "start `checkpoint-watcher run` again: it brings them back from its pins"


class Looker:
    """Looks at one run again and again; reads the curve anew only when something was recorded."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._curve: tuple[tuple[int, float], ...] = ()
        self._curve_of: object = None
        self._unranked: str | None = None
        self._unmeasured: str | None = None
        self._caution: str | None = None
        self._machines: tuple[str, ...] = ()

    def look(self, *, recent: int = 12, queue: int | None = 5) -> Look:
        """Look once.

        Args:
            recent: How many rows of the history to read.
            queue: How much of the queue to read, None for all.

        Raises:
            StoreError: the database cannot be read now.
        """
        reader = self._reader
        run = reader.run()
        running = is_there(run["status"].get("pid"))
        states = reader.states()
        live, workers = "pid" in run["status"], run["status"].get("workers") or [run["status"]]
        curve, took = self._follow_curve(run), reader.last_seconds(_PACE_OF)
        return Look(
            run=run,
            running=running,
            states=states,
            board=reader.leaderboard(),
            boards=reader.other_boards(),
            recent=reader.history(recent),
            queue=reader.queue(queue) if states.get("pending") else [],
            waiting=reader.waiting(),
            running_now=[_told(one, reader) for one in workers if one.get("worker") in _AT_WORK],
            generation=reader.generation(),
            curve=curve,
            pace_seconds=statistics.median(took) if took else None,
            patience_left=(run["status"].get("patience_left") or {})
            if live
            else _patience_now(reader, run),
            stop=run["status"].get("stop") if live else reader.last_stop(),
            stop_awaits=run["stopping"].get("awaits"),
            failures=reader.failed(_FAILURES),
            outdated=reader.outdated(),
            unranked=self._unranked,
            unmeasured=self._unmeasured,
            caution=self._caution,
            starting=_starting(run["status"]) if running else None,
            machines=self._machines,
            averages_waiting=reader.averages_waiting(),
        )

    def _follow_curve(self, run: dict[str, Any]) -> tuple[tuple[int, float], ...]:
        # Each evaluation and each new policy is also an event, so its number says when to read.
        basis = (run["metric"], run["fingerprint"], self._reader.last_event())
        if basis != self._curve_of:
            self._curve, self._curve_of = tuple(self._reader.curve()), basis
            self._unranked = unranked_text(*self._reader.unranked())
            self._unmeasured = self._reader.unmeasured()
            self._caution = queries.caution(self._reader)
            placed = queries.placed_evaluations(self._reader)
            self._machines = tuple(one.sentence for one in remarks(self._reader, placed))
        return self._curve


def unranked_text(count: int, latest: dict[str, Any] | None) -> str | None:
    """Say of how many the score cannot rank and why, from what `Reader.unranked` returns."""
    if latest is None:
        return None
    said = latest["reason"] or "its score cannot rank"
    others = f"; so it is with {count - 1} more" if count > 1 else ""
    return f"{latest['checkpoint']}: {said}{others}"


def as_data(look: Look, model_dir: Path) -> dict[str, Any]:
    """Return a look as plain data with stable names, for `status --json`."""
    run = look.run
    return {
        **{name: run[name] for name in ("name", "uuid", "metric", "mode", "status")},
        "model_dir": str(model_dir),
        "running": look.running,
        "states": look.states,
        "generation": look.generation,
        "evaluation": look.current,
        "evaluations": look.running_now,
        "hosts": (look.status.get("hosts") or []) if look.running else [],
        "waiting": look.waiting,
        "averages_waiting": look.averages_waiting,
        "queue": look.queue,
        "queue_seconds_left": look.queue_seconds,
        "best": look.best,
        "leaderboard": look.board,
        "boards": look.boards,
        "last": look.last and {"global_step": look.last[0], "score": look.last[1]},
        "patience_left": look.patience_left,
        "stop": look.stop,
        "stop_awaits": look.stop_awaits,
        "warnings": look.warnings,
    }


def is_there(pid: object) -> bool:
    """Tell whether the process that a status names is there."""
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def _starting(status: dict[str, Any]) -> str | None:
    phase, at = status.get("phase"), status.get("phase_at")
    if not phase or not at:
        return None
    seconds = max(0, int(time.time() - datetime.fromisoformat(at).timestamp()))
    return f"starting: {phase}, {seconds} s"


def _told(worker: dict[str, Any], reader: Reader) -> dict[str, Any]:
    name, device = str(worker.get("checkpoint")), worker.get("on")
    told: dict[str, Any] = {
        "checkpoint": name,
        "global_step": (reader.find(name) or {}).get("global_step"),
        # Several GPUs may be of one name, so they are told by their number.
        "device": worker.get("device") if device in (None, "cpu") else device,
    }
    told |= {
        field: worker[field] for field in ("done", "total", "images_per_second") if field in worker
    }
    if worker.get("worker") == "proving":
        told["proving"] = True
    if rate := told.get("images_per_second"):
        told["seconds_left"] = round((told["total"] - told["done"]) / rate, 1)
    return told


def _outcomes(failures: list[dict[str, Any]]) -> list[str]:
    """Say what failed, those of one reason together."""
    names: dict[str, list[str]] = {}
    for row in failures:
        how = "is corrupt" if row["state"] == "corrupt" else "failed"
        said = f"{how}: {row['reason'] or 'no reason was recorded'}"
        names.setdefault(said, []).append(row["checkpoint"])
    return [f"{', '.join(those)} {said}" for said, those in names.items()]


def _patience_now(reader: Reader, run: dict[str, Any]) -> dict[str, int]:
    """Return what is left of the patience when no daemon says so, by the run's last settings."""
    # These only here: a daemon says it by itself.
    from watcher.config import make_settings
    from watcher.config.policies import stop_policy
    from watcher.decision.stop import patience_left
    from watcher.decision.walk import walk
    from watcher.errors import ConfigError

    values = run.get("settings") or {}
    if not values or (values.get("patience"), values.get("patience_steps")) == (None, None):
        return {}
    try:
        settings = make_settings(values, dict.fromkeys(values, "the run's database"))
    except ConfigError:  # of a version with other rules
        return {}
    policy = stop_policy(
        settings.ranking, settings.stopping, reader.resumed_step(), reader.generation()
    )
    return patience_left(walk([*reader.scored(), *reader.not_finite()], policy), policy)
