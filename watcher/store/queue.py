"""The queue: every checkpoint ever seen, and which of them a worker holds.

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
from watcher.decision.generation import Life, Save, generation_of
from watcher.errors import StoreError
from watcher.store.database import MEASURED, RunDatabase
from watcher.store.database_file import iso
from watcher.store.rows import QUEUE_ORDER
from watcher.types import FoundCheckpoint, Lease, Pin, Queued

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

    def last_save(self) -> Save | None:
        """Return the furthest save of the newest generation, None for an empty run."""
        row = self._db.one(
            "SELECT save_counter, global_step, saved_at_seconds FROM checkpoints WHERE run_id = ?"
            " ORDER BY generation DESC, save_counter DESC, id DESC LIMIT 1",
            [self._run_id],
        )
        return Save(*row.values()) if row else None

    def generation(self) -> int:
        """Return the newest generation, 1 for an empty run."""
        lives = self._lives()
        return lives[-1].generation if lives else 1

    def _lives(self) -> list[Life]:
        rows = self._db.all(
            "SELECT generation, max(save_counter) AS counter, max(global_step) AS step,"
            " min(saved_at_seconds) AS began_at, max(saved_at_seconds) AS saved_at"
            " FROM checkpoints WHERE run_id = ? AND sha256 IS NOT NULL"
            " GROUP BY generation ORDER BY generation",
            [self._run_id],
        )
        return [
            Life(
                row["generation"],
                Save(row["counter"], row["step"], row["saved_at"]),
                row["began_at"],
            )
            for row in rows
        ]

    def record_pin(
        self, checkpoint: FoundCheckpoint, pin: Pin, now: float, *, generation: int | None = None
    ) -> str:
        """Record a pinned checkpoint as `pending`, or as `untrained` when it holds no model.

        Args:
            checkpoint: As it was found.
            pin: Its pin.
            now: Seconds since the epoch.
            generation: Which of the trainer's lives it is of. Default: decided from what is
                recorded.

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
        save = Save(checkpoint.save_counter, pin.global_step, checkpoint.saved_at)
        with self._db.write():
            if not self.known(pin.sha256):
                columns["generation"] = generation or self._place(save, checkpoint.name, now)
            if checkpoint.signature and self.known_unreadable(checkpoint):
                self._heal(checkpoint, {**columns, "state": state, "reason": reason}, now)
            self._add(checkpoint.name, save, state, reason, now, columns)
        return state

    def _place(self, save: Save, name: str, now: float) -> int:
        """Return the generation of a save, inside `write()`; say so when a new one begins."""
        lives = self._lives()
        generation = generation_of(save, lives)
        if not lives or generation <= lives[-1].generation:
            return generation
        before = lives[-1].furthest
        # What was missed or damaged on the way to this one is of the new life as well.
        self._db.run(
            "UPDATE checkpoints SET generation = ?1 WHERE run_id = ?2 AND sha256 IS NULL"
            " AND save_counter < ?3 AND (saved_at_seconds IS NULL OR saved_at_seconds >= ?4)"
            " AND id > (SELECT max(id) FROM checkpoints WHERE run_id = ?2 AND sha256 NOT NULL)",
            [generation, self._run_id, save.counter, before.saved_at or 0.0],
        )
        message = (
            f"the trainer started over: save {save.counter} (step {save.step or 0}) came after save"
            f" {before.counter} (step {before.step or 0}); generation {generation} begins, and"
            " stopping looks at it alone"
        )
        self._db.event(now, "started_over", message, name)
        return generation

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
        save = Save(checkpoint.save_counter, saved_at=checkpoint.saved_at)
        with self._db.write():
            self._add(checkpoint.name, save, "corrupt", reason, now, columns)

    def record_missed(
        self, checkpoint: FoundCheckpoint, reason: str, now: float, saves: int = 1
    ) -> None:
        """Record a checkpoint that was gone, or could not be read, before it could be pinned.

        With `saves` it is so many that follow each other, the last of which has its number. Should
        it be pinned after all, with the files that it had, `record_pin` makes this row its.
        """
        signature = str(checkpoint.signature) if checkpoint.signature else None
        columns = {"signature": signature, "saves": saves}
        save = Save(checkpoint.save_counter, saved_at=checkpoint.saved_at)
        with self._db.write():
            self._add(checkpoint.name, save, "missed", reason, now, columns)

    def _add(
        self,
        name: str,
        save: Save,
        state: str,
        reason: str | None,
        now: float,
        columns: dict[str, Any],
    ) -> None:
        row = {
            "run_id": self._run_id,
            "name": name,
            "save_counter": save.counter,
            "saved_at_seconds": save.saved_at,
            "generation": self.generation(),
            "state": state,
            "reason": reason,
            "discovered_at": iso(now),
            **columns,
        }
        if self._db.insert("checkpoints", row, ignore=True):
            self._db.event(now, state, reason or "found and pinned", name)

    def _heal(self, checkpoint: FoundCheckpoint, columns: dict[str, Any], now: float) -> None:
        """Make the row of files that could not be read that of their content, if it has none.

        Inside `write()`.
        """
        these = [self._run_id, checkpoint.name, str(checkpoint.signature), "missed"]
        changes = ", ".join(f"{column} = ?" for column in columns)
        self._db.run(
            f"UPDATE OR IGNORE checkpoints SET {changes} WHERE {_THESE_FILES}",
            [*columns.values(), *these],
        )
        text = "it can be read now, and is pinned"
        self._db.event(now, columns["state"], text, checkpoint.name)

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
        place = "(SELECT key FROM json_each(?) WHERE value = checkpoints.id)"
        row = self._db.one(
            "SELECT id, name, global_step, pin_path, attempts FROM checkpoints"
            " WHERE run_id = ? AND state = 'pending' AND not_before_seconds <= ?"
            " AND attempts <= ? AND id NOT IN (SELECT value FROM json_each(?))"
            f" ORDER BY {f'coalesce({place}, -1),' if after else ''} {QUEUE_ORDER} LIMIT 1",
            [
                *(self._run_id, now, 0 if untried else sys.maxsize, json.dumps(list(without))),
                *([json.dumps(after)] if after else []),
            ],
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

    def known_good(self) -> Lease | None:
        """Return a checkpoint that was scored, to try a device with; None when none has a pin.

        It is not leased: whatever is answered for it is refused.
        """
        row = self._db.one(
            "SELECT c.id, c.name, c.global_step, c.pin_path FROM checkpoints c"
            " JOIN runs r ON r.id = c.run_id"
            " JOIN evaluations e ON e.checkpoint_id = c.id AND e.fingerprint = r.fingerprint"
            " WHERE c.run_id = ? AND c.state = 'scored' AND c.pin_path IS NOT NULL"
            " ORDER BY c.id DESC LIMIT 1",
            [self._run_id],
        )
        if row is None:
            return None
        prefix = self._db.pin_prefix(row["pin_path"])
        token = secrets.token_hex(8)
        return Lease(row["id"], token, row["name"], row["global_step"] or 0, prefix, attempt=0)

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
                row = self._db.one(
                    "SELECT name FROM checkpoints WHERE id = ? AND (state IN ('pending', 'leased')"
                    " OR (state = 'failed' AND may_pass AND pin_path IS NOT NULL))",
                    [checkpoint_id],
                )
                if row is None:
                    continue
                self._uncount(checkpoint_id, times)
                self._db.run(
                    "UPDATE checkpoints SET state = 'pending', not_before_seconds = 0"
                    " WHERE id = ? AND state != 'leased'",
                    [checkpoint_id],
                )
                names.append(row["name"])
        return names

    def _uncount(self, checkpoint_id: int, attempts: int) -> None:
        self._db.run(
            "UPDATE checkpoints SET attempts = max(attempts - ?, 0) WHERE id = ?",
            [attempts, checkpoint_id],
        )

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

    def record_failure(
        self, lease: Lease, reason: str, now: float, *, may_pass: bool = False
    ) -> None:
        """Record that a checkpoint will not be scored, and why; ends the lease.

        One that was to be measured again, and has a score in the present evaluation, keeps that:
        it is as true as it was, and it may hold a place in `best/`. With `may_pass` another attempt
        may end otherwise, once something was mended: its pin stays.
        """
        measured = self._db.one(
            f"SELECT 1 FROM checkpoints c WHERE c.id = ? AND {MEASURED}", [lease.checkpoint_id]
        )
        with self._db.write():
            self.require_held(lease, now)
            if measured:
                reason = f"its earlier score stands, since measuring it anew failed: {reason}"
            self.finish(lease, "scored" if measured else "failed", reason)
            self._db.run(
                "UPDATE checkpoints SET may_pass = ? WHERE id = ?", [may_pass, lease.checkpoint_id]
            )
            self._db.event(now, "failed", reason, lease.name)

    def waiting(self) -> tuple[list[Queued], int, int]:
        """Return what a queue policy decides on.

        Returns:
            The pending checkpoints, but for those of a leaderboard that are measured anew; the
            step that was evaluated last before the first of them (0 for none); and the bytes of
            the pin that is being evaluated.
        """
        rows = self._db.all(
            "SELECT id AS checkpoint_id, name, save_counter,"
            " coalesce(global_step, 0) AS global_step, coalesce(size_bytes, 0) AS size_bytes"
            " FROM checkpoints WHERE run_id = ? AND state = 'pending' AND id NOT IN"
            " (SELECT checkpoint_id FROM promotions WHERE evicted_at IS NULL AND board != ?)"
            " ORDER BY id",
            [self._run_id, KEPT_BOARD],
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

    def skip(self, checkpoint_id: int, reason: str, now: float) -> None:
        """Record a pending checkpoint as `skipped`; nothing happens to one in another state.

        One that was to be measured again is `scored` as before. The pin stays: it may be kept for
        another reason.
        """
        row = self._db.one(
            f"SELECT c.name, {MEASURED} AS measured FROM checkpoints c"
            " WHERE c.id = ? AND c.state = 'pending'",
            [checkpoint_id],
        )
        if row is None:
            return
        with self._db.write():
            self._db.run(
                "UPDATE checkpoints SET state = ?, reason = ? WHERE id = ?",
                ["scored" if row["measured"] else "skipped", reason, checkpoint_id],
            )
            self._db.event(now, "skipped", reason, row["name"])

    def fail_unpinned(self, checkpoint_id: int, name: str, reason: str, now: float) -> None:
        """Record as `failed` a pending checkpoint whose pin is gone, so that it cannot be read.

        One that was to be measured again is `scored` as before.
        """
        with self._db.write():
            self._db.run(
                "UPDATE checkpoints AS c SET reason = ?, pin_path = NULL,"
                f" state = CASE WHEN {MEASURED} THEN 'scored' ELSE 'failed' END WHERE id = ?",
                [reason, checkpoint_id],
            )
            self._db.event(now, "failed", reason, name)

    def failed_unpinned(self, codes: Collection[str]) -> list[tuple[str, str]]:
        """Return name and sha256 of those that failed for one of these reasons and have no pin."""
        rows = self._db.all(
            "SELECT name, sha256, reason FROM checkpoints WHERE run_id = ? AND state = 'failed'"
            " AND pin_path IS NULL AND sha256 IS NOT NULL ORDER BY id",
            [self._run_id],
        )
        return [
            (row["name"], row["sha256"])
            for row in rows
            if (row["reason"] or "").partition(":")[0] in codes
        ]

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
            `id, name, state, sha256, global_step, generation, kept, prefix` of each, in the order
            found.
        """
        rows = self._db.all(
            "SELECT id, name, state, sha256, coalesce(global_step, 0) AS global_step, generation,"
            " kept, pin_path FROM checkpoints"
            " WHERE run_id = ? AND pin_path IS NOT NULL ORDER BY id",
            [self._run_id],
        )
        return [{**row, "prefix": self._db.pin_prefix(row["pin_path"])} for row in rows]

    def waiting_ids(self) -> set[int]:
        """Return the ids of the checkpoints whose evaluation is to come: pending or leased."""
        rows = self._db.all(
            "SELECT id FROM checkpoints WHERE run_id = ? AND state IN ('pending', 'leased')",
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
            "SELECT id, state, coalesce(size_bytes, 0) AS size FROM checkpoints"
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
