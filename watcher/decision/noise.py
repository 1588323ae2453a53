"""Noise: where a board decides by what two evaluations of one checkpoint do not agree on. Pure.

Some models draw at random while they are evaluated (Faster R-CNN samples the anchors of its RPN
losses), which the evaluator tells by the model's graph. And a latency is a measurement, with a
spread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import msgspec

from watcher.decision.board import Board
from watcher.decision.metric import LATENCY, Metric
from watcher.decision.rank import RankPolicy, judge, settled
from watcher.types import ScoredCheckpoint

_KEY = (LATENCY, "")


def random_doubts(all_boards: Iterable[Board], random_metrics: Collection[str]) -> list[str]:
    """Say of each metric that is drawn at random and decides something what that means.

    Args:
        all_boards: The boards of the run; the first drives stopping.
        random_metrics: Recorded metrics that are drawn at random in part.
    """
    doubts = []
    for place, board in enumerate(all_boards):
        for metric in board.metrics:
            names = sorted({name for name, _ in metric.keys} & set(random_metrics))
            if not names:
                continue
            use = "ranked" if metric is board.metric else "decided beside its metric"
            use += " and an early stop decided" * (place == 0 and metric is board.metric)
            doubts.append(
                f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} drawn at random in"
                f" part: two evaluations of one checkpoint differ in it, and {board.folder.name}/"
                f" is {use} by {metric.text}"
            )
    return list(dict.fromkeys(doubts))


def reads_latency(board: Board) -> bool:
    """Tell whether anything of a board is decided by how long a pass takes."""
    return any(_KEY in metric.keys for metric in board.metrics)


def latency_doubt(
    board: Board, rows: Sequence[ScoredCheckpoint], spreads: Mapping[int, float]
) -> str | None:
    """Say which places of a board rest on a difference in latency that is smaller than its spread.

    Looked at are neighbours, from the first place to the one behind the last, and what a veto
    keeps out: would the other order hold, or the veto not, were both as fast?

    Args:
        board: The board.
        rows: Evaluations of one fingerprint, with the `values` that the board reads.
        spreads: Evaluation id to the spread of its latency, milliseconds; what is not in it was
            measured without one.
    """
    if not reads_latency(board) or not board.policy.top_k:
        return None
    seen = [replace(row, score=board.metric.value(row.values)) for row in rows]
    ranking = judge(seen, msgspec.structs.replace(board.policy, top_k=-1))
    limit = board.policy.top_k
    ranked = ranking.leaders if limit < 0 else ranking.leaders[: limit + 1]
    pairs = [(one, other, "places") for one, other in pairwise(ranked)]
    pairs += [(ranked[0], row, "a veto") for row, _ in ranking.vetoed] if ranked else []
    for one, other, what in pairs:
        here, there = one.values.get(_KEY), other.values.get(_KEY)
        spread = max(spreads.get(row.evaluation_id, 0.0) for row in (one, other))
        if here is None or there is None or abs(here - there) > spread:
            continue
        if _latency_decides(board.metric, board.policy, one, other):
            return (
                f"latency_ms decides {what} in {board.folder.name}/ within its spread:"
                f" {one.name} ({here:.4g} ms) and {other.name} ({there:.4g} ms) differ by"
                f" {abs(here - there):.2g} ms where equal models differ by up to {spread:.2g} ms"
            )
    return None


def _latency_decides(
    metric: Metric, policy: RankPolicy, one: ScoredCheckpoint, other: ScoredCheckpoint
) -> bool:
    """True unless `one` would be before `other`, or against it, as fast as that."""
    values = {**other.values, _KEY: one.values[_KEY]}
    equal = replace(other, values=values, score=metric.value(values))
    return settled(one, other, policy) != settled(one, equal, policy)
