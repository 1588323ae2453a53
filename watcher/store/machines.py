"""The machines: on which each score was measured, which is the reference, and who proved itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from watcher.checkpoints.naming import missing
from watcher.decision.machines import Deviation, largest
from watcher.decision.metric import Key
from watcher.store.database import RunDatabase
from watcher.store.database_file import iso
from watcher.store.rows import Rows
from watcher.types import Evaluation

Parts = Mapping[str, str]

# So many checkpoints are looked at for one whose files are there.
_LOOKED_AT = 50
# Machines whose scores are those of the reference, to the last bit.
_SAME = (
    "(SELECT ?2 UNION SELECT machine_id FROM machine_proofs"
    " WHERE fingerprint = ?1 AND against_id = ?2 AND equal)"
)


class Reference(msgspec.Struct, frozen=True):
    """The machine with which the scores of an evaluation began."""

    id: int
    parts: Parts


class Proof(msgspec.Struct, frozen=True):
    """What came of measuring a scored checkpoint again on another machine.

    Attributes:
        checkpoint: Its name.
        compared: How many figures were compared.
        deviations: Those that differ, the largest first.
    """

    id: int
    checkpoint: str
    compared: int
    deviations: tuple[Deviation, ...]

    @property
    def equal(self) -> bool:
        """True when it measured the same to the last bit."""
        return not self.deviations


class Scored(msgspec.Struct, frozen=True):
    """A checkpoint that may be measured again: it has a score of the reference, and files."""

    checkpoint_id: int
    name: str
    global_step: int
    prefix: Path

    def is_there(self) -> bool:
        """Tell whether all its files are there."""
        return not missing([self.prefix])


class Recorded(msgspec.Struct, frozen=True):
    """What is recorded of it now; `random_metrics` are drawn at random in part."""

    values: Mapping[Key, float | None]
    random_metrics: Sequence[str]


class Machines(Rows):
    """Verbs on machines. Each is one transaction."""

    def __init__(self, database: RunDatabase) -> None:
        self.path, self.run_id, self._sqlite = database.path, database.run_id, database._sqlite
        self._db = database

    def reference(self, fingerprint: str) -> Reference | None:
        """Return the machine that others have to equal, None before one has scored."""
        row = self.one(
            "SELECT m.id, m.parts FROM machine_references f JOIN machines m ON m.id = f.machine_id"
            " WHERE f.fingerprint = ?",
            [fingerprint],
        )
        return Reference(row["id"], msgspec.json.decode(row["parts"])) if row else None

    def proof(self, fingerprint: str, parts: Parts, against: Reference) -> Proof | None:
        """Return what came of a machine's proof, None where it has made none."""
        row = self.one(
            "SELECT p.id, c.name, p.compared, p.differences FROM machine_proofs p"
            " JOIN machines m ON m.id = p.machine_id"
            " JOIN all_checkpoints c ON c.id = p.checkpoint_id"
            " WHERE p.fingerprint = ? AND m.parts = ? AND p.against_id = ?",
            [fingerprint, _encoded(parts), against.id],
        )
        if row is None:
            return None
        deviations = msgspec.json.decode(row["differences"], type=tuple[Deviation, ...])
        return Proof(row["id"], row["name"], row["compared"], deviations)

    def to_measure(
        self, fingerprint: str, against: Reference, tried: Collection[int]
    ) -> Scored | None:
        """Return the scored checkpoint that a machine can prove itself by, None for none.

        The newest of the reference; else of machines that equal it. One that waits to be measured
        anew comes last.

        Args:
            fingerprint: Of the evaluation.
            against: Its reference.
            tried: Checkpoint ids to leave out.
        """
        rows = self.all(
            "SELECT c.id, c.name, coalesce(c.global_step, 0) AS global_step, c.pin_path,"
            " (SELECT p.path FROM promotions p WHERE p.checkpoint_id = c.id"
            " AND p.evicted_at IS NULL ORDER BY p.id DESC LIMIT 1) AS path"
            " FROM evaluations e JOIN all_checkpoints c ON c.id = e.checkpoint_id"
            f" WHERE e.fingerprint = ?1 AND e.machine_id IN {_SAME}"
            " AND (c.pin_path IS NOT NULL OR EXISTS (SELECT 1 FROM promotions p"
            " WHERE p.checkpoint_id = c.id AND p.evicted_at IS NULL))"
            " ORDER BY e.machine_id = ?2 DESC, c.state = 'scored' DESC, e.id DESC LIMIT ?3",
            [fingerprint, against.id, _LOOKED_AT],
        )
        for row in rows:
            places = [self.pin_prefix(row["pin_path"])] if row["pin_path"] else []
            places += [self._db.model_dir / row["path"]] if row["path"] else []
            there = [place for place in places if not missing([place])]
            if there and row["id"] not in tried:
                return Scored(row["id"], row["name"], row["global_step"], there[0])
        return None

    def recorded(self, fingerprint: str, against: Reference, checkpoint_id: int) -> Recorded | None:
        """Return what is recorded of a checkpoint; None where that is not the reference's any more.

        It may have been measured anew meanwhile.
        """
        row = self.one(
            "SELECT e.id, e.details FROM evaluations e WHERE e.fingerprint = ?1"
            f" AND e.machine_id IN {_SAME} AND e.checkpoint_id = ?3",
            [fingerprint, against.id, checkpoint_id],
        )
        if row is None:
            return None
        drawn = msgspec.json.decode(row["details"]).get("random_metrics") or ()
        return Recorded(self.values_of(row["id"]), drawn)

    def record_proof(
        self,
        evaluation: Evaluation,
        against: Reference,
        checkpoint_id: int,
        compared: int,
        deviations: Sequence[Deviation],
        device: str,
        now: float,
    ) -> None:
        """Record what came of a proof; of one that was recorded before nothing changes."""
        assert evaluation.machine is not None
        size = largest(deviations)
        with self._db.write():
            row = {
                "fingerprint": evaluation.fingerprint,
                "machine_id": _id_of(self._db, evaluation.machine, now),
                "against_id": against.id,
                "checkpoint_id": checkpoint_id,
                "device": device,
                "proved_at": iso(now),
                "equal": not deviations,
                "compared": compared,
                "differences": msgspec.json.encode(deviations).decode(),
                "largest": size if size < float("inf") else None,
            }
            if self._db.insert("machine_proofs", row, ignore=True):
                said = "measures the same" if not deviations else "measures something else"
                name = self.value("SELECT name FROM all_checkpoints WHERE id = ?", [checkpoint_id])
                self._db.event(now, "machine_compared", f"{device} {said}", name)

    def accept(self, proof: Proof, tolerance: float, device: str, now: float) -> None:
        """Record that a machine is let in though it differs, and up to where it was allowed to."""
        before = self.value("SELECT tolerance FROM machine_proofs WHERE id = ?", [proof.id])
        if before == tolerance:
            return
        with self._db.write():
            self._db.update("machine_proofs", proof.id, tolerance=tolerance)
            said = f"{device} is let in by --accept-host-differences {tolerance:g}"
            self._db.event(now, "machine_accepted", said, proof.checkpoint)


def measured_on(db: RunDatabase, evaluation: Evaluation, now: float) -> int | None:
    """Return the id of the machine of an evaluation, None where it is not known; in `write()`.

    The first of a fingerprint becomes its reference, for good.
    """
    if not evaluation.machine:
        return None
    id_ = _id_of(db, evaluation.machine, now)
    row = {"fingerprint": evaluation.fingerprint, "machine_id": id_}
    db.insert("machine_references", row, ignore=True)
    return id_


def machine_states(db: Rows) -> dict[int, dict[str, Any]]:
    """Return the view `machine_state` by machine; none of a database of an earlier version."""
    if not db.value("SELECT 1 FROM sqlite_master WHERE name = 'machine_state'"):
        return {}
    rows = db.all("SELECT * FROM machine_state")
    return {
        row["machine"]: {
            **row,
            "parts": msgspec.json.decode(row["parts"]),
            "differences": msgspec.json.decode(row["differences"] or "[]"),
        }
        for row in rows
    }


def machines_of(db: Rows, evaluation_ids: Sequence[int]) -> dict[int, int]:
    """Return evaluation id to its machine, as far as those are known."""
    if not db.value("SELECT 1 FROM sqlite_master WHERE name = 'machine_state'"):
        return {}
    rows = db.all(
        "SELECT e.id, e.machine_id FROM json_each(?) j CROSS JOIN evaluations e ON e.id = j.value"
        " WHERE e.machine_id NOT NULL",
        [msgspec.json.encode(evaluation_ids).decode()],
    )
    return {row["id"]: row["machine_id"] for row in rows}


def _id_of(db: RunDatabase, parts: Parts, now: float) -> int:
    row = {"parts": _encoded(parts), "first_seen_at": iso(now)}
    db.insert("machines", row, ignore=True)
    return int(db.value("SELECT id FROM machines WHERE parts = ?", [row["parts"]]))


def _encoded(parts: Parts) -> str:
    return msgspec.json.encode(dict(sorted(parts.items()))).decode()
