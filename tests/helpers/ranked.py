"""Rows as rank and stop see them."""

from __future__ import annotations

from watcher.types import ScoredCheckpoint


def row(step: int, score: float | None, *, name: str | None = None) -> ScoredCheckpoint:
    return ScoredCheckpoint(
        checkpoint_id=step,
        evaluation_id=step,
        name=name or f"ckpt-{step}",
        global_step=step,
        sha256=f"{step:064x}",
        score=score,
        evaluated_at="2026-01-01T00:00:00.000Z",
    )


def steps(rows: list[ScoredCheckpoint]) -> list[int]:
    return [row.global_step for row in rows]
