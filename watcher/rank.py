"""Rank: which checkpoints deserve a place in `best/`. Pure functions over rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from watcher.data import Leader, ScoredCheckpoint

Mode = Literal["max", "min"]


@dataclass(frozen=True, slots=True)
class RankPolicy:
    """How to order checkpoints: `mode` of the score, and `top_k` places (-1 all, 0 none)."""

    mode: Mode = "max"
    top_k: int = 3


def rankable(score: float | None) -> bool:
    """True for a score that may rank.

    COCO writes -1 where there was nothing to measure, and a metric that is not finite measured
    nothing either: neither ranks.
    """
    return score is not None and math.isfinite(score) and score != -1.0


def rank(rows: Iterable[ScoredCheckpoint], policy: RankPolicy) -> list[ScoredCheckpoint]:
    """Order rows from best to worst and keep the first `top_k`.

    Args:
        rows: Evaluations of one fingerprint, in any order.
        policy: Mode and number of places.

    Returns:
        The ranked rows. On equal scores the smaller global step, that is the older checkpoint,
        comes first. Rows that are not rankable are left out.
    """
    sign = -1.0 if policy.mode == "max" else 1.0

    def key(row: ScoredCheckpoint) -> tuple[float, int, int]:
        assert row.score is not None
        return (sign * row.score, row.global_step, row.checkpoint_id)

    ordered = sorted((row for row in rows if rankable(row.score)), key=key)
    return ordered if policy.top_k < 0 else ordered[: policy.top_k]


def name_leaders(
    ranked: Sequence[ScoredCheckpoint],
    placed: Mapping[str, str],
    reserved: Iterable[str] = (),
) -> list[Leader]:
    """Give each ranked row its rank and its name inside `best/`.

    A trainer that starts over reuses names. Where two different checkpoints share one, the first
    keeps it and the later one gets the first 8 digits of its sha256 behind it. A name once given
    stays as long as the checkpoint does.

    Args:
        ranked: The board, best first.
        placed: Names that files in `best/` carry already: sha256 to name.
        reserved: Names of foreign files in `best/`, which nothing may overwrite.
    """
    used = {*placed.values(), *reserved}
    names: dict[int, str] = {}
    for row in sorted(ranked, key=lambda row: row.checkpoint_id):
        name = placed.get(row.sha256)
        if name is None:
            name = row.name if row.name not in used else f"{row.name}-{row.sha256[:8]}"
            used.add(name)
        names[row.checkpoint_id] = name
    return [
        Leader(rank=place, row=row, name=names[row.checkpoint_id])
        for place, row in enumerate(ranked, start=1)
    ]
