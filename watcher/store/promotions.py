"""The promotions: what lies in each board's folder, and what lay there before."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from watcher.store.database import RunDatabase
from watcher.store.database_file import iso
from watcher.store.relocation import inside
from watcher.store.rows import MEASURED
from watcher.types import Leader


class Promotions:
    """Verbs on promotions and placements, by the board's name. Each is one transaction."""

    def __init__(self, database: RunDatabase) -> None:
        self._db = database
        self._run_id = database.run_id

    def present(self, board: str) -> list[dict[str, Any]]:
        """Return a board: `id, checkpoint_id, evaluation_id, rank, path, score, metric`."""
        rows = self._db.all(
            "SELECT id, checkpoint_id, evaluation_id, rank, path, score, metric FROM promotions"
            " WHERE run_id = ? AND board = ? AND evicted_at IS NULL ORDER BY rank",
            [self._run_id, board],
        )
        return [{**row, "path": str(self._db.model_dir / row["path"])} for row in rows]

    def first(self, board: str) -> tuple[int, float | None, str] | None:
        """Return checkpoint id, score and metric of a board's first place, None when empty."""
        row = self._db.one(
            "SELECT checkpoint_id, score, metric FROM promotions WHERE run_id = ? AND board = ?"
            " AND evicted_at IS NULL ORDER BY rank LIMIT 1",
            [self._run_id, board],
        )
        return (row["checkpoint_id"], row["score"], row["metric"]) if row else None

    def awaiting_new_score(self, board: str) -> int:
        """Return how many checkpoints of a board wait for their score in the present evaluation.

        One that has such a score, and is measured again because a person asked, keeps its place by
        that meanwhile.
        """
        return self._count(board, f"c.state IN ('pending', 'leased') AND NOT {MEASURED}")

    def still_pinned(self, board: str) -> int:
        """Return how many checkpoints of a board have their files in the pins."""
        return self._count(board, "c.pin_path IS NOT NULL")

    def _count(self, board: str, where: str) -> int:
        count: int = self._db.value(
            "SELECT count(*) FROM promotions p JOIN all_checkpoints c ON c.id = p.checkpoint_id"
            f" WHERE p.run_id = ? AND p.board = ? AND p.evicted_at IS NULL AND {where}",
            [self._run_id, board],
        )
        return count

    def record(
        self,
        board: str,
        leaders: Sequence[Leader],
        paths: dict[int, str],
        metric: str,
        now: float,
    ) -> bool:
        """Make the promotions equal to the board that lies in its folder.

        Args:
            board: Its name.
            leaders: The board, in order.
            paths: Checkpoint id to its prefix inside the folder.
            metric: Name of the metric that ranked them.
            now: Seconds since the epoch.

        Returns:
            True when something changed.
        """
        wanted = {leader.row.checkpoint_id: leader for leader in leaders}
        before = {row["checkpoint_id"]: row for row in self.present(board)}
        true = {
            id_: (leader.row.evaluation_id or None, leader.row.score, metric, paths[id_])
            for id_, leader in wanted.items()
        }
        said = ("evaluation_id", "score", "metric", "path")
        stale = [
            row
            for id_, row in before.items()
            if tuple(row[column] for column in said) != true.get(id_)
        ]
        for row in stale:
            del before[row["checkpoint_id"]]
        places = {checkpoint: row["rank"] for checkpoint, row in before.items()}
        if not stale and places == {id_: leader.rank for id_, leader in wanted.items()}:
            return False
        with self._db.write():
            for row in stale:
                self._evict(row, now, replaced=row["checkpoint_id"] in wanted)
            for checkpoint, leader in wanted.items():
                if checkpoint not in before:
                    self._promote(board, leader, paths[checkpoint], metric, now)
                elif leader.rank != places[checkpoint]:
                    self._db.update("promotions", before[checkpoint]["id"], rank=leader.rank)
        return True

    def rename(self, folders: Mapping[str, Path], now: float) -> None:
        """Give what lies in a board's folder to that board, where it lay there under another name.

        Args:
            folders: Name to folder, of all boards that are set.
            now: Seconds since the epoch.
        """
        rows = self._db.all(
            "SELECT board, path FROM promotions WHERE run_id = ? AND evicted_at IS NULL",
            [self._run_id],
        )
        lie = {row["board"]: str(Path(row["path"]).parent) for row in rows}
        for name, folder in folders.items():
            place = inside(str(folder), self._db.model_dir)
            before = [board for board, at in lie.items() if at == place and board not in folders]
            if name in lie or not before:
                continue
            with self._db.write():
                for update in (
                    "UPDATE promotions SET board = ? WHERE run_id = ? AND board = ?"
                    " AND evicted_at IS NULL",
                    "UPDATE OR REPLACE placements SET board = ? WHERE run_id = ? AND board = ?",
                ):
                    self._db.run(update, [name, self._run_id, before[0]])
                self._db.event(now, "board_renamed", f"board {before[0]} is {name} now")

    def retire(self, boards: Collection[str], now: float) -> list[str]:
        """End the promotions of boards that are not among `boards`; returns their names."""
        rows = self._db.all(
            "SELECT DISTINCT board FROM promotions WHERE run_id = ? AND evicted_at IS NULL",
            [self._run_id],
        )
        retired = sorted({row["board"] for row in rows} - set(boards))
        if not retired:
            return []
        with self._db.write():
            for board in retired:
                self._db.run(
                    "UPDATE promotions SET evicted_at = ? WHERE run_id = ? AND board = ?"
                    " AND evicted_at IS NULL",
                    [iso(now), self._run_id, board],
                )
                self._db.event(now, "board_retired", f"board {board} is not set any more")
        return retired

    def _evict(self, row: dict[str, Any], now: float, *, replaced: bool) -> None:
        self._db.update("promotions", row["id"], evicted_at=iso(now))
        if not replaced:
            folder, name = row["path"].rsplit("/", 2)[-2:]
            self._db.event(now, "evicted", f"leaves {folder}/", name)

    def _promote(self, board: str, leader: Leader, path: str, metric: str, now: float) -> None:
        row = {
            "run_id": self._run_id,
            "board": board,
            "checkpoint_id": leader.row.checkpoint_id,
            "evaluation_id": leader.row.evaluation_id or None,
            "rank": leader.rank,
            "score": leader.row.score,
            "metric": metric,
            "path": inside(path, self._db.model_dir),
            "promoted_at": iso(now),
        }
        self._db.insert("promotions", row)
        folder = path.rsplit("/", 2)[-2]
        self._db.event(now, "promoted", f"rank {leader.rank} in {folder}/", leader.name)

    # -- names in the folders

    def placements(self, board: str) -> dict[str, str]:
        """Return the names our files carry in a board's folder: sha256 to name."""
        rows = self._db.all(
            "SELECT sha256, name FROM placements WHERE run_id = ? AND board = ?",
            [self._run_id, board],
        )
        return {row["sha256"]: row["name"] for row in rows}

    def place(self, board: str, leaders: Iterable[Leader]) -> None:
        """Note the names that files are about to get in a folder, before they get them."""
        with self._db.write():
            for leader in leaders:
                row = {"run_id": self._run_id, "board": board}
                row |= {"sha256": leader.row.sha256, "name": leader.name}
                self._db.insert("placements", row, ignore=True)

    def found_whole(self, board: str) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Return the files that were read byte by byte in a board's folder: sha256 to signature."""
        rows = self._db.all(
            "SELECT sha256, files FROM placements WHERE run_id = ? AND board = ?"
            " AND files IS NOT NULL",
            [self._run_id, board],
        )
        shape = tuple[tuple[int, ...], ...]
        return {row["sha256"]: msgspec.json.decode(row["files"], type=shape) for row in rows}

    def note_whole(self, board: str, whole: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Note which files were read byte by byte; those of the other placements were not."""
        with self._db.write():
            for row in self._db.all(
                "SELECT sha256, files FROM placements WHERE run_id = ? AND board = ?",
                [self._run_id, board],
            ):
                files = whole.get(row["sha256"])
                encoded = None if files is None else msgspec.json.encode(files).decode()
                if encoded != row["files"]:
                    self._db.run(
                        "UPDATE placements SET files = ? WHERE run_id = ? AND board = ?"
                        " AND sha256 = ?",
                        [encoded, self._run_id, board, row["sha256"]],
                    )

    def unplace(self, board: str, names: Iterable[str]) -> None:
        """Note that no file of ours carries these names any more."""
        with self._db.write():
            for name in names:
                self._db.run(
                    "DELETE FROM placements WHERE run_id = ? AND board = ? AND name = ?",
                    [self._run_id, board, name],
                )
