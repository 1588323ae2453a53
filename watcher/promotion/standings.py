"""Standings: which of the best scores the eval set tells apart, recorded for whoever asks."""

from __future__ import annotations

from collections.abc import Mapping

from watcher.decision.board import Board
from watcher.decision.ties import CANDIDATES, Draws, Numbers, interval, standings
from watcher.store import Store
from watcher.store.replicates import draws_of
from watcher.types import ScoredCheckpoint

# Intervals written at one update, where another metric makes them all anew.
_AT_ONCE = 32


class Standings:
    """Intervals of the main board's score, and how the best stand to each other."""

    def __init__(self, board: Board, store: Store) -> None:
        self._board, self._store = board, store
        self._seen: tuple[object, ...] | None = None
        self._known: dict[int, tuple[tuple[str, int], Numbers]] = {}

    def update(self, best: ScoredCheckpoint | None) -> None:
        """Record what there is to say as of now; `best` has the first place.

        Raises:
            StoreError: the database cannot be read or written.
        """
        ledger = self._store.ledger
        self._fill_intervals()
        state = (best and best.evaluation_id, ledger.revision, self._store.replicates.recorded)
        if state == self._seen:
            return
        found = self._of(best.evaluation_id) if best else {}
        policy = self._board.policy
        told = standings(found, best.evaluation_id, policy.mode, policy.top_k) if best else {}
        self._store.replicates.set_standings(told)
        self._seen = state

    def _of(self, best: int) -> Mapping[int, Numbers]:
        """Return the score's replicates of the best evaluations, as far as they can be paired."""
        ids = self._store.ledger.best_evaluations(self._board.policy.mode, CANDIDATES)
        wanted = {*ids, best}
        self._known = {id_: one for id_, one in self._known.items() if id_ in wanted}
        missing = wanted - self._known.keys()
        for id_, draws in draws_of(self._store.ledger, missing, self._board.metric.keys).items():
            values = draws.of(self._board.metric)
            if values is not None:
                self._known[id_] = draws.identity, values
        if best not in self._known:
            return {}
        identity = self._known[best][0]
        return {id_: values for id_, (of, values) in self._known.items() if of == identity}

    def _fill_intervals(self) -> None:
        replicates, metric = self._store.replicates, self._board.metric
        ids = replicates.without_interval(metric.keys, _AT_ONCE)
        for id_, draws in draws_of(self._store.ledger, ids, metric.keys).items():
            replicates.set_interval(id_, _interval(draws, self._board))


def _interval(draws: Draws, board: Board) -> tuple[float, float] | None:
    values = draws.of(board.metric)
    return None if values is None else interval(values)
