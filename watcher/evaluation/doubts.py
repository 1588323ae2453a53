"""Doubts: what places are given by though it differs by chance, told once each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import structlog

from watcher.decision.board import Board
from watcher.decision.noise import latency_doubt, random_doubts, reads_latency
from watcher.store import Ledger

_log = structlog.get_logger(__name__)


class Doubts:
    """What one run's boards decide by that is noise."""

    def __init__(self, boards: Sequence[Board], ledger: Ledger) -> None:
        self._boards = boards
        self._reading_latency = [board for board in boards if reads_latency(board)]
        self._ledger = ledger
        self._random: list[str] = []
        self._latency: dict[str, str] = {}
        self._told: set[str] = set()

    @property
    def sentences(self) -> list[str]:
        """A sentence for each, as of now."""
        return [*self._random, *self._latency.values()]

    def take_drawn(self, metrics: Iterable[str]) -> None:
        """Take note of the metrics that a worker says are drawn at random."""
        self._random = random_doubts(self._boards, list(metrics))
        for doubt in self._random:
            self._tell(doubt, doubt)

    def judge_latency(self) -> None:
        """Look whether places are given by latencies that differ no more than chance does.

        Raises:
            StoreError: the database cannot be read.
        """
        if not self._reading_latency:
            return
        rows = self._ledger.scored_and_pinned()
        ids = [row.evaluation_id for row in rows]
        keys = {key for one in self._reading_latency for m in one.metrics for key in m.keys}
        values = self._ledger.values(ids, keys)
        seen = [replace(row, values=values[row.evaluation_id]) for row in rows]
        spreads = self._ledger.latency_spreads(ids)
        self._latency.clear()
        for board in self._reading_latency:
            if doubt := latency_doubt(board, seen, spreads):
                self._latency[board.name] = doubt
                self._tell(f"latency of {board.name}", doubt)

    def _tell(self, subject: str, doubt: str) -> None:
        if subject not in self._told:
            self._told.add(subject)
            _log.warning(doubt)
