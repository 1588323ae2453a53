"""The queue: every checkpoint ever seen, and which of them a worker holds.

States: `pending -> leased -> scored`, and the other ends `untrained`, `corrupt`, `skipped`,
`failed`, `missed`. A lease has an expiry and a token; an outcome reported without them is refused.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Any

from watcher.data import FoundCheckpoint, Lease, Pin, Queued
from watcher.database_file import iso
from watcher.errors import StoreError
from watcher.store.database import RunDatabase

UNTRAINED_REASON = "saved before the model was built: it holds no model variables"


# Of files whose content has no row: for run, name, signature and state.
_THESE_FILES = "run_id = ? AND name = ? AND signature = ? AND state = ? AND sha256 IS NULL"


class LeaseLost(StoreError):
    """Raised when an outcome comes from a worker that no longer holds the lease."""


class Queue:
    """Verbs on the `checkpoints` table. Each is one transaction and may be repeated."""

    def __init__(self, database: RunDatabase) -> None:
        self._db = database
        self._run_id = database.run_id

    # -- discovered

    def known(self, sha256: str) -> bool:
        """True when a checkpoint of this content has a row, in whatever state."""
        found = self._db.one(
            "SELECT 1 FROM checkpoints WHERE run_id = ? AND sha256 = ?", [self._run_id, sha256]
        )
        return found is not None

    def has_pin(self, sha256: str) -> bool:
        """True when the checkpoint of this content has a pin that is still needed."""
        found = self._db.one(
            "SELECT 1 FROM checkpoints WHERE run_id = ? AND sha256 = ? AND pin_path IS NOT NULL",
            [self._run_id, sha256],
        )
        return found is not None

    def last_save_counter(self) -> int | None:
        """Return the save counter of the checkpoint seen last, None for an empty run.

        Rows are in the order in which checkpoints were seen, but for those of files that were
        damaged or could not be read: they come after as long as that was waited for.
        """
        row = self._db.one(
            "SELECT max(save_counter) AS last FROM checkpoints WHERE run_id = ? AND id >="
            " coalesce((SELECT max(id) FROM checkpoints WHERE run_id = ?"
            " AND (sha256 IS NOT NULL OR signature IS NULL)), 0)",
            [self._run_id, self._run_id],
        )
        return row["last"] if row else None

    def record_pin(self, checkpoint: FoundCheckpoint, pin: Pin, now: float) -> str:
        """Record a pinned checkpoint as `pending`, or as `untrained` when it holds no model.

        Returns:
            The state. Recording the same content again changes nothing.
        """
        untrained = pin.model_variables == 0
        state = "untrained" if untrained else "pending"
        columns = {
            "sha256": pin.sha256,
            "global_step": pin.global_step,
            "size_bytes": pin.size_bytes,
            "model_variables": pin.model_variables,
            "pin_path": None if untrained else "/".join(pin.prefix.parts[-2:]),
            "pin_method": None if untrained else pin.method,
        }
        reason = UNTRAINED_REASON if untrained else None
        if checkpoint.signature and self.known_unreadable(checkpoint):
            self._heal(checkpoint, {**columns, "state": state, "reason": reason}, now)
        self._add(checkpoint.name, checkpoint.save_counter, state, reason, now, columns)
        return state

    def known_damage(self, checkpoint: FoundCheckpoint) -> bool:
        """True when exactly these files are recorded as corrupt already."""
        return self._known_files(checkpoint, "corrupt")

    def known_unreadable(self, checkpoint: FoundCheckpoint) -> bool:
        """True when exactly these files are recorded as missed, since they could not be read."""
        return self._known_files(checkpoint, "missed")

    def _known_files(self, checkpoint: FoundCheckpoint, state: str) -> bool:
        found = self._db.one(
            f"SELECT 1 FROM checkpoints WHERE {_THESE_FILES}",
            [self._run_id, checkpoint.name, str(checkpoint.signature), state],
        )
        return found is not None

    def record_corrupt(self, checkpoint: FoundCheckpoint, reason: str, now: float) -> None:
        """Record a checkpoint whose bytes are damaged; it is never evaluated.

        Damaged content has no identity (every empty index has the same digest), so the row goes
        by the files themselves.
        """
        columns = {"signature": str(checkpoint.signature)}
        self._add(checkpoint.name, checkpoint.save_counter, "corrupt", reason, now, columns)

    def record_missed(self, checkpoint: FoundCheckpoint, reason: str, now: float) -> None:
        """Record a checkpoint that was gone, or could not be read, before it could be pinned.

        Should it be pinned after all, with the files that it had, `record_pin` makes this row its.
        """
        columns = {"signature": str(checkpoint.signature) if checkpoint.signature else None}
        self._add(checkpoint.name, checkpoint.save_counter, "missed", reason, now, columns)

    def _add(
        self,
        name: str,
        save_counter: int,
        state: str,
        reason: str | None,
        now: float,
        columns: dict[str, Any],
    ) -> None:
        row = {
            "run_id": self._run_id,
            "name": name,
            "save_counter": save_counter,
            "state": state,
            "reason": reason,
            "discovered_at": iso(now),
            **columns,
        }
        with self._db.write():
            if self._db.insert("checkpoints", row, ignore=True):
                self._db.event(now, state, reason or "found and pinned", name)

    def _heal(self, checkpoint: FoundCheckpoint, columns: dict[str, Any], now: float) -> None:
        """Make the row of files that could not be read that of their content, if it has none."""
        these = [self._run_id, checkpoint.name, str(checkpoint.signature), "missed"]
        changes = ", ".join(f"{column} = ?" for column in columns)
        with self._db.write():
            self._db.run(
                f"UPDATE OR IGNORE checkpoints SET {changes} WHERE {_THESE_FILES}",
                [*columns.values(), *these],
            )
            text = "it can be read now, and is pinned"
            self._db.event(now, columns["state"], text, checkpoint.name)

    # -- leased

    def lease_next(
        self, now: float, lease_seconds: float, *, untried: bool = False
    ) -> Lease | None:
        """Lease the pending checkpoint of the smallest global step, None when there is none.

        `untried` leaves those out of which an evaluation broke off before.
        """
        row = self._db.one(
            "SELECT id, name, global_step, pin_path, attempts FROM checkpoints"
            " WHERE run_id = ? AND state = 'pending' AND not_before_seconds <= ?"
            " AND attempts <= ? ORDER BY global_step, id LIMIT 1",
            [self._run_id, now, 0 if untried else sys.maxsize],
        )
        if row is None:
            return None
        token = secrets.token_hex(8)
        with self._db.write():
            self._db.run(
                "UPDATE checkpoints SET state = 'leased', lease_token = ?,"
                " lease_expires_at_seconds = ?, attempts = attempts + 1 WHERE id = ?",
                [token, now + lease_seconds, row["id"]],
            )
        return Lease(
            checkpoint_id=row["id"],
            token=token,
            name=row["name"],
            global_step=row["global_step"] or 0,
            prefix=self._db.pin_prefix(row["pin_path"]),
            attempt=row["attempts"] + 1,
        )

    def renew(self, lease: Lease, now: float, lease_seconds: float) -> None:
        """Move the expiry of a held lease; raises LeaseLost when it is no longer held."""
        with self._db.write():
            self.require_held(lease, now)
            self._db.run(
                "UPDATE checkpoints SET lease_expires_at_seconds = ? WHERE id = ?",
                [now + lease_seconds, lease.checkpoint_id],
            )

    def return_expired(self, now: float) -> dict[int, str]:
        """Put checkpoints whose lease ran out back into the queue; returns id to name."""
        return self._return("lease_expires_at_seconds <= ?", [now], "its lease expired", now)

    def return_all(self, now: float) -> dict[int, str]:
        """Put every leased checkpoint back: for the start, when no worker of ours can live.

        Delays before another attempt end too: the clock may have been set since they began.
        """
        with self._db.write():
            self._db.run(
                "UPDATE checkpoints SET not_before_seconds = 0 WHERE run_id = ?", [self._run_id]
            )
        return self._return("1", [], "the daemon that evaluated it is gone", now)

    def shift_times(self, seconds: float) -> None:
        """Move leases and delays along with a clock that was set, so that they last as long."""
        with self._db.write():
            self._db.run(
                "UPDATE checkpoints SET not_before_seconds = not_before_seconds + ?,"
                " lease_expires_at_seconds = lease_expires_at_seconds + ?"
                " WHERE run_id = ? AND state IN ('pending', 'leased')",
                [seconds, seconds, self._run_id],
            )

    def _return(self, where: str, arguments: list[Any], reason: str, now: float) -> dict[int, str]:
        rows = self._db.all(
            f"SELECT id, name FROM checkpoints WHERE run_id = ? AND state = 'leased' AND {where}",
            [self._run_id, *arguments],
        )
        for row in rows:
            with self._db.write():
                self._to_pending(row["id"], reason=None, not_before=0.0)
                self._db.event(now, "returned", reason, row["name"])
        return {row["id"]: row["name"] for row in rows}

    def give_back(self, lease: Lease, now: float) -> None:
        """Return a lease unused, as if it had never been taken: no attempt is counted."""
        with self._db.write():
            self.require_held(lease, now)
            self._to_pending(lease.checkpoint_id, reason=None, not_before=0.0)
            self._db.run(
                "UPDATE checkpoints SET attempts = attempts - 1 WHERE id = ?",
                [lease.checkpoint_id],
            )

    def retry_later(self, lease: Lease, reason: str, now: float, delay_seconds: float) -> None:
        """Put a checkpoint whose evaluation broke off back into the queue, after a delay."""
        with self._db.write():
            self.require_held(lease, now)
            self._to_pending(lease.checkpoint_id, reason, now + delay_seconds)
            self._db.event(now, "retry", reason, lease.name)

    def _to_pending(self, checkpoint_id: int, reason: str | None, not_before: float) -> None:
        self._db.run(
            "UPDATE checkpoints SET state = 'pending', reason = ?, not_before_seconds = ?,"
            " lease_token = NULL, lease_expires_at_seconds = NULL WHERE id = ?",
            [reason, not_before, checkpoint_id],
        )

    def require_held(self, lease: Lease, now: float) -> None:
        """Raise LeaseLost unless this lease is the one that counts; call it inside `write()`."""
        row = self._db.one(
            "SELECT 1 FROM checkpoints WHERE id = ? AND state = 'leased' AND lease_token = ?"
            " AND lease_expires_at_seconds > ?",
            [lease.checkpoint_id, lease.token, now],
        )
        if row is None:
            raise LeaseLost(f"the lease of {lease.name} is no longer held: its answer is refused")

    # -- ended

    def finish(self, lease: Lease, state: str, reason: str | None) -> None:
        """End a held lease in a final state; call it inside `write()`."""
        self._db.run(
            "UPDATE checkpoints SET state = ?, reason = ?, lease_token = NULL,"
            " lease_expires_at_seconds = NULL WHERE id = ?",
            [state, reason, lease.checkpoint_id],
        )

    def record_failure(self, lease: Lease, reason: str, now: float) -> None:
        """Record that a checkpoint will not be scored, and why; ends the lease."""
        with self._db.write():
            self.require_held(lease, now)
            self.finish(lease, "failed", reason)
            self._db.event(now, "failed", reason, lease.name)

    def waiting(self) -> tuple[list[Queued], int, int]:
        """Return what a queue policy decides on.

        Returns:
            The pending checkpoints, but for those of the leaderboard that are measured anew; the
            step that was evaluated last before the first of them (0 for none); and the bytes of
            the pin that is being evaluated.
        """
        rows = self._db.all(
            "SELECT id AS checkpoint_id, name, save_counter,"
            " coalesce(global_step, 0) AS global_step, coalesce(size_bytes, 0) AS size_bytes"
            " FROM checkpoints WHERE run_id = ? AND state = 'pending' AND id NOT IN"
            " (SELECT checkpoint_id FROM promotions WHERE evicted_at IS NULL) ORDER BY id",
            [self._run_id],
        )
        queued = [Queued(**row) for row in rows]
        first = min((one.global_step for one in queued), default=0)
        before = self._db.one(
            "SELECT max(global_step) AS step FROM checkpoints WHERE run_id = ?"
            " AND state IN ('scored', 'leased') AND global_step <= ?",
            [self._run_id, first],
        )
        held = self._db.one(
            "SELECT sum(size_bytes) AS size FROM checkpoints WHERE run_id = ? AND state = 'leased'",
            [self._run_id],
        )
        step = before["step"] if before else None
        return queued, step or 0, (held["size"] if held else None) or 0

    def skip(self, checkpoint_id: int, reason: str, now: float) -> Path | None:
        """Record a pending checkpoint as `skipped`; nothing happens to one in another state.

        Returns:
            The prefix of its pin, which is the caller's to delete now.
        """
        row = self._db.one(
            "SELECT name, pin_path FROM checkpoints WHERE id = ? AND state = 'pending'",
            [checkpoint_id],
        )
        if row is None:
            return None
        with self._db.write():
            self._db.run(
                "UPDATE checkpoints SET state = 'skipped', reason = ?, pin_path = NULL,"
                " pin_method = NULL WHERE id = ?",
                [reason, checkpoint_id],
            )
            self._db.event(now, "skipped", reason, row["name"])
        return self._db.pin_prefix(row["pin_path"]) if row["pin_path"] else None

    def fail_unpinned(self, checkpoint_id: int, name: str, reason: str, now: float) -> None:
        """Record as `failed` a pending checkpoint whose pin is gone, so that it cannot be read."""
        with self._db.write():
            self._db.run(
                "UPDATE checkpoints SET state = 'failed', reason = ?, pin_path = NULL WHERE id = ?",
                [reason, checkpoint_id],
            )
            self._db.event(now, "failed", reason, name)

    def forget_pin(self, checkpoint_id: int) -> None:
        """Note that a checkpoint has no pin any more. The pin's files are deleted after this."""
        with self._db.write():
            self._db.run(
                "UPDATE checkpoints SET pin_path = NULL, pin_method = NULL WHERE id = ?",
                [checkpoint_id],
            )

    # -- looked at

    def pinned(self) -> list[dict[str, Any]]:
        """Return each checkpoint that has a pin.

        Returns:
            `id, name, state, sha256, global_step, kept, prefix` of each, in the order found.
        """
        rows = self._db.all(
            "SELECT id, name, state, sha256, coalesce(global_step, 0) AS global_step, kept,"
            " pin_path FROM checkpoints"
            " WHERE run_id = ? AND pin_path IS NOT NULL ORDER BY id",
            [self._run_id],
        )
        return [{**row, "prefix": self._db.pin_prefix(row["pin_path"])} for row in rows]

    def open_count(self) -> int:
        """Return how many checkpoints still have work to do: pending or leased."""
        row = self._db.one(
            "SELECT count(*) AS n FROM checkpoints WHERE run_id = ?"
            " AND state IN ('pending', 'leased')",
            [self._run_id],
        )
        return int(row["n"]) if row else 0

    def next_due(self, *, untried: bool = False) -> float | None:
        """Return when the earliest pending checkpoint may be leased, in seconds since the epoch.

        `untried` as for `lease_next`.
        """
        row = self._db.one(
            "SELECT min(not_before_seconds) AS due FROM checkpoints WHERE run_id = ?"
            " AND state = 'pending' AND attempts <= ?",
            [self._run_id, 0 if untried else sys.maxsize],
        )
        return row["due"] if row else None
