"""Queue policy: which waiting checkpoints to skip when evaluation is slower than training. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from watcher.types import Queued

SPREAD_PLACES = 10

_POLICY = re.compile(r"(all|latest|spread)|every-([1-9][0-9]{0,8})")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGTP]?)(i?)B?", re.IGNORECASE)


class QueuePolicy(msgspec.Struct, frozen=True):
    """What may wait for its evaluation.

    Attributes:
        kind: `all`; `latest`, the newest alone; `every`, each save whose number divides by
            `every`; `spread`, `SPREAD_PLACES` at most, evenly over the steps.
        every: The N of `every-N`.
        max_bytes: Bytes that waiting pins may hold, None for no limit. Beyond it any policy
            thins evenly.
    """

    kind: Literal["all", "latest", "every", "spread"] = "all"
    every: int = 1
    max_bytes: int | None = None

    def __str__(self) -> str:
        return f"every-{self.every}" if self.kind == "every" else self.kind


class Skip(msgspec.Struct, frozen=True):
    """A decision not to evaluate a checkpoint, and the reason as it is recorded."""

    checkpoint: Queued
    reason: str


def parse_policy(text: str, max_bytes: int | None = None) -> QueuePolicy:
    """Read `all`, `latest`, `spread` or `every-N`; raises ValueError for anything else."""
    match = _POLICY.fullmatch(text)
    if not match:
        raise ValueError("expected all, latest, every-N (every-5) or spread")
    if match[2]:
        return QueuePolicy("every", int(match[2]), max_bytes)
    kinds: dict[str, Literal["all", "latest", "spread"]] = {
        "all": "all",
        "latest": "latest",
        "spread": "spread",
    }
    return QueuePolicy(kinds[match[1]], max_bytes=max_bytes)


def parse_size(text: str) -> int:
    """Read bytes as people write them: `20GB` (powers of 1000), `20GiB` (of 1024), `500000`.

    Raises:
        ValueError: it is no size, or none that is at least one byte.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match or (match[3] and not match[2]):
        raise ValueError("expected a size such as 20GB, 500MB or 20GiB")
    power = " KMGTP".index(match[2].upper() or " ")
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** power)
    if size < 1:
        raise ValueError("expected at least one byte")
    return size


def thin(
    queued: Sequence[Queued],
    policy: QueuePolicy,
    *,
    evaluated_step: int = 0,
    held_bytes: int = 0,
) -> list[Skip]:
    """Decide which waiting checkpoints are skipped now.

    The newest one waits in every case, but for `every-N`, which goes by the save's number alone, so
    that the choice does not depend on how fast the evaluation is.

    Args:
        queued: All that wait; none of the leaderboard, which is no queue.
        policy: The policy and the byte budget.
        evaluated_step: The step evaluated last before the first of them; what is close behind
            it is the first to go.
        held_bytes: Bytes of the budget that a running evaluation holds.

    Returns:
        The skips with their reasons, each naming the policy. Empty when all may wait.
    """
    skips = _by_kind(queued, policy, evaluated_step)
    if policy.max_bytes is not None:
        gone = {skip.checkpoint.checkpoint_id for skip in skips}
        kept = [one for one in queued if one.checkpoint_id not in gone]
        limit = policy.max_bytes - held_bytes
        reason = f"queue policy {policy}: more than max_pinned_bytes ({policy.max_bytes}) waited"
        skips += _thin_evenly(
            kept, evaluated_step, reason, lambda rest: sum(one.size_bytes for one in rest) > limit
        )
    return skips


def _by_kind(queued: Sequence[Queued], policy: QueuePolicy, evaluated_step: int) -> list[Skip]:
    if policy.kind == "every":
        rule = f"queue policy {policy}: {{}} is not a multiple of {policy.every}"
        return [Skip(one, rule.format(one.save)) for one in queued if one.save % policy.every]
    if policy.kind == "latest" and queued:
        newest = max(queued, key=lambda one: one.checkpoint_id)
        reason = f"queue policy latest: {newest.name} is newer"
        return [Skip(one, reason) for one in queued if one is not newest]
    if policy.kind == "spread":
        reason = f"queue policy spread: more than {SPREAD_PLACES} waited"
        return _thin_evenly(queued, evaluated_step, reason, lambda rest: len(rest) > SPREAD_PLACES)
    return []


def _thin_evenly(
    queued: Sequence[Queued],
    evaluated_step: int,
    reason: str,
    too_many: Callable[[Sequence[Queued]], bool],
) -> list[Skip]:
    """Take one away after another, each time where the gap that it leaves is the smallest."""
    rest = sorted(queued, key=lambda one: (one.global_step, one.checkpoint_id))
    newest = max(queued, key=lambda one: one.checkpoint_id, default=None)
    skips = []
    while len(rest) > 1 and too_many(rest):
        steps = [one.global_step for one in rest]
        gaps = zip(rest, [evaluated_step, *steps], [*steps[1:], steps[-1]], strict=False)
        _, _, victim = min(
            (after - before, one.checkpoint_id, one)
            for one, before, after in gaps
            if one is not newest
        )
        rest.remove(victim)
        skips.append(Skip(victim, reason))
    return skips
