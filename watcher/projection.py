"""Projection: make `best/`, the pins and the sentinel show what the ledger says.

Wires rank, promote, stop and pin release. The same call runs at the start, after each evaluation
and at every rescan, so a crash, an edit by hand and a new score are the same case.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from watcher import promote, stop
from watcher.config import Settings
from watcher.data import Leader
from watcher.errors import PinError
from watcher.pin import release
from watcher.rank import RankPolicy, name_leaders, rank
from watcher.stop import StopDecision, StopPolicy, should_stop
from watcher.store import PINS_NAME, Store, iso

_log = structlog.get_logger(__name__)


class Projector:
    """The last three stages of one run: ledger to board to `best/` and sentinel."""

    def __init__(self, settings: Settings, store: Store, run_name: str) -> None:
        self._settings = settings
        self._store = store
        self._run_name = run_name
        self._said: set[str] = set()
        self.problem: str | None = None
        self.decision: StopDecision | None = None

    def update(self, now: float) -> None:
        """Bring everything up to date; what cannot be written is tried again at the next call.

        Raises:
            StoreError: the database cannot be read or written.
        """
        self.problem = None
        try:
            self._update_best(now)
            self._update_sentinel(now)
        except (PinError, OSError) as error:
            self.problem = str(error)

    def _update_best(self, now: float) -> None:
        ledger, settings = self._store.ledger, self._settings
        if ledger.awaiting_new_score():
            # The evaluation changed. What is promoted stays until it is measured anew.
            return
        rows = [row for row in ledger.scored() if row.pin is not None]
        ranked = rank(rows, RankPolicy(mode=settings.mode, top_k=settings.top_k))
        placed = ledger.placements()
        foreign = promote.foreign_names(settings.best_path, placed.values())
        leaders = name_leaders(ranked, placed, foreign)
        ledger.place(leaders)
        placed = ledger.placements()
        text = promote.BoardText(
            self._run_name, self._store.run_uuid, settings.metric, settings.mode
        )
        metrics = ledger.metrics(leader.row.evaluation_id for leader in leaders)
        done = promote.project(settings.best_path, leaders, placed.values(), text, metrics)
        if done.unknown:
            self._say_once("best/ holds files that are not ours", files=", ".join(done.unknown))
        if ledger.record_board(leaders, done.paths, settings.metric, now) and leaders:
            best = leaders[0]
            _log.info("best", checkpoint=best.name, score=best.row.score, of=len(rows))
        ledger.unplace(done.evicted)
        self._release_pins(leaders)

    def _release_pins(self, leaders: list[Leader]) -> None:
        promoted = {leader.row.checkpoint_id for leader in leaders}
        pins_dir = self._settings.state_path / PINS_NAME
        for row in self._store.queue.pinned():
            if row["id"] not in promoted and row["state"] not in ("pending", "leased"):
                self._store.queue.forget_pin(row["id"])
                release(row["prefix"], pins_dir)

    def _update_sentinel(self, now: float) -> None:
        settings, path = self._settings, self._settings.sentinel_path
        policy = StopPolicy(
            mode=settings.mode,
            patience=settings.patience,
            min_delta=settings.min_delta,
            min_steps=settings.min_steps,
        )
        self.decision = should_stop(self._store.ledger.scored(), policy)
        present = stop.read_sentinel(path)
        ours = present is not None and present.get("run") == self._store.run_uuid
        if self.decision is None:
            if ours:
                path.unlink(missing_ok=True)
                self._store.ledger.add_event(now, "stop_withdrawn", "settings changed: go on")
            elif present is not None:
                self._say_once("a sentinel of another run lies here, it is left alone", path=path)
            return
        content = stop.sentinel_content(
            self.decision,
            run=self._store.run_uuid,
            metric=settings.metric,
            mode=settings.mode,
            created_at=iso(now),
        )
        if not ours or not _same_decision(present or {}, content):
            stop.write_sentinel(path, content)
            self._store.ledger.add_event(now, "stop", self.decision.message)
            _log.info("early stop", reason=self.decision.message, sentinel=str(path))

    def _say_once(self, message: str, **details: str | Path) -> None:
        key = message + str(details)
        if key not in self._said:
            self._said.add(key)
            _log.warning(message, **{name: str(value) for name, value in details.items()})


def _same_decision(present: dict[str, object], content: dict[str, object]) -> bool:
    moving = ("created_at", "version")
    return all(present.get(key) == value for key, value in content.items() if key not in moving)
