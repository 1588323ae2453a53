"""Averaging: asks for the averages that a run is to have, and says which deserve a place.

What is asked for lies in the database; a worker writes it when nothing else waits, and it is
evaluated as any other (`evaluation.averages`). Averages have a board of their own, and a place on
the main one where they deserve it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import structlog
from msgspec.structs import replace

from watcher.config.ranking import RankingSettings
from watcher.decision.averages import (
    by_score,
    choose,
    deserving,
    next_trial,
    parse_choice,
)
from watcher.decision.board import AVERAGES_BOARD, Board
from watcher.decision.metric import Metric
from watcher.decision.ties import Difference
from watcher.store import Store
from watcher.store.averages import AverageJob
from watcher.store.replicates import paired
from watcher.types import ScoredCheckpoint

_log = structlog.get_logger(__name__)


def averages_board(main: Board, folder: Path) -> Board:
    """Return the board of the averages in `best-averages/`, ranked as the main one."""
    return replace(main, name=AVERAGES_BOARD, folder=folder, policy=replace(main.policy, veto=()))


class Averaging:
    """The averages of one run."""

    def __init__(self, ranking: RankingSettings, metric: Metric, store: Store) -> None:
        self._metric = metric
        self._mode = ranking.better
        self._promote = ranking.average_promote
        self._choice = parse_choice(ranking.average) if ranking.average else None
        self._batch_norm = ranking.recompute_batch_norm
        self._store = store

    def follow(self, rows: Sequence[ScoredCheckpoint], now: float) -> set[int]:
        """Ask for what is to be averaged next.

        Args:
            rows: What the trainer saved and has a score and a pin.
            now: Seconds since the epoch.

        Returns:
            Checkpoint ids of all whose pins must stay for it.
        """
        jobs = self._store.averages.jobs()
        for job in jobs:
            if job.greedy and job.first == job.id:
                self._try_next([one for one in jobs if one.first == job.id], rows, now)
        held = self._store.averages.needed()
        if self._choice is None:
            return held
        chosen = choose(rows, self._choice, self._mode)
        ids = [row.checkpoint_id for row in chosen]
        if self._is_due(ids, jobs):
            name = self._store.averages.ask(
                str(self._choice), ids, ids, now, recompute_batch_norm=self._batch_norm
            )
            _log.info("to be averaged", average=name, of=[row.name for row in chosen])
        return held | set(ids)

    def _is_due(self, ids: Sequence[int], jobs: Sequence[AverageJob]) -> bool:
        assert self._choice
        done = [set(one.parents) for one in jobs if one.recompute_batch_norm == self._batch_norm]
        if len(ids) < self._choice.count or set(ids) in done:
            return False
        if self._choice.by == "last" and set(ids) != self._store.ledger.last_scored(len(ids)):
            return False  # the files of one are gone: these are not the last
        return not self._store.queue.open_count()

    def _try_next(
        self, jobs: Sequence[AverageJob], rows: Sequence[ScoredCheckpoint], now: float
    ) -> None:
        """Ask for the next trial of a greedy average, once the last one has its score."""
        if self._store.averages.unfinished(jobs[-1]):
            return
        by_id = {row.checkpoint_id: row for row in rows}
        candidates = [by_id[one] for one in jobs[0].candidates if one in by_id]
        if len(candidates) < len(jobs[0].candidates):
            return  # of another evaluation, or gone since
        tried = [(frozenset(job.parents), self._store.averages.score(job)) for job in jobs]
        trial = next_trial(candidates, tried, self._mode)
        if trial:
            first, asked = jobs[0], jobs[0].asked
            name = self._store.averages.ask(
                asked,
                first.candidates,
                trial,
                now,
                greedy=True,
                first=first.id,
                recompute_batch_norm=first.recompute_batch_norm,
            )
            _log.info("to be averaged", average=name, asked=asked)

    def deserving(
        self, averages: Sequence[ScoredCheckpoint], rows: Sequence[ScoredCheckpoint]
    ) -> list[ScoredCheckpoint]:
        """Return which averages may have a place on the main board."""
        return deserving(averages, rows, self._promote, self._mode, self._differ)

    def _differ(self, one: ScoredCheckpoint, other: ScoredCheckpoint) -> Difference | None:
        """Return how much more one has than the other, None where it cannot be told how sure."""
        return paired(self._store.ledger, self._metric, one, other)


def first_parents(
    rows: Sequence[ScoredCheckpoint], mode: str, *, greedy: bool
) -> tuple[list[int], frozenset[int]]:
    """Return the candidates, best first, and of which the first average is, by checkpoint id."""
    ordered = by_score(rows, "min" if mode == "min" else "max")
    ids = [row.checkpoint_id for row in ordered]
    return ids, frozenset(ids[:2] if greedy else ids)
