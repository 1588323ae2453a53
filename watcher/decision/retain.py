"""Retain: which checkpoints are kept for another reason than their score. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

BY_HAND = "kept by hand"
# What is not evaluated may be worth keeping all the same.
_WAITING = ("pending", "leased")
_COUNTED = (*_WAITING, "scored", "skipped")


class Pinned(msgspec.Struct, frozen=True):
    """A checkpoint whose files are there; `kept` if a person asked for it.

    `saved` is False for an average, which is none of the trainer's last or each so many.
    """

    checkpoint_id: int
    global_step: int
    state: str
    kept: bool = False
    generation: int = 1
    saved: bool = True


def as_pinned(row: Mapping[str, Any]) -> Pinned:
    """Take a row of `Queue.pinned` as what is decided on."""
    return Pinned(
        row["id"],
        row["global_step"] or 0,
        row["state"],
        bool(row["kept"]),
        row["generation"],
        row["kind"] == "saved",
    )


class RetainPolicy(msgspec.Struct, frozen=True):
    """What to keep beside the boards; None switches a rule off.

    Attributes:
        every_steps: Of each so many steps the first checkpoint, in each generation.
        last: So many of the largest steps, of the newest generation first.
    """

    every_steps: int | None = None
    last: int | None = None


def retain(pinned: Iterable[Pinned], policy: RetainPolicy) -> dict[int, str]:
    """Return which checkpoints stay, and why.

    Args:
        pinned: Those whose files are there, in any order. What failed is kept only by hand.
        policy: What to keep.

    Returns:
        Checkpoint id to the reason, newest step first.
    """
    ordered = sorted(pinned, key=lambda one: (one.generation, one.global_step, one.checkpoint_id))
    counted = [one for one in ordered if one.saved and one.state in _COUNTED]
    reasons: dict[int, list[str]] = {one.checkpoint_id: [] for one in ordered}
    # What waits takes the place of nothing before it is settled: it may fail, or be untrained.
    settled = [one for one in counted if one.state not in _WAITING]
    for one, said in [*_by_rules(counted, policy), *_by_rules(settled, policy)]:
        if said not in reasons[one.checkpoint_id]:
            reasons[one.checkpoint_id].append(said)
    for one in ordered:
        if one.kept:
            reasons[one.checkpoint_id].append(BY_HAND)
    return {
        one.checkpoint_id: ", ".join(reasons[one.checkpoint_id])
        for one in reversed(ordered)
        if reasons[one.checkpoint_id]
    }


def _by_rules(counted: Sequence[Pinned], policy: RetainPolicy) -> Iterator[tuple[Pinned, str]]:
    for one in counted[-policy.last :] if policy.last else ():
        yield one, f"one of the last {policy.last}"
    every, reached = policy.every_steps, (1, 0)
    for one in counted if every else ():
        assert every
        place = (one.generation, one.global_step // every)
        if place[1] and place > reached:
            reached = place
            yield one, f"the first from step {place[1] * every} on"
