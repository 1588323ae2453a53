"""Explain: how the present rows were ranked, and why the run stops or goes on. Pure.

It asks the same functions that decide, `judge`, `walk` and `rules`, under the settings of the run
or under others, so that what it says is what would happen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import msgspec

from watcher.decision.board import Board
from watcher.decision.metric import Key
from watcher.decision.rank import Ranking, judge_by_noise, rankable
from watcher.decision.resolution import about_min_delta, half_width, least_gain
from watcher.decision.stop import Rule, StopDecision, decide, rules, too_early
from watcher.decision.ties import Difference, Draws, Standing, on_draws_of, paired, standings
from watcher.decision.walk import StopPolicy, Walk, newest_life, walk
from watcher.types import ScoredCheckpoint

MOST_LEADERS = 10


class Gain(msgspec.Struct, frozen=True):
    """What patience takes for a gain, and how exactly a difference is known.

    Attributes:
        least: The gain that is none yet, by `min_delta`.
        half: The half width of the difference's interval.
        between: Of which two evaluations that is.
    """

    least: float
    half: float
    between: tuple[ScoredCheckpoint, ScoredCheckpoint]

    @property
    def message(self) -> str:
        """It in a sentence."""
        first, second = self.between
        return about_min_delta(self.least, self.half, f"of {first.name} and {second.name}")


# Given averages and what was saved, returns which of the averages may have a place.
Deserve = Callable[
    [Sequence[ScoredCheckpoint], Sequence[ScoredCheckpoint]], Sequence[ScoredCheckpoint]
]


class Certainty(msgspec.Struct, frozen=True):
    """How exactly the scores of a board are known.

    Attributes:
        differences: Evaluation id to how much more it has than the first of the board.
        standings: Evaluation id to how it stands to the others that have replicates.
        gain: None where patience is not set, the scores are smoothed, or nothing is known.
    """

    differences: Mapping[int, Difference] = msgspec.field(default_factory=dict)
    standings: Mapping[int, Standing] = msgspec.field(default_factory=dict)
    gain: Gain | None = None


class Explanation(msgspec.Struct, frozen=True):
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
        stopping: When to stop.
        awaits: The checkpoint whose score the decision waits for, None for none.
        certainty: How exactly the scores are known, as far as there are replicates.
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
    stopping: StopPolicy
    awaits: str | None = None
    certainty: Certainty = Certainty()

    @property
    def compared(self) -> tuple[ScoredCheckpoint, ...]:
        """The evaluations whose replicates `with_certainty` asks for."""
        walked = (row for row in (self.walked.last, self.walked.improved) if row)
        rows = (*self.ranking.leaders[:MOST_LEADERS], *walked)
        return tuple({row.evaluation_id: row for row in rows}.values())


def explain(
    rows: Sequence[ScoredCheckpoint],
    values: Mapping[int, Mapping[Key, float | None]],
    board: Board,
    policy: StopPolicy,
    *,
    incumbent: int | None = None,
    hours: float = 0.0,
    not_finite: Sequence[ScoredCheckpoint] = (),
    averages: Sequence[ScoredCheckpoint] = (),
    deserve: Deserve = lambda averages, _: averages,
    tied_with: Callable[[int], Collection[int]] = lambda _: (),
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
        averages: Those that there are; they stop nothing.
        deserve: Is asked by the board's scores, of what was saved and has files.
        tied_with: As `judge_by_noise` takes it.
    """

    def by_board(rows: Sequence[ScoredCheckpoint]) -> list[ScoredCheckpoint]:
        found = [(row, values.get(row.evaluation_id, {})) for row in rows]
        return [replace(row, score=board.metric.value(of), values=of) for row, of in found]

    seen = by_board(rows)
    placed = deserve(by_board(averages), [row for row in seen if row.pin])
    walked = walk([*seen, *not_finite], policy)
    unranked = tuple(row for row in seen if not rankable(row.score))
    return Explanation(
        board=board,
        ranking=judge_by_noise([*seen, *placed], board.policy, incumbent, tied_with),
        ranked=len(seen) + len(placed) - len(unranked),
        unranked=unranked,
        generation=policy.generation,
        walked=walked,
        rules=tuple(rules(walked, policy, hours=hours)),
        early=too_early(walked, policy),
        waiting=() if walked.last else _about_scores(policy),
        decision=decide(walked, policy, hours=hours),
        first_stop=_first_stop([*seen, *not_finite], policy),
        stopping=policy,
    )


def with_certainty(told: Explanation, draws: Mapping[int, Draws]) -> Explanation:
    """Return an explanation that says how exactly the scores are known.

    Args:
        told: Without that.
        draws: The replicates that there are of `told.compared`, by evaluation id.
    """
    leaders, metric, policy = told.ranking.leaders, told.board.metric, told.board.policy
    if not leaders:
        return told
    best = leaders[0]
    differences = {
        row.evaluation_id: found
        for row in leaders[1:MOST_LEADERS]
        if (found := paired(row, best, draws, metric))
    }
    known = {best.evaluation_id, *differences}
    drawn = {id_: one for id_, one in draws.items() if id_ in known}
    values = on_draws_of(best.evaluation_id, drawn, metric)
    placed = standings(values, best.evaluation_id, policy.mode, policy.top_k)
    return msgspec.structs.replace(
        told, certainty=Certainty(differences, placed, _gain(told, draws))
    )


def _gain(told: Explanation, draws: Mapping[int, Draws]) -> Gain | None:
    policy, walked = told.stopping, told.walked
    improved, last = walked.improved, walked.last
    if policy.smoothing or (policy.patience is None and policy.patience_steps is None):
        return None
    if improved is None or last is None:
        return None
    for other in (last, *told.ranking.leaders):
        found = paired(other, improved, draws, told.board.metric)
        if found and other.evaluation_id != improved.evaluation_id:
            least = least_gain(policy, walked.reference)
            return Gain(least, half_width(found), (other, improved))
    return None


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
