"""The queue: which checkpoints wait to be evaluated, and which of them a worker holds.

States: `pending -> leased -> scored`, and the other ends `untrained`, `corrupt`, `skipped`,
`failed`, `missed`. A lease has an expiry and a token; an outcome reported without them is refused.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Any

from watcher.decision.board import KEPT_BOARD
from watcher.errors import StoreError
from watcher.store.checkpoints import ASKED_ANEW, Checkpoints
from watcher.store.rows import MEASURED, QUEUE_ORDER
from watcher.types import Lease, Queued


class LeaseLost(StoreError):
    """Raised when an outcome comes from a worker that no longer holds the lease."""


class Queue(Checkpoints):
    """Verbs on those of the checkpoints that wait or are held. Each is one transaction."""

    # -- leased

    def lease_next(
        self,
        now: float,
        lease_seconds: float,
        *,
        untried: bool = False,
        without: Collection[int] = (),
        after: Sequence[int] = (),
    ) -> Lease | None:
        """Lease the next pending checkpoint in the order of `QUEUE_ORDER`, None for none.

        Args:
            now: Seconds since the epoch.
            lease_seconds: How long the lease is held without being renewed.
            untried: Leave those out of which an evaluation broke off before.
            without: Ids to leave out.
            after: Ids that come after all others, in this order.
        """
        place = "(SELECT key FROM json_each(?) WHERE value = all_checkpoints.id)"
        row = self._db.one(
            "SELECT id, name, global_step, pin_path, attempts FROM all_checkpoints"
            " WHERE run_id = ? AND state = 'pending' AND pin_path IS NOT NULL"
            " AND not_before_seconds <= ? AND attempts <= ?"
            " AND id NOT IN (SELECT value FROM json_each(?))"
            f" ORDER BY {f'coalesce({place}, -1),' if after else ''} {QUEUE_ORDER} LIMIT 1",
            [
                *(self._run_id, now, 0 if untried else sys.maxsize, json.dumps(list(without))),
                *([json.dumps(after)] if after else []),
            ],
        )
        if row is None:
            return None
        lease = self._lease(row, row["attempts"] + 1)
        with self._db.write():
            self._db.run(
                "UPDATE all_checkpoints SET state = 'leased', lease_token = ?,"
                " lease_expires_at_seconds = ?, attempts = attempts + 1 WHERE id = ?",
                [lease.token, now + lease_seconds, row["id"]],
            )
        return lease

    def _lease(self, row: dict[str, Any], attempt: int) -> Lease:
        prefix, token = self._db.pin_prefix(row["pin_path"]), secrets.token_hex(8)
        return Lease(row["id"], token, row["name"], row["global_step"] or 0, prefix, attempt)

    def known_good(self) -> Lease | None:
        """Return a checkpoint that was scored, to try a device with; None when none has a pin.

        It is not leased: whatever is answered for it is refused.
        """
        row = self._db.one(
            "SELECT c.id, c.name, c.global_step, c.pin_path FROM all_checkpoints c"
            " JOIN runs r ON r.id = c.run_id"
            " JOIN evaluations e ON e.checkpoint_id = c.id AND e.fingerprint = r.fingerprint"
            " WHERE c.run_id = ? AND c.state = 'scored' AND c.pin_path IS NOT NULL"
            " ORDER BY c.id DESC LIMIT 1",
            [self._run_id],
        )
        return self._lease(row, 0) if row else None

    def renew(self, lease: Lease, now: float, lease_seconds: float) -> None:
        """Move the expiry of a held lease; raises LeaseLost when it is no longer held."""
        with self._db.write():
            self.require_held(lease, now)
            until = now + lease_seconds
            self._db.update("all_checkpoints", lease.checkpoint_id, lease_expires_at_seconds=until)

    def return_expired(self, now: float) -> dict[int, str]:
        """Put checkpoints whose lease ran out back into the queue; returns id to name."""
        return self._return("lease_expires_at_seconds <= ?", [now], "its lease expired", now)

    def return_all(self, now: float) -> dict[int, str]:
        """Put every leased checkpoint back: for the start, when no worker of ours can live.

        Delays before another attempt end too: the clock may have been set since they began.
        """
        with self._db.write():
            self._db.run(
                "UPDATE all_checkpoints SET not_before_seconds = 0 WHERE run_id = ?", [self._run_id]
            )
        return self._return("1", [], "the daemon that evaluated it is gone", now)

    def put_off(self, checkpoint_id: int, until: float) -> None:
        """Lease out a pending checkpoint no earlier than at a time, in seconds since the epoch."""
        with self._db.write():
            self._db.run(
                "UPDATE all_checkpoints SET not_before_seconds = ? WHERE id = ?"
                " AND state = 'pending'",
                [until, checkpoint_id],
            )

    def shift_times(self, seconds: float) -> None:
        """Move leases and delays along with a clock that was set, so that they last as long."""
        with self._db.write():
            self._db.run(
                "UPDATE all_checkpoints SET not_before_seconds = not_before_seconds + ?,"
                " lease_expires_at_seconds = lease_expires_at_seconds + ?"
                " WHERE run_id = ? AND state IN ('pending', 'leased')",
                [seconds, seconds, self._run_id],
            )

    def _return(self, where: str, arguments: list[Any], reason: str, now: float) -> dict[int, str]:
        rows = self._db.all(
            "SELECT id, name FROM all_checkpoints"
            f" WHERE run_id = ? AND state = 'leased' AND {where}",
            [self._run_id, *arguments],
        )
        for row in rows:
            with self._db.write():
                self._to_pending(row["id"])
                self._db.event(now, "returned", reason, row["name"])
        return {row["id"]: row["name"] for row in rows}

    def give_back(self, lease: Lease, now: float) -> None:
        """Return a lease unused, as if it had never been taken: no attempt is counted."""
        with self._db.write():
            self.require_held(lease, now)
            self._to_pending(lease.checkpoint_id)
            self._uncount(lease.checkpoint_id, 1)

    def retry_later(
        self,
        lease: Lease,
        reason: str,
        now: float,
        delay_seconds: float,
        *,
        counted: bool = True,
    ) -> None:
        """Put a checkpoint whose evaluation broke off back into the queue, after a delay.

        With `counted` false that was no attempt.
        """
        with self._db.write():
            self.require_held(lease, now)
            self._to_pending(lease.checkpoint_id, reason, now + delay_seconds)
            if not counted:
                self._uncount(lease.checkpoint_id, 1)
            self._db.event(now, "retry", reason, lease.name)

    def forgive(self, counted: Mapping[int, int], reason: str, now: float) -> list[str]:
        """Take attempts back that were no fault of the checkpoints, and note that in the diary.

        Those that failed by them wait again, as long as they have a pin.

        Args:
            counted: Checkpoint id to how many attempts to take back.
            reason: What is at fault.
            now: Seconds since the epoch.

        Returns:
            The names of those that have all their attempts again.
        """
        names = []
        with self._db.write():
            self._db.event(now, "held_back", reason)
            for checkpoint_id, times in counted.items():
                name = self._db.value(
                    "SELECT name FROM all_checkpoints WHERE id = ?"
                    " AND (state IN ('pending', 'leased')"
                    " OR (state = 'failed' AND may_pass AND pin_path IS NOT NULL))",
                    [checkpoint_id],
                )
                if name is None:
                    continue
                self._uncount(checkpoint_id, times)
                self._db.run(
                    "UPDATE all_checkpoints SET state = 'pending', not_before_seconds = 0"
                    " WHERE id = ? AND state != 'leased'",
                    [checkpoint_id],
                )
                names.append(name)
        return names

    def _uncount(self, checkpoint_id: int, attempts: int) -> None:
        self._db.run(
            "UPDATE all_checkpoints SET attempts = max(attempts - ?, 0) WHERE id = ?",
            [attempts, checkpoint_id],
        )

    def _end_lease(self, checkpoint_id: int, **columns: Any) -> None:
        free = {"lease_token": None, "lease_expires_at_seconds": None}
        self._db.update("all_checkpoints", checkpoint_id, **columns, **free)

    def _to_pending(
        self, checkpoint_id: int, reason: str | None = None, not_before: float = 0.0
    ) -> None:
        later = {"reason": reason, "not_before_seconds": not_before}
        self._end_lease(checkpoint_id, state="pending", **later)

    def require_held(self, lease: Lease, now: float) -> None:
        """Raise LeaseLost unless this lease is the one that counts; call it inside `write()`."""
        held = self._db.value(
            "SELECT 1 FROM all_checkpoints WHERE id = ? AND state = 'leased' AND lease_token = ?"
            " AND lease_expires_at_seconds > ?",
            [lease.checkpoint_id, lease.token, now],
        )
        if not held:
            raise LeaseLost(f"the lease of {lease.name} is no longer held: its answer is refused")

    # -- ended

    def finish(self, lease: Lease, state: str, reason: str | None) -> None:
        """End a held lease in a final state; call it inside `write()`."""
        self._end_lease(lease.checkpoint_id, state=state, reason=reason)

    def record_failure(
        self, lease: Lease, reason: str, now: float, *, may_pass: bool = False
    ) -> None:
        """Record that a checkpoint will not be scored, and why; ends the lease.

        One that was to be measured again, and has a score in the present evaluation, keeps that:
        it is as true as it was, and it may hold a place in `best/`. With `may_pass` another attempt
        may end otherwise, once something was mended: its pin stays.
        """
        measured = self._db.value(
            f"SELECT 1 FROM all_checkpoints c WHERE c.id = ? AND {MEASURED}", [lease.checkpoint_id]
        )
        with self._db.write():
            self.require_held(lease, now)
            if measured:
                reason = f"its earlier score stands, since measuring it anew failed: {reason}"
            self.finish(lease, "scored" if measured else "failed", reason)
            self._db.update("all_checkpoints", lease.checkpoint_id, may_pass=may_pass)
            self._db.event(now, "failed", reason, lease.name)

    def waiting(self, *, counts_saves: bool) -> tuple[list[Queued], int, int]:
        """Return what a queue policy decides on.

        Args:
            counts_saves: The number in a checkpoint's name says which save it is; else its place
                among those of its generation does, in the order found.

        Returns:
            The pending checkpoints, but for those of a leaderboard that are measured anew and those
            that a person asked for; the step that was evaluated last before the first of them (0
            for none); and the bytes of the pin that is being evaluated.
        """
        place = "row_number() OVER (PARTITION BY generation ORDER BY id)"
        save = "save_counter" if counts_saves else place
        rows = self._db.all(
            "SELECT checkpoint_id, name, save, global_step, size_bytes FROM"
            f" (SELECT id AS checkpoint_id, name, {save} AS save, state,"
            " coalesce(global_step, 0) AS global_step, coalesce(size_bytes, 0) AS size_bytes,"
            " reason IS ? AS asked FROM checkpoints WHERE run_id = ?)"
            " WHERE state = 'pending' AND NOT asked AND checkpoint_id NOT IN"
            " (SELECT checkpoint_id FROM promotions WHERE evicted_at IS NULL AND board != ?)"
            " ORDER BY checkpoint_id",
            [ASKED_ANEW, self._run_id, KEPT_BOARD],
        )
        queued = [Queued(**row) for row in rows]
        first = min((one.global_step for one in queued), default=0)
        before = self._db.value(
            "SELECT max(global_step) FROM checkpoints WHERE run_id = ?"
            " AND state IN ('scored', 'leased') AND global_step <= ?",
            [self._run_id, first],
        )
        held = self._db.value(
            "SELECT sum(size_bytes) FROM checkpoints WHERE run_id = ? AND state = 'leased'",
            [self._run_id],
        )
        return queued, before or 0, held or 0

    def skip(self, checkpoint_id: int, reason: str, now: float) -> None:
        """Record a pending checkpoint as `skipped`; nothing happens to one in another state.

        One that was to be measured again is `scored` as before. The pin stays: it may be kept for
        another reason.
        """
        row = self._db.one(
            f"SELECT c.name, {MEASURED} AS measured FROM all_checkpoints c"
            " WHERE c.id = ? AND c.state = 'pending'",
            [checkpoint_id],
        )
        if row is None:
            return
        with self._db.write():
            state = "scored" if row["measured"] else "skipped"
            self._db.update("all_checkpoints", checkpoint_id, state=state, reason=reason)
            self._db.event(now, "skipped", reason, row["name"])

    # -- looked at

    def waiting_ids(self) -> set[int]:
        """Return the ids of the checkpoints whose evaluation is to come: pending or leased."""
        rows = self._db.all(
            "SELECT id FROM all_checkpoints WHERE run_id = ? AND state IN ('pending', 'leased')",
            [self._run_id],
        )
        return {row["id"] for row in rows}

    def to_try_again(self, max_bytes: int | None) -> set[int]:
        """Return which of those that failed may be evaluated after all, once something is mended.

        Args:
            max_bytes: What pins may hold together, None for no limit. What waits comes first, then
                the newest.
        """
        rows = self._db.all(
            "SELECT id, state, coalesce(size_bytes, 0) AS size FROM all_checkpoints"
            " WHERE run_id = ? AND pin_path IS NOT NULL"
            " AND (state IN ('pending', 'leased') OR (state = 'failed' AND may_pass))"
            " ORDER BY state = 'failed', global_step DESC, id DESC",
            [self._run_id],
        )
        sizes = accumulate(row["size"] for row in rows)
        return {
            row["id"]
            for row, together in zip(rows, sizes, strict=True)
            if row["state"] == "failed" and (max_bytes is None or together <= max_bytes)
        }

    def open_count(self) -> int:
        """Return how many checkpoints still have work to do, averages to be written among them."""
        sql = "SELECT count(*) FROM average_jobs WHERE run_id = ? AND state = 'waiting'"
        return len(self.waiting_ids()) + int(self._db.value(sql, [self._run_id]))

    def next_due(self, *, untried: bool = False) -> float | None:
        """Return when the earliest pending checkpoint may be leased, in seconds since the epoch.

        `untried` as for `lease_next`.
        """
        due: float | None = self._db.value(
            "SELECT min(not_before_seconds) FROM all_checkpoints WHERE run_id = ?"
            " AND state = 'pending' AND pin_path IS NOT NULL AND attempts <= ?",
            [self._run_id, 0 if untried else sys.maxsize],
        )
        return due
