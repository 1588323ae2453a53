"""Judging: evaluations as a board sees them, ranked; and what is said of that."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from watcher.decision.board import Board
from watcher.decision.metric import Key
from watcher.decision.rank import Ranking, judge_by_noise
from watcher.decision.ties import tie_set
from watcher.promotion.standings import ScoreDraws
from watcher.store import Store
from watcher.types import ScoredCheckpoint


class Judging:
    """Ranks for the boards of one run: with their own scores, and with what decides beside them."""

    def __init__(self, boards: Sequence[Board], averages: Board, store: Store) -> None:
        self._boards, self._store = boards, store
        self._draws = {board.name: ScoreDraws(board, store) for board in (*boards, averages)}
        self._values: dict[int, dict[Key, float | None]] = {}
        self._values_of: str | None = None

    def forget(self) -> None:
        """Read the values anew that decide beside scores."""
        self._values.clear()

    def judge(self, board: Board, rows: Sequence[ScoredCheckpoint]) -> Ranking:
        """Rank evaluations as a board sees them."""
        incumbent = self._store.ledger.incumbent(board.name)
        seen = list(self._as_seen_by(board, rows))

        def tied_with(best: int) -> set[int]:
            drawn = self._draws[board.name].of([row.evaluation_id for row in seen], best)
            return tie_set(drawn, best, board.policy.mode)

        return judge_by_noise(seen, board.policy, incumbent, tied_with)

    def decidable(
        self, board: Board, rows: Sequence[ScoredCheckpoint]
    ) -> Sequence[ScoredCheckpoint]:
        """Leave out what comes anew and has no replicates yet, where ties go by them.

        Else what it may be tied with would lose its place, and its files, for those seconds.
        """
        if board.policy.ties_by == "score":
            return rows
        return self.told(rows, self._present(board.name))

    def told(
        self, rows: Sequence[ScoredCheckpoint], but: Collection[int] = ()
    ) -> Sequence[ScoredCheckpoint]:
        """Leave out what has no replicates yet and is to get some; all stay where that is all."""
        awaited = self._store.replicates.awaited.difference(but)
        return [row for row in rows if row.checkpoint_id not in awaited] or rows

    def _as_seen_by(
        self, board: Board, rows: Sequence[ScoredCheckpoint]
    ) -> Iterable[ScoredCheckpoint]:
        """Give rows the board's own score, and the values that decide beside it."""
        main = board is self._boards[0]
        keys = {key for metric in board.metrics[main:] for key in metric.keys}
        if not keys:
            return rows
        fingerprint = self._store.ledger.fingerprint()
        if fingerprint != self._values_of:
            self._values, self._values_of = {}, fingerprint
        every = {key for one in self._boards for metric in one.metrics for key in metric.keys}
        missing = [row.evaluation_id for row in rows if row.evaluation_id not in self._values]
        self._values |= self._store.ledger.values(missing, every)
        seen = (replace(row, values=self._values[row.evaluation_id]) for row in rows)
        if main:
            return seen
        return [replace(row, score=board.metric.value(row.values)) for row in seen]

    def _present(self, board: str) -> set[int]:
        return {row["checkpoint_id"] for row in self._store.promotions.present(board)}


def worth_keeping(ranking: Ranking, board: Board) -> list[ScoredCheckpoint]:
    """Return the leaders, and as many of those a veto keeps out: the next best may lift the veto.

    And the one with the best score: what is tied is tied with that, whether it has a place or not.
    """
    vetoed = [row for row, _ in ranking.vetoed]
    limit, highest = board.policy.top_k, ranking.highest
    best = [highest] if highest else []
    return [*ranking.leaders, *best, *(vetoed if limit < 0 else vetoed[:limit])]


def notes_on(board: Board, ranking: Ranking) -> dict[int, str | None]:
    """Return what is to be noted on checkpoints, by id; None where nothing is."""
    notes: dict[int, str | None] = {row.checkpoint_id: None for row in ranking.leaders}
    first, highest = ranking.leaders[:1], ranking.highest
    if first and highest and first[0] is not highest:
        notes[first[0].checkpoint_id] = _as_good(board, first[0], highest)
    return notes | {
        row.checkpoint_id: f"not promoted to {board.folder.name}/: {why}"
        for row, why in ranking.vetoed
    }


def _as_good(board: Board, first: ScoredCheckpoint, highest: ScoredCheckpoint) -> str:
    """Say why what has not the best score is the first."""
    assert first.score is not None and highest.score is not None
    by = [metric.text for metric, _ in board.policy.tie_break]
    order = " and ".join([*by, f"the {board.policy.ties} step"])
    return (
        f"first in {board.folder.name}/ though {highest.name} scored"
        f" {abs(highest.score - first.score):.2g} better: this eval set cannot tell them apart, so"
        f" {order} decides"
    )
