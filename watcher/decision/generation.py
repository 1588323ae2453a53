"""Generation: which of a trainer's lives in one MODEL_DIR a checkpoint is of. Pure.

A trainer that starts over, or goes on from an older checkpoint, counts its saves and steps once
more. In one life both grow, so a save that does not go on from the furthest one begins the next
generation. Files that are older than those recorded were only found late, or put back by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

Number = TypeVar("Number", int, float)


class Save(msgspec.Struct, frozen=True):
    """A save, as far as it tells lives apart.

    Attributes:
        counter: The number in the name.
        step: Its global step, None when that is not known.
        saved_at: When the trainer wrote it, in seconds by the file's own clock; None when that is
            not known, which is taken for later than all.
    """

    counter: int
    step: int | None = None
    saved_at: float | None = None


class Life(msgspec.Struct, frozen=True):
    """One generation, as far as it is recorded.

    Attributes:
        generation: Its number.
        furthest: The largest counter, the largest step and the latest time of its saves.
        began_at: When the first of them was written, None when that is not known.
    """

    generation: int
    furthest: Save
    began_at: float | None = None


def generation_of(save: Save, lives: Sequence[Life]) -> int:
    """Return the generation that a save is of, one more than there are when it begins a new one.

    Args:
        save: One that could be read. What is damaged or missed begins no life.
        lives: What is recorded, by generation.
    """
    if not lives:
        return 1
    newest = lives[-1]
    if is_older(save, newest.furthest):
        assert save.saved_at is not None
        begun = [life for life in lives if (life.began_at or 0.0) <= save.saved_at]
        return begun[-1].generation if begun else lives[0].generation
    return newest.generation + (not _goes_on(save, newest.furthest))


def is_older(save: Save, other: Save) -> bool:
    """True when the files of a save were written before those of another."""
    return (
        save.saved_at is not None and other.saved_at is not None and save.saved_at < other.saved_at
    )


def _goes_on(save: Save, furthest: Save) -> bool:
    if save.counter <= furthest.counter:
        return False
    return save.step is None or furthest.step is None or save.step >= furthest.step


def with_save(lives: Sequence[Life], save: Save, generation: int) -> list[Life]:
    """Return the lives with one more save, of a generation that `generation_of` gave."""
    others = [life for life in lives if life.generation != generation]
    life = next(
        (life for life in lives if life.generation == generation),
        Life(generation, save, save.saved_at),
    )
    before = life.furthest
    furthest = Save(
        max(before.counter, save.counter),
        _largest(before.step, save.step),
        _largest(before.saved_at, save.saved_at),
    )
    times = [at for at in (life.began_at, save.saved_at) if at is not None]
    grown = Life(generation, furthest, min(times, default=None))
    return sorted([*others, grown], key=lambda life: life.generation)


def _largest(*numbers: Number | None) -> Number | None:
    return max((number for number in numbers if number is not None), default=None)
