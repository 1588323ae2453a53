"""Gaps: which saves came and went between two that were seen. Pure."""

from __future__ import annotations

from collections.abc import Container

GAP_LIMIT = 1000


def missed_counters(last: int | None, seen: int, present: Container[int]) -> list[int]:
    """Return the save counters that nobody saw, when `seen` is the next one after `last`.

    The trainer counts its saves up by one. A counter that does not grow means that it started
    over, or went on from an older checkpoint: then the saves before `seen` go back to the first
    one whose files are there, which it either wrote itself or went on from.

    Args:
        last: Counter of the checkpoint seen before, None when there was none.
        seen: Counter of the one seen now.
        present: Counters of the checkpoints that lie in model_dir.

    Returns:
        Ascending, the last `GAP_LIMIT` at most. None are missed before the first one ever seen:
        nobody can know what a trainer did before there was a watcher.
    """
    if last is None:
        return []
    if seen > last:
        return [n for n in range(max(last + 1, seen - GAP_LIMIT), seen) if n not in present]
    missed = []
    for counter in range(seen - 1, max(seen - GAP_LIMIT, 1) - 1, -1):
        if counter in present:
            break
        missed.append(counter)
    return missed[::-1]
