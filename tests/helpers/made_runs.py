"""Runs made by the store itself: as many evaluations as a test wants, without a daemon."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from decided import rank
from stores import found_and_pinned

from watcher.decision.metric import Mode, parse_metric
from watcher.decision.rank import RankPolicy
from watcher.store import Store
from watcher.types import Evaluation, Leader, ScoredCheckpoint

NOW = 1_700_000_000.0
FINGERPRINT = "a" * 64
MAP = "DetectionBoxes_Precision/mAP"
LOSS = "Loss/total_loss"


@dataclass(frozen=True)
class Made:
    """One evaluation: what it recorded; None is a value that is not finite."""

    step: int
    metrics: Mapping[str, float | None]
    categories: Mapping[tuple[str, str], float | None] = field(default_factory=dict)


def scores(*values: float | None, apart: int = 100) -> list[Made]:
    """Evaluations with these scores, so many steps apart."""
    return [Made(apart * (at + 1), {MAP: value, LOSS: 2.0}) for at, value in enumerate(values)]


def learning(count: int, *, categories: int = 0, seed: int = 0, apart: int = 1000) -> list[Made]:
    """Evaluations like those of a real run: fast at first, then slowly, with some noise."""
    made = []
    for at in range(count):
        progress = 1 - math.exp(-4 * (at + 1) / count)
        noise = math.sin(at * 2.1 + seed) * 0.012 + math.sin(at * 0.37 + 2 * seed) * 0.02
        score = (0.42 + 0.05 * math.sin(seed)) * progress + noise * progress
        box, fit = 1.9 - 1.5 * progress + noise, 0.8 - 0.5 * progress
        losses = {"classification": box, "localization": fit, "regularization": 0.05}
        each = {
            (MAP, f"category {of:02}"): min(max(score * (0.4 + of / categories) + noise, 0.0), 1.0)
            for of in range(categories)
        }
        metrics = {MAP: score, LOSS: sum(losses.values())}
        metrics |= {f"Loss/{name}_loss": value for name, value in losses.items()}
        made.append(Made(apart * (at + 1), metrics, each))
    return made


def make_run(
    model_dir: Path,
    evaluations: Sequence[Made],
    *,
    name: str = "run",
    metric: str = MAP,
    mode: Mode = "max",
    top_k: int = 3,
    stop: str | None = None,
) -> Path:
    """Make a run's database, as if each evaluation had been recorded and ranked in turn.

    Returns:
        `model_dir`; `stop` is why the run was stopped after the last evaluation.
    """
    path = model_dir / "watcher" / "watcher.db"
    path.parent.mkdir(parents=True)
    with Store(path, run=name, model_dir=model_dir, now=NOW) as store:
        store.ledger.set_policy(parse_metric(metric), mode, NOW)
        store.ledger.set_fingerprint(FINGERPRINT, NOW)
        for counter, made in enumerate(evaluations, 1):
            _record(store, counter, made, parse_metric(metric).value, NOW + counter)
            leaders = rank(store.ledger.scored(), RankPolicy(mode=mode, top_k=top_k))
            _promote(store, model_dir, leaders, metric, NOW + counter)
        if stop:
            store.ledger.add_event(NOW + len(evaluations), "stop", stop)
    return model_dir


def _record(store: Store, counter: int, made: Made, scored, now: float) -> None:
    found, pin = found_and_pinned(counter, step=made.step)
    store.queue.record_pin(found, pin, now)
    lease = store.queue.lease_next(now, 60)
    assert lease is not None
    categories = tuple((*key, value) for key, value in made.categories.items())
    evaluation = Evaluation(FINGERPRINT, 8, dict(made.metrics), categories)
    value = scored(evaluation.values)
    store.ledger.record_score(lease, evaluation, value, started=now - 2, now=now)


def _promote(
    store: Store, model_dir: Path, leaders: Sequence[ScoredCheckpoint], metric: str, now: float
) -> None:
    paths = {row.checkpoint_id: str(model_dir / "best" / row.name) for row in leaders}
    board = [Leader(place, row, row.name) for place, row in enumerate(leaders, 1)]
    store.promotions.record("best", board, paths, metric, now)
