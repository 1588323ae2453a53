"""What is decided from rows in one call, where the watcher keeps what it was decided by."""

from __future__ import annotations

from collections.abc import Iterable

from watcher.decision.rank import RankPolicy, judge
from watcher.decision.stop import StopDecision, decide
from watcher.decision.walk import StopPolicy, walk
from watcher.types import ScoredCheckpoint


def rank(rows: Iterable[ScoredCheckpoint], policy: RankPolicy) -> list[ScoredCheckpoint]:
    """Return the rows that have a place, best first."""
    return list(judge(rows, policy).leaders)


def should_stop(
    rows: Iterable[ScoredCheckpoint], policy: StopPolicy, *, hours: float = 0.0
) -> StopDecision | None:
    """Return the decision, None to go on."""
    return decide(walk(rows, policy), policy, hours=hours)
