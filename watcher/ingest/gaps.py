"""Gaps: which saves came and went between two that were seen. Reads and writes nothing."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

from watcher.decision.generation import Save, is_older
from watcher.types import FoundCheckpoint


class Gaps:
    """Follows the saves of one trainer, in the order in which they are found.

    Attributes:
        last: The one seen last, None before the first.
        silent: True while nobody can know what was missed: at the first look there ever was.
        announced: Numbers of saves that events told of before the first one was seen.
    """

    def __init__(self, last: Save | None, *, counts_saves: bool) -> None:
        self.last = last
        self.silent = last is None
        self.announced: set[int] = set()
        self._counts_saves = counts_saves

    def before(self, found: FoundCheckpoint, present: Collection[int]) -> list[range]:
        """Return the numbers of the saves between the one seen last and this one.

        Args:
            found: The next one.
            present: Numbers of the checkpoints that lie there.
        """
        last, save = self.last, Save(found.save_counter, saved_at=found.saved_at)
        if last and save.counter <= last.counter and is_older(save, last):
            return []  # found late, or put back by hand: no trainer started over
        self.last = save
        if last is None:
            return self._told_of(save.counter, present)
        if self.silent or not self._counts_saves:
            return []
        return missed_numbers(last.counter, save.counter, present)

    def _told_of(self, seen: int, present: Collection[int]) -> list[range]:
        """Return what was announced and rotated away before the first one that was seen.

        Nobody can know what else a trainer did before there was a watcher: one that went on from
        the checkpoint of another folder counts on from that.
        """
        gone = sorted(number for number in self.announced - set(present) if number < seen)
        self.announced.clear()
        runs: list[range] = []
        for number in gone:
            follows = runs and number == runs[-1].stop and self._counts_saves
            begin = runs.pop().start if follows else number
            runs.append(range(begin, number + 1))
        return runs


def missed_numbers(last: int, seen: int, present: Collection[int]) -> list[range]:
    """Return the numbers of the saves that nobody saw, when `seen` is the next one after `last`.

    Of a trainer that counts its saves up by one. A number that does not grow means that it started
    over, or went on from an older checkpoint: then the saves before `seen` go back to the first
    one whose files are there, which it either wrote itself or went on from.

    Args:
        last: Number of the checkpoint seen before.
        seen: Number of the one seen now.
        present: Numbers of the checkpoints that lie in model_dir.

    Returns:
        Those that follow each other together, ascending.
    """
    before = [number for number in present if number < seen]
    if seen > last:
        ends = [last, *sorted(number for number in before if number > last), seen]
    else:
        ends = [max(before, default=0), seen]
    return [range(end + 1, begin) for end, begin in pairwise(ends) if begin - end > 1]
