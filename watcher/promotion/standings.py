"""Standings: which of the best scores the eval set tells apart, recorded for whoever asks."""

from __future__ import annotations

from collections.abc import Collection

from watcher.decision.board import Board
from watcher.decision.ties import CANDIDATES, Draws, Numbers, interval, standings
from watcher.store import Store
from watcher.store.replicates import draws_of
from watcher.types import ScoredCheckpoint

# Intervals written at one update, where another metric makes them all anew.
_AT_ONCE = 32


class ScoreDraws:
    """A board's score in each replicate, of those evaluations that are asked for; read once."""

    def __init__(self, board: Board, store: Store) -> None:
        self._metric, self._store = board.metric, store
        self._known: dict[int, tuple[tuple[str, int], Numbers]] = {}
        self._revision: object = None

    def of(self, ids: Collection[int], best: int) -> dict[int, Numbers]:
        """Return evaluation id to its score's replicates, where they are on the draws of `best`."""
        if self._revision != self._store.ledger.revision:
            self._known, self._revision = {}, self._store.ledger.revision
        wanted = {*ids, best}
        self._known = {id_: one for id_, one in self._known.items() if id_ in wanted}
        missing = wanted - self._known.keys()
        for id_, draws in draws_of(self._store.ledger, missing, self._metric.keys).items():
            values = draws.of(self._metric)
            if values is not None:
                self._known[id_] = draws.identity, values
        if best not in self._known:
            return {}
        identity = self._known[best][0]
        return {id_: values for id_, (of, values) in self._known.items() if of == identity}


class Standings:
    """Intervals of the main board's score, and how the best stand to each other."""

    def __init__(self, board: Board, store: Store) -> None:
        self._board, self._store = board, store
        self._draws = ScoreDraws(board, store)
        self._seen: tuple[object, ...] | None = None
        # Evaluations whose score has no interval, whatever replicates its parts have.
        self._without: set[int] = set()
        self._revision: object = None

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
        policy, found = self._board.policy, dict[int, Numbers]()
        if best:
            ids = ledger.best_evaluations(policy.mode, CANDIDATES)
            found = self._draws.of(ids, best.evaluation_id)
        told = standings(found, best.evaluation_id, policy.mode, policy.top_k) if best else {}
        self._store.replicates.set_standings(told)
        self._seen = state

    def _fill_intervals(self) -> None:
        replicates, metric = self._store.replicates, self._board.metric
        if self._revision != self._store.ledger.revision:
            self._without, self._revision = set(), self._store.ledger.revision
        ids = replicates.without_interval(metric.keys, _AT_ONCE, self._without)
        draws = draws_of(self._store.ledger, ids, metric.keys)
        for id_ in ids:
            if ends := id_ in draws and _interval(draws[id_], self._board):
                replicates.set_interval(id_, ends)
            else:
                self._without.add(id_)


def _interval(draws: Draws, board: Board) -> tuple[float, float] | None:
    values = draws.of(board.metric)
    return None if values is None else interval(values)
