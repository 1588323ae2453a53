"""Explain: how the present rows were ranked, and why the run stops or goes on. Pure.

It asks the same functions that decide, `judge`, `walk` and `rules`, under the settings of the run
or under others, so that what it says is what would happen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from watcher.decision.board import Board
from watcher.decision.metric import Key
from watcher.decision.rank import Ranking, judge, rankable
from watcher.decision.stop import (
    Rule,
    StopDecision,
    StopPolicy,
    Walk,
    decide,
    newest_life,
    rules,
    too_early,
    walk,
)
from watcher.types import ScoredCheckpoint


@dataclass(frozen=True, slots=True)
class Explanation:
    """How one board and the stop stand.

    Attributes:
        board: The board.
        ranking: Its order over all rows, those whose files are gone among them.
        ranked: How many rows can rank.
        unranked: Rows whose score cannot rank.
        generation: The newest of the trainer's lives, which stopping looks at alone.
        walked: Where that stands for stopping.
        rules: The rules that are switched on, in the order in which they are looked at.
        waiting: Those about scores that are set, with their values, while there is no score.
        early: Why the rules about scores wait, None when they do not.
        decision: Why to stop as of now, None to go on.
        first_stop: The decision at the first row at which one would have been made, in step order.
    """

    board: Board
    ranking: Ranking
    ranked: int
    unranked: tuple[ScoredCheckpoint, ...]
    generation: int
    walked: Walk
    rules: tuple[Rule, ...]
    early: str | None
    waiting: tuple[tuple[str, float], ...]
    decision: StopDecision | None
    first_stop: StopDecision | None


def explain(
    rows: Sequence[ScoredCheckpoint],
    values: Mapping[int, Mapping[Key, float | None]],
    board: Board,
    policy: StopPolicy,
    *,
    incumbent: int | None = None,
    hours: float = 0.0,
    not_finite: Sequence[ScoredCheckpoint] = (),
) -> Explanation:
    """Decide anew, and keep what was decided by.

    Args:
        rows: Evaluations of one fingerprint, in any order.
        values: Evaluation id to the recorded values that the board reads.
        board: The board; its metric is computed from `values`.
        policy: When to stop.
        incumbent: Checkpoint id of the board's present first place, where a veto begins.
        hours: How long the newest generation has lasted.
        not_finite: Checkpoints that failed because their numbers are not finite.
    """
    seen = [
        replace(row, score=board.metric.value(found), values=found)
        for row in rows
        for found in [values.get(row.evaluation_id, {})]
    ]
    walked = walk([*seen, *not_finite], policy)
    unranked = tuple(row for row in seen if not rankable(row.score))
    return Explanation(
        board=board,
        ranking=judge(seen, board.policy, incumbent),
        ranked=len(seen) - len(unranked),
        unranked=unranked,
        generation=policy.generation,
        walked=walked,
        rules=tuple(rules(walked, policy, hours=hours)),
        early=too_early(walked, policy),
        waiting=() if walked.last else _about_scores(policy),
        decision=decide(walked, policy, hours=hours),
        first_stop=_first_stop([*seen, *not_finite], policy),
    )


def _about_scores(policy: StopPolicy) -> tuple[tuple[str, float], ...]:
    """Return the settings that stop by scores and are set."""
    names = ("patience", "patience_steps", "target", "divergence", "plateau_std", "trend_below")
    return tuple((name, value) for name in names if (value := getattr(policy, name)) is not None)


def _first_stop(rows: Sequence[ScoredCheckpoint], policy: StopPolicy) -> StopDecision | None:
    walked = Walk(policy)
    for row in newest_life(rows, policy):
        walked.add(row)
        decision = decide(walked, policy)
        if decision:
            return decision
    return None
