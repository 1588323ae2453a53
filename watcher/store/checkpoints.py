"""The checkpoints: every one that was ever seen, and what is recorded of it beside its scores."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from watcher.decision.generation import Life, Save, generation_of
from watcher.store.database import RunDatabase
from watcher.store.database_file import iso
from watcher.store.rows import MEASURED
from watcher.types import FoundCheckpoint, Pin

ASKED_ANEW = "to be evaluated anew"
# The kind of a row that is an average of others; what the trainer saved is `saved`.
SAVED, AVERAGED = "saved", "averaged"
UNTRAINED_REASON = "saved before the model was built: it holds no model variables"


# Of files whose content has no row: for name, signature and state.
_THESE_FILES = "name = ? AND signature = ? AND state = ? AND sha256 IS NULL"


class Checkpoints:
    """Verbs on the `checkpoints` table: what was found and pinned, and what a person changes.

    Each is one transaction and may be repeated.
    """

    def __init__(self, database: RunDatabase) -> None:
        self._db = database
        self._run_id = database.run_id

    # -- found

    def known(self, sha256: str) -> bool:
        """True when a checkpoint of this content has a row, in whatever state."""
        return self._is_there("sha256 = ?", sha256)

    def has_pin(self, sha256: str) -> bool:
        """True when the checkpoint of this content has a pin that is still needed."""
        return self._is_there("sha256 = ? AND pin_path IS NOT NULL", sha256)

    def _is_there(self, where: str, *arguments: str) -> bool:
        sql = f"SELECT 1 FROM all_checkpoints WHERE run_id = ? AND {where}"
        return self._db.value(sql, [self._run_id, *arguments]) is not None

    def last_save(self) -> Save | None:
        """Return the furthest save of the newest generation, None for an empty run."""
        row = self._db.one(
            "SELECT save_counter, global_step, saved_at_seconds FROM all_checkpoints"
            " WHERE run_id = ? ORDER BY generation DESC, save_counter DESC, id DESC LIMIT 1",
            [self._run_id],
        )
        return Save(*row.values()) if row else None

    def generation(self) -> int:
        """Return the newest generation, 1 for an empty run."""
        sql = "SELECT max(generation) FROM all_checkpoints WHERE run_id = ? AND sha256 IS NOT NULL"
        return self._db.value(sql, [self._run_id]) or 1

    def _lives(self) -> list[Life]:
        rows = self._db.all(
            "SELECT generation, max(save_counter) AS counter, max(global_step) AS step,"
            " min(saved_at_seconds) AS began_at, max(saved_at_seconds) AS saved_at"
            " FROM all_checkpoints WHERE run_id = ? AND sha256 IS NOT NULL"
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
            "pin_path": None if untrained else _pin_path(pin),
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
            "UPDATE all_checkpoints SET generation = ?1 WHERE run_id = ?2 AND sha256 IS NULL"
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
        files = str(checkpoint.signature)
        return self._is_there(_THESE_FILES, checkpoint.name, files, state)

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

    def record_average(self, parent: int, name: str, pin: Pin, now: float) -> int:
        """Record an average that was written and pinned as `pending`, inside `write()`.

        It has the number, the step and the generation of its newest parent, so that it is no save
        of its own for whoever counts those.

        Args:
            parent: Checkpoint id of the newest.
            name: Of the average.
            pin: Its pin.
            now: Seconds since the epoch.

        Returns:
            Its checkpoint id, that of the first where the same content was recorded before.
        """
        same = ("save_counter", "saved_at_seconds", "generation")
        row = self._db.one(f"SELECT {', '.join(same)} FROM checkpoints WHERE id = ?", [parent])
        assert row is not None
        row |= {
            "run_id": self._run_id,
            "kind": AVERAGED,
            "name": name,
            "sha256": pin.sha256,
            "global_step": pin.global_step,
            "state": "pending",
            "size_bytes": pin.size_bytes,
            "model_variables": pin.model_variables,
            "pin_path": _pin_path(pin),
            "pin_method": pin.method,
            "discovered_at": iso(now),
        }
        if self._db.insert("all_checkpoints", row, ignore=True):
            self._db.event(now, "averaged", "written and pinned", name)
        self._db.run(  # written before, and let go of since
            "UPDATE all_checkpoints SET pin_path = ?, pin_method = ? WHERE run_id = ?"
            " AND sha256 = ? AND kind = ? AND pin_path IS NULL",
            [row["pin_path"], pin.method, self._run_id, pin.sha256, AVERAGED],
        )
        sql = "SELECT id FROM all_checkpoints WHERE run_id = ? AND sha256 = ?"
        return int(self._db.value(sql, [self._run_id, pin.sha256]))

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
        if self._db.insert("all_checkpoints", row, ignore=True):
            self._db.event(now, state, reason or "found and pinned", name)

    def _heal(self, checkpoint: FoundCheckpoint, columns: dict[str, Any], now: float) -> None:
        """Make the row of files that could not be read that of their content, if it has none.

        Inside `write()`.
        """
        these = [self._run_id, checkpoint.name, str(checkpoint.signature), "missed"]
        changes = ", ".join(f"{column} = ?" for column in columns)
        self._db.run(
            f"UPDATE OR IGNORE all_checkpoints SET {changes} WHERE run_id = ? AND {_THESE_FILES}",
            [*columns.values(), *these],
        )
        text = "it can be read now, and is pinned"
        self._db.event(now, columns["state"], text, checkpoint.name)

    # -- pins

    def fail_unpinned(self, checkpoint_id: int, name: str, reason: str, now: float) -> None:
        """Record as `failed` a pending checkpoint whose pin is gone, so that it cannot be read.

        One that was to be measured again is `scored` as before.
        """
        with self._db.write():
            self._db.run(
                "UPDATE all_checkpoints AS c SET reason = ?, pin_path = NULL,"
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
            self._db.update("all_checkpoints", checkpoint_id, pin_path=None, pin_method=None)

    def pinned(self) -> list[dict[str, Any]]:
        """Return each checkpoint that has a pin.

        Returns:
            `id, name, state, sha256, global_step, generation, kept, kind, prefix`, in the order
            found.
        """
        rows = self._db.all(
            "SELECT id, name, state, sha256, coalesce(global_step, 0) AS global_step, generation,"
            " kept, kind, pin_path FROM all_checkpoints"
            " WHERE run_id = ? AND pin_path IS NOT NULL ORDER BY id",
            [self._run_id],
        )
        return [{**row, "prefix": self._db.pin_prefix(row["pin_path"])} for row in rows]

    def waiting_unpinned(self, due: float = math.inf) -> list[dict[str, Any]]:
        """Return the pending checkpoints that have lost their pin, and no new one by a time.

        Args:
            due: Seconds since the epoch; what is put off until later may get one yet.

        Returns:
            As `pinned`, with the prefix that the pin would have.
        """
        rows = self._chosen(
            "state = 'pending' AND pin_path IS NULL AND not_before_seconds <= ?", due
        )
        return [
            {**row, "prefix": self._db.pin_prefix(f"{row['sha256']}/{row['name']}")} for row in rows
        ]

    def promoted_as(self, checkpoint_id: int) -> list[Path]:
        """Return the prefixes of a checkpoint in the folders of the boards that it stands on."""
        rows = self._db.all(
            "SELECT path FROM promotions WHERE checkpoint_id = ? AND evicted_at IS NULL"
            " ORDER BY id",
            [checkpoint_id],
        )
        return [self._db.model_dir / row["path"] for row in rows]

    # -- by hand

    def evaluated_pins(self) -> list[dict[str, Any]]:
        """Return the evaluated checkpoints whose files are kept.

        Returns:
            `id, name, state, sha256, global_step, generation, kept, kind, pin_path` of each.
        """
        return self._chosen("pin_path IS NOT NULL AND state NOT IN ('pending', 'leased')")

    def failed(self) -> list[dict[str, Any]]:
        """Return the checkpoints that failed, as `evaluated_pins` does."""
        return self._chosen("state = 'failed'")

    def keep(self, checkpoint: dict[str, Any], kept: bool, now: float) -> None:
        """Keep a checkpoint's files whatever its score, or no longer."""
        with self._db.write():
            self._db.update("all_checkpoints", checkpoint["id"], kept=kept)
            said = "kept by hand" if kept else "no longer kept by hand"
            self._db.event(now, "kept" if kept else "let_go", said, checkpoint["name"])

    def requeue(self, checkpoint: dict[str, Any], now: float) -> None:
        """Put a pinned checkpoint back into the queue, with all its attempts before it."""
        with self._db.write():
            self._db.wait_anew(checkpoint["id"], ASKED_ANEW)
            self._db.event(now, "requeued", ASKED_ANEW, checkpoint["name"])

    def released(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Return the checkpoints of these names that had a pin once, as `evaluated_pins`."""
        return self._chosen(
            "pin_path IS NULL AND sha256 IS NOT NULL"
            " AND state IN ('scored', 'failed', 'skipped', 'pending')"
            " AND name IN (SELECT value FROM json_each(?))",
            json.dumps(list(names)),
        )

    def _chosen(self, where: str, *arguments: str | float) -> list[dict[str, Any]]:
        return self._db.all(
            "SELECT id, name, state, sha256, global_step, generation, kept, kind, pin_path"
            f" FROM all_checkpoints WHERE run_id = ? AND {where} ORDER BY global_step, id",
            [self._run_id, *arguments],
        )

    def note_pin(self, checkpoint_id: int, pin: Pin) -> None:
        """Note that a checkpoint which had no pin any more has one again."""
        again = {"pin_path": _pin_path(pin), "pin_method": pin.method, "not_before_seconds": 0}
        with self._db.write():
            self._db.update("all_checkpoints", checkpoint_id, **again)


def _pin_path(pin: Pin) -> str:
    """Return a pin's prefix as rows hold it, relative to the folder of the pins."""
    return "/".join(pin.prefix.parts[-2:])
