"""Projection: make `best/`, the pins and the sentinel show what the ledger says.

Wires rank, promote, stop and pin release. The same call runs at the start, after each evaluation
and at every rescan, so a crash, an edit by hand and a new score are the same case.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from watcher import promote, stop
from watcher.config import Settings
from watcher.data import Leader, ScoredCheckpoint
from watcher.errors import LeaderLost, PinError
from watcher.pin import Verified, release
from watcher.rank import RankPolicy, name_leaders, rank
from watcher.stop import StopDecision, StopPolicy, should_stop
from watcher.store import PINS_NAME, Store, iso

_log = structlog.get_logger(__name__)


class Projector:
    """The last three stages of one run: ledger to board to `best/` and sentinel."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        run_name: str,
        *,
        verified: Verified | None = None,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._store = store
        self._run_name = run_name
        self._steady = steady
        self._said: set[str] = set()
        self._left: dict[str, float] = {}
        self._verified: Verified = set() if verified is None else verified
        self._rows: list[ScoredCheckpoint] = []  # by evaluation id, those of one fingerprint
        self._rows_of: str | None = None
        self.problem: str | None = None
        self.decision: StopDecision | None = None

    @property
    def evict_at(self) -> float:
        """Steady time at which files in `best/` are due to be evicted, infinite when none are."""
        since = min(self._left.values(), default=math.inf)
        return since + self._settings.evict_seconds

    def update(self, now: float) -> None:
        """Bring everything up to date; what cannot be written is tried again at the next call.

        Raises:
            StoreError: the database cannot be read or written.
        """
        self.problem = None
        try:
            while not self._update_best(now):
                pass
            self._update_sentinel(now)
        except (PinError, OSError) as error:
            self.problem = str(error)

    def _update_best(self, now: float) -> bool:
        """Bring `best/` up to date; False when a leader was lost and the board has to be anew."""
        ledger, settings = self._store.ledger, self._settings
        if ledger.awaiting_new_score():
            # The evaluation changed. What is promoted stays until it is measured anew.
            self._left.clear()
            return True
        rows = ledger.scored_and_pinned()
        ranked = rank(rows, RankPolicy(mode=settings.mode, top_k=settings.top_k))
        placed = ledger.placements()
        foreign = promote.foreign_names(settings.best_path, placed.values())
        leaders = name_leaders(ranked, placed, foreign)
        if any(leader.row.sha256 not in placed for leader in leaders):
            ledger.place(leaders)
            placed = ledger.placements()
        try:
            done = self._project(leaders, set(placed.values()))
        except LeaderLost as error:
            _log.error("promoted checkpoint lost", reason=error.message)
            self._store.queue.forget_pin(error.checkpoint_id)
            ledger.add_event(now, "lost", error.message)
            return False
        if done.unknown:
            self._say_once("best/ holds files that are not ours", files=", ".join(done.unknown))
        if ledger.record_board(leaders, done.paths, settings.metric, now) and leaders:
            best = leaders[0]
            _log.info("best", checkpoint=best.name, score=best.row.score, of=len(rows))
        if done.evicted:
            ledger.unplace(done.evicted)
        self._release_pins(leaders)
        return True

    def _project(self, leaders: list[Leader], placed: set[str]) -> promote.Projection:
        """Change the files. Who has read a name before it left has `evict_seconds` to open it."""
        settings = self._settings
        text = promote.BoardText(
            self._run_name,
            self._store.run_uuid,
            settings.metric,
            settings.mode,
            self._store.ledger.fingerprint(),
        )
        oldest = self._steady() - settings.evict_seconds
        done = promote.project(
            settings.best_path,
            leaders,
            placed,
            text,
            self._store.ledger.metrics(leader.row.evaluation_id for leader in leaders),
            evict={name for name, left in self._left.items() if left <= oldest},
            verified=self._verified,
        )
        # Counted from now on: a moment ago the state files may still have named them.
        present = self._steady()
        self._left = {name: self._left.get(name, present) for name in done.leaving}
        return done

    def _release_pins(self, leaders: list[Leader]) -> None:
        promoted = {leader.row.checkpoint_id for leader in leaders}
        pins_dir = self._settings.state_path / PINS_NAME
        kept = set()
        for row in self._store.queue.pinned():
            if row["id"] not in promoted and row["state"] not in ("pending", "leased"):
                self._store.queue.forget_pin(row["id"])
                release(row["prefix"], pins_dir)
            else:
                kept.add(row["sha256"])
        self._verified -= {seen for seen in self._verified if seen[0] not in kept}

    def _update_sentinel(self, now: float) -> None:
        settings, path = self._settings, self._settings.sentinel_path
        policy = StopPolicy(
            mode=settings.mode,
            patience=settings.patience,
            min_delta=settings.min_delta,
            min_steps=settings.min_steps,
        )
        self._decide(policy)
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

    def _decide(self, policy: StopPolicy) -> None:
        """Decide anew when there are new scores; a long run is not read again at each look."""
        ledger = self._store.ledger
        if policy.patience is None:
            self.decision = None
            return
        if self._rows_of != ledger.fingerprint():
            self._rows, self._rows_of = [], ledger.fingerprint()
        last = self._rows[-1].evaluation_id if self._rows else 0
        new = sorted(ledger.scored(after=last), key=lambda row: row.evaluation_id)
        self._rows += new
        if new or not self._rows:
            self.decision = should_stop(self._rows, policy)

    def _say_once(self, message: str, **details: str | Path) -> None:
        key = message + str(details)
        if key not in self._said:
            self._said.add(key)
            _log.warning(message, **{name: str(value) for name, value in details.items()})


def _same_decision(present: dict[str, object], content: dict[str, object]) -> bool:
    moving = ("created_at", "version")
    return all(present.get(key) == value for key, value in content.items() if key not in moving)
