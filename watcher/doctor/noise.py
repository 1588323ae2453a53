"""Noise: what gap between two checkpoints the eval set can tell apart, and what it cannot judge."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from watcher.config import Settings
from watcher.config.policies import boards, stop_policy
from watcher.decision.board import Board
from watcher.decision.resolution import (
    Resolution,
    about_min_delta,
    least_gain,
    resolution,
    rule_of_thumb,
)
from watcher.doctor.finding import Finding
from watcher.errors import StoreError
from watcher.store import queries
from watcher.store.reading import Reader, open_reader
from watcher.store.replicates import draws_of

_LEADERS = 8
_MORE = "the gap falls with the root of the number of images: {} images would halve it"
_RARE = "add images of them to the eval set, or judge by the categories that have enough"


def noise(settings: Settings, facts: Mapping[str, Any]) -> list[Finding]:
    """Say what the eval set can tell apart: measured, or before that by a rule of thumb.

    Args:
        settings: The run's.
        facts: What the training environment said of the eval set.
    """
    board = boards(settings.run, settings.ranking)[0]
    with suppress(StoreError), open_reader(settings.run.state_path, timeout_seconds=2.0) as reader:
        if queries.has_intervals(reader):
            said = queries.caution(reader)
            found = [Finding("noise", "warning", said, _RARE)] if said else []
            measured, best = _measured(reader, board)
            if measured:
                return [*_told(settings, measured, best), *found]
            return [*_expected(settings, facts), *found]
    return _expected(settings, facts)


def _measured(reader: Reader, board: Board) -> tuple[Resolution | None, float]:
    """Return what its leaders tell, and the best score."""
    ids = reader.best_evaluations(board.policy.mode, _LEADERS)
    rows = {row.evaluation_id: row for row in reader.scored() if row.evaluation_id in ids}
    leaders = [rows[id_] for id_ in ids if id_ in rows]
    draws = draws_of(reader, ids, board.metric.keys)
    return resolution(leaders, draws, board.metric), leaders[0].score or 0.0 if leaders else 0.0


def _told(settings: Settings, known: Resolution, best: float) -> list[Finding]:
    pairs = f"median of {known.pairs} pairs" if known.pairs > 1 else "of one pair"
    text = (
        f"two leaders next to each other are told apart from a difference of about {known.half:.2g}"
        f" on ({pairs}, the same {known.images} images for both); {_MORE.format(4 * known.images)}"
    )
    found = [Finding("noise", "note", text)]
    policy = stop_policy(settings.ranking, settings.stopping)
    if policy.patience is None and policy.patience_steps is None:
        return found
    said = about_min_delta(least_gain(policy, best), known.half, "of two leaders")
    return [*found, Finding("noise", "note", said)]


def _expected(settings: Settings, facts: Mapping[str, Any]) -> list[Finding]:
    images = facts.get("images")
    if not isinstance(images, int) or images < 2:
        return []
    text = (
        f"by a rule of thumb (0.05 over the root of the number of images, as on the demo; a third"
        f" to five times that was seen) checkpoints are told apart from about"
        f" {rule_of_thumb(images):.2g} of mAP on; {_MORE.format(4 * images)}"
    )
    if not settings.evaluator.replicates:
        text += "; it is not measured, as replicates is 0"
    return [Finding("noise", "note", text)]
