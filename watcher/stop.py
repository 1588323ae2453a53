"""Stop: decide from the ledger whether training should end, and say so in a sentinel file.

`should_stop` is pure. `write_sentinel`, `read_sentinel` and `withdraw_sentinel` are its effect.
Schema of the sentinel (JSON, one object): `schema` (1), `reason` (code), `message`, `run` (the
run's identity), `metric`, `mode`, `best` (`checkpoint`, `global_step`, `score`), `global_step`
(of the evaluation that decided), `created_at`, `version`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from watcher import __version__
from watcher.data import ScoredCheckpoint
from watcher.files import replace_file
from watcher.rank import Mode, RankPolicy, rank, rankable

SENTINEL_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class StopPolicy:
    """When to stop.

    Attributes:
        patience: Evaluations in a row without improvement; None never stops.
        min_delta: A gain that is not greater than this is no improvement.
        min_steps: Never stop before an evaluation at this global step or later.
    """

    mode: Mode = "max"
    patience: int | None = None
    min_delta: float = 0.0
    min_steps: int = 0


@dataclass(frozen=True, slots=True)
class StopDecision:
    """Why training should stop, as of the evaluation at `global_step`.

    `best` is the best of all, which may be a later one than the last improvement that the
    message names: gains up to min_delta are no improvement, but they are gains.
    """

    reason: str
    message: str
    global_step: int
    best: ScoredCheckpoint


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: the last real improvement and the evaluations since then."""

    best: ScoredCheckpoint
    last: ScoredCheckpoint
    evaluations_since_best: int


def follow(rows: Iterable[ScoredCheckpoint], mode: Mode, min_delta: float) -> Progress | None:
    """Walk the rows in step order and find the last improvement greater than `min_delta`.

    The walk is by step even when checkpoints were evaluated out of order, and rows that cannot
    be ranked count neither way. None when no row can be ranked.
    """
    sign = 1.0 if mode == "max" else -1.0
    best: ScoredCheckpoint | None = None
    last: ScoredCheckpoint | None = None
    since = 0
    for row in sorted(rows, key=lambda row: (row.global_step, row.checkpoint_id)):
        if not rankable(row.score):
            continue
        assert row.score is not None
        last = row
        if best is None or sign * (row.score - (best.score or 0.0)) > min_delta:
            best, since = row, 0
        else:
            since += 1
    if best is None or last is None:
        return None
    return Progress(best, last, since)


def should_stop(rows: Sequence[ScoredCheckpoint], policy: StopPolicy) -> StopDecision | None:
    """Decide whether the run should stop, from the rows alone.

    Args:
        rows: Evaluations of one fingerprint, in any order.
        policy: The settings of this moment. Nothing is remembered from an earlier decision.

    Returns:
        The decision with its reason code, or None to go on.
    """
    if policy.patience is None:
        return None
    progress = follow(rows, policy.mode, policy.min_delta)
    if progress is None or progress.last.global_step < policy.min_steps:
        return None
    if progress.evaluations_since_best < policy.patience:
        return None
    reference = progress.best
    return StopDecision(
        reason="patience",
        message=(
            f"no improvement greater than {policy.min_delta:g} in "
            f"{progress.evaluations_since_best} evaluations since {reference.name} "
            f"(step {reference.global_step}, score {reference.score:.6g})"
        ),
        global_step=progress.last.global_step,
        best=rank(rows, RankPolicy(mode=policy.mode, top_k=1))[0],
    )


def sentinel_content(
    decision: StopDecision, *, run: str, metric: str, mode: str, created_at: str
) -> dict[str, Any]:
    """Return the sentinel's JSON object; the schema is at the top of this module."""
    return {
        "schema": SENTINEL_SCHEMA,
        "reason": decision.reason,
        "message": decision.message,
        "run": run,
        "metric": metric,
        "mode": mode,
        "best": {
            "checkpoint": decision.best.name,
            "global_step": decision.best.global_step,
            "score": decision.best.score,
        },
        "global_step": decision.global_step,
        "created_at": created_at,
        "version": __version__,
    }


def write_sentinel(path: Path, content: dict[str, Any]) -> None:
    """Write the sentinel so that a reader sees either nothing or all of it.

    Raises:
        OSError: the file could not be written.
    """
    encoded = msgspec.json.format(msgspec.json.encode(content), indent=2)
    # Others act on this file (a launcher, a path unit run by another user), so all may read it.
    replace_file(path, encoded + b"\n", mode=0o644)


def read_sentinel(path: Path) -> dict[str, Any] | None:
    """Return the sentinel's object, None when there is none; a foreign content gives `{}`."""
    try:
        content = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError):
        return {}
    return content if isinstance(content, dict) else {}
