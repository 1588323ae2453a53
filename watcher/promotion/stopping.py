"""Stopping: the effect of `stop`. The sentinel lies there while the rows say so, else it does not.

Once another evaluation counts, the scores of the one before decide until what waits is measured
anew: none of the two are mixed, and no stop is withdrawn for scores that are not there yet.

A long run is not walked again at each look: rows that come in step order are added to the walk,
and only a row that comes late, or other settings, walk anew.
"""

from __future__ import annotations

import contextlib
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from watcher.config.policies import stop_policy
from watcher.config.ranking import RankingSettings
from watcher.config.stopping import StoppingSettings
from watcher.decision.stop import StopDecision, decide, is_on, patience_left, undone_between
from watcher.decision.walk import StopPolicy, Walk, newest_life, walk
from watcher.promotion.sentinel import (
    is_sentinel,
    read_sentinel,
    same_decision,
    sentinel_content,
    write_sentinel,
)
from watcher.store import Store, iso
from watcher.types import ScoredCheckpoint

_log = structlog.get_logger(__name__)

_OTHER_SCORES = "the evaluation changed, and its scores do not say stop"
_NOT_ANY_MORE = "the rows do not say stop any more"


class Stopping:
    """Decides for one run, and writes or withdraws its sentinel.

    Attributes:
        decision: Why training should stop as of now, None to go on.
        awaits: The checkpoint whose score may yet undo a decision, which waits for it. Or None.
        patience_left: `evaluations` and `steps` that may still pass without improvement.
        problem: Why the decision cannot be told, None where it is.
    """

    def __init__(
        self, ranking: RankingSettings, stopping: StoppingSettings, sentinel: Path, store: Store
    ) -> None:
        self._ranking, self._rules, self._sentinel = ranking, stopping, sentinel
        self._store = store
        # The walk so far, what it rests on, and the last evaluation and failures it has seen.
        self._walk: Walk | None = None
        self._basis: tuple[object, ...] = ()
        self._last = 0
        self._odd: frozenset[int] = frozenset()
        self._foreign_told = self._in_the_way_told = False
        self._held_told: str | None = None
        self.decision: StopDecision | None = None
        self.awaits: str | None = None
        self.patience_left: dict[str, int] = {}
        self.problem: str | None = None

    def update(self, now: float, best: ScoredCheckpoint | None) -> None:
        """Decide, and make the sentinel say so.

        Args:
            now: Seconds since the epoch.
            best: The first place of the main board, None while that is empty.

        Raises:
            OSError: the sentinel could not be written or removed.
            StoreError: the database cannot be read or written.
        """
        ledger, path = self._store.ledger, self._sentinel
        self._leave_earlier_place()
        counts, before = ledger.fingerprint(), ledger.stopped_by()
        by = before if before != counts and before and ledger.waits_anew() else counts
        self.decision = self._decide(now, by)
        self._wait_for_one_between()
        reason = self.decision.reason if self.decision else None
        ledger.set_stopping(reason, self.patience_left, by, path, self.awaits)
        present = read_sentinel(path)
        ours = present is not None and present.get("run") == self._store.run_uuid
        in_the_way = self._is_in_the_way(present, now)
        if self.decision is None:
            self._withdraw(now, _OTHER_SCORES if before and before != by else _NOT_ANY_MORE, ours)
            if present is not None and not ours and not in_the_way:
                self._tell_foreign()
        elif ours and by != counts:
            self._tell_held(counts)
        elif not in_the_way:
            content = sentinel_content(
                self.decision,
                run=self._store.run_uuid,
                metric=self._ranking.metric,
                mode=self._ranking.better,
                created_at=iso(now),
                best=best,
            )
            if not ours or not same_decision(present, content):
                write_sentinel(path, content)
                ledger.add_event(now, "stop", self.decision.message)
                _log.info("early stop", reason=self.decision.message, sentinel=str(path))

    def _withdraw(self, now: float, why: str, ours: bool) -> None:
        """Go on. Somebody may have deleted the sentinel; what it said is withdrawn all the same."""
        if not ours and not self._store.ledger.last_stop():
            return
        if ours:
            self._sentinel.unlink(missing_ok=True)
        self._store.ledger.add_event(now, "stop_withdrawn", f"{why}: go on")
        _log.info("early stop withdrawn", sentinel=str(self._sentinel), reason=why)

    def _tell_foreign(self) -> None:
        if not self._foreign_told:
            self._foreign_told = True
            _log.warning(
                "a sentinel of another run lies here, it is left alone", path=str(self._sentinel)
            )

    def _leave_earlier_place(self) -> None:
        """Take our own sentinel away from where it was to be at an earlier start."""
        earlier = self._store.ledger.sentinel_before()
        if earlier is None or earlier == self._sentinel:
            return
        present = read_sentinel(earlier)
        if present is not None and present.get("run") == self._store.run_uuid:
            with contextlib.suppress(OSError):  # nobody is to look there any more
                earlier.unlink(missing_ok=True)
            _log.info(
                "early-stop file of before taken away", was=str(earlier), now=str(self._sentinel)
            )

    def _is_in_the_way(self, present: dict[str, Any] | None, now: float) -> bool:
        """Tell whether something lies there that is no sentinel: it is somebody's, and stays."""
        self.problem = None
        if present is None or is_sentinel(present):
            self._in_the_way_told = False
            return False
        said = f"{self._sentinel} is no early-stop file, so it is left as it is"
        if not self._in_the_way_told:
            self._in_the_way_told = True
            self._store.ledger.add_event(now, "sentinel_in_the_way", said)
            _log.warning(
                "what lies where the early-stop file belongs is none, and is left as it is: move it"
                " away, or set --sentinel to another file",
                path=str(self._sentinel),
            )
        if self.decision:
            self.problem = (
                f"the early stop cannot be told: {said}; move it away, or set --sentinel to another"
            )
        return True

    def _tell_held(self, fingerprint: str | None) -> None:
        if self._held_told != fingerprint:
            self._held_told = fingerprint
            _log.warning(
                "the early stop was decided by another evaluation: it stands until the checkpoints"
                " that wait are measured anew, then their scores alone decide"
            )

    def _decide(self, now: float, fingerprint: str | None) -> StopDecision | None:
        ledger = self._store.ledger
        policy = stop_policy(self._ranking, self._rules, ledger.resumed_step(), ledger.generation())
        if not is_on(policy):
            self.patience_left = {}
            return None
        begun = datetime.fromisoformat(ledger.begun_at()).timestamp()
        walked = self._follow(policy, fingerprint)
        self.patience_left = patience_left(walked, policy)
        return decide(walked, policy, hours=(now - begun) / 3600)

    def _wait_for_one_between(self) -> None:
        """Put a decision off while a checkpoint before the last, tried again or slower, waits."""
        between = undone_between(self.decision, self._walk) if self._walk else None
        before, self.awaits = self.awaits, self._store.ledger.awaited(between)
        if self.awaits is None:
            return
        self.decision = None
        if self.awaits != before:
            _log.info("an early stop waits for an earlier checkpoint", checkpoint=self.awaits)

    def _follow(self, policy: StopPolicy, fingerprint: str | None) -> Walk:
        """Return the walk over the newest life, going on from where it was if that is possible."""
        ledger = self._store.ledger
        basis = (policy, fingerprint, ledger.revision)
        failed = ledger.not_finite() if policy.max_not_finite else []
        odd = {row.checkpoint_id: row for row in failed}
        if self._walk is None or basis != self._basis or not self._odd <= odd.keys():
            rows = ledger.scored(fingerprint=fingerprint)
            self._walk = walk([*rows, *odd.values()], policy)
        else:
            rows = ledger.scored(self._last, fingerprint)
            new = newest_life([*rows, *(odd[id_] for id_ in odd.keys() - self._odd)], policy)
            if all(self._walk.follows(row) for row in new[:1]):
                for row in new:
                    self._walk.add(row)
            else:
                self._walk = walk([*ledger.scored(fingerprint=fingerprint), *odd.values()], policy)
        self._basis, self._odd = basis, frozenset(odd)
        self._last = max([self._last, *(row.evaluation_id for row in rows)])
        return self._walk
