"""Manual: what a person may change about checkpoints. Each verb is one transaction."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from watcher.store.database import RunDatabase

_ANEW = "to be evaluated anew"


class Manual:
    """Verbs on the `checkpoints` table that answer to a person."""

    def __init__(self, database: RunDatabase) -> None:
        self._db = database
        self._run_id = database.run_id

    def pinned(self) -> list[dict[str, Any]]:
        """Return the evaluated checkpoints whose files are kept.

        Returns:
            `id, name, state, sha256, global_step, generation, kept, pin_path` of each.
        """
        return self._chosen("pin_path IS NOT NULL AND state NOT IN ('pending', 'leased')")

    def failed(self) -> list[dict[str, Any]]:
        """Return the checkpoints that failed, as `pinned` does."""
        return self._chosen("state = 'failed'")

    def keep(self, checkpoint: dict[str, Any], kept: bool, now: float) -> None:
        """Keep a checkpoint's files whatever its score, or no longer."""
        with self._db.write():
            self._db.update("checkpoints", checkpoint["id"], kept=kept)
            said = "kept by hand" if kept else "no longer kept by hand"
            self._db.event(now, "kept" if kept else "let_go", said, checkpoint["name"])

    def requeue(self, checkpoint: dict[str, Any], now: float) -> None:
        """Put a pinned checkpoint back into the queue, with all its attempts before it."""
        with self._db.write():
            self._db.wait_anew(checkpoint["id"], _ANEW)
            self._db.event(now, "requeued", _ANEW, checkpoint["name"])

    def released(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Return the evaluated checkpoints of these names that have no pin, as `pinned` does."""
        return self._chosen(
            "pin_path IS NULL AND sha256 IS NOT NULL AND state IN ('scored', 'failed', 'skipped')"
            " AND name IN (SELECT value FROM json_each(?))",
            json.dumps(list(names)),
        )

    def _chosen(self, where: str, *arguments: str) -> list[dict[str, Any]]:
        return self._db.all(
            "SELECT id, name, state, sha256, global_step, generation, kept, pin_path"
            f" FROM checkpoints WHERE run_id = ? AND {where} ORDER BY global_step, id",
            [self._run_id, *arguments],
        )

    def note_pin(self, checkpoint_id: int, pin_path: str, method: str) -> None:
        """Note that a checkpoint which had no pin any more has one again."""
        with self._db.write():
            self._db.update("checkpoints", checkpoint_id, pin_path=pin_path, pin_method=method)
