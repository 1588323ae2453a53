"""Runs made by the store with replicates, as a worker would give them, of scores that are noise."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from made_runs import FINGERPRINT, MAP, NOW, Made, make_run

from watcher.decision.board import MAIN_BOARD, Board
from watcher.decision.metric import Mode, parse_metric
from watcher.decision.rank import RankPolicy
from watcher.decision.ties import interval
from watcher.promotion.standings import Standings
from watcher.store import Store
from watcher.types import Replicated, Replicates

COUNT = 200


def make_noisy(
    model_dir: Path,
    evaluations: Sequence[Made],
    *,
    images: int = 64,
    spread: float = 0.02,
    apart: float = 0.004,
    objects: Mapping[str, int] | None = None,
    other: str = "",
    without: Collection[int] = (),
    metric: str = MAP,
    mode: Mode = "max",
    top_k: int = 3,
    **options: str,
) -> Path:
    """Make a run as `make_run` does, with replicates, intervals and standings.

    Args:
        model_dir: Where.
        evaluations: What each recorded.
        images: Of the eval set.
        spread: The standard deviation of each score over draws of the eval set.
        apart: Of which so much is its own and not common to all: that of a difference is
            sqrt(2) times as large.
        objects: How many there are of each category.
        other: A metric that has the scores less 0.1, and replicates too.
        without: Which evaluations, from 1, have no replicates.
        metric, mode, top_k: By which it is ranked.
        options: Others of `make_run`.
    """
    if other:
        evaluations = [
            Made(one.step, {**one.metrics, other: one.metrics[MAP] and one.metrics[MAP] - 0.1})
            for one in evaluations
        ]
    make_run(model_dir, evaluations, metric=metric, mode=mode, top_k=top_k, **options)
    shared = random.Random(1)
    common = [shared.gauss(0, spread) for _ in range(COUNT)]
    path = model_dir / "watcher" / "watcher.db"
    with Store(path, run="run", model_dir=model_dir, now=NOW) as store:
        for row in store.ledger.scored():
            at = row.checkpoint_id
            if at in without or row.score is None:
                continue
            own = random.Random(at)
            deviations = [one + own.gauss(0, apart) for one in common]
            made = evaluations[at - 1]
            values = {(name, ""): made.metrics[name] for name in (MAP, other) if name}
            values |= {(MAP, of): made.categories[MAP, of] for of in objects or ()}
            drawn = tuple(
                _drawn(name, of, value, deviations, (objects or {}).get(of, 100))
                for (name, of), value in values.items()
                if value is not None
            )
            found = Replicates("images-1", images, COUNT, 0.95, drawn)
            store.replicates.record(at, FINGERPRINT, found)
        policy = RankPolicy(mode=mode, top_k=top_k)
        board = Board(MAIN_BOARD, model_dir / "best", parse_metric(metric), policy)
        best = store.ledger.best_evaluations(mode, 1)
        first = next(row for row in store.ledger.scored() if [row.evaluation_id] == best)
        standings = Standings(board, store)
        for _ in range(math.ceil(len(evaluations) / 32)):
            standings.update(first)
    return model_dir


def _drawn(
    name: str, category: str, value: float, deviations: Sequence[float], objects: int
) -> Replicated:
    values = array("f", (value + one for one in deviations))
    ends = interval(values)
    assert ends is not None
    return Replicated(name, category, objects, *ends, values.tobytes())
