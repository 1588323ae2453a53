"""Forward passes of an eval set, several at a time where the CPU has room for them.

A small model at a small batch size keeps one core busy and the others waiting for it. Two passes
at once fill them, and each pass still runs in TensorFlow's own pools: the size of a pool decides
how sums are split, so the numbers are those of a pass alone, to the last bit.
"""

import collections
import os
from concurrent import futures

# Each pass at once holds its own activations.
MOST_AT_ONCE = 4


def passes_at_once(device, threads):
    """Returns how many passes to run at once: one on a GPU, else one a thread, at most 4."""
    if device != "cpu":
        return 1
    if not threads:
        has_affinity = hasattr(os, "sched_getaffinity")
        threads = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return min(int(threads), MOST_AT_ONCE)


class Passes:
    """Runs batches through the model and hands the results over in the order of the batches.

    Args:
        at_once: how many calls may run at the same time.

    Attributes:
        at_once: the same.
    """

    def __init__(self, at_once):
        self.at_once = at_once
        self._pool = futures.ThreadPoolExecutor(at_once) if at_once > 1 else None

    def map(self, function, items):
        """Returns what a function gives of each item, several at a time."""
        return list((self._pool.map if self._pool else map)(function, items))

    def run(self, forward, groups, clock, take):
        """Runs each group and gives its batches to `take`, all in this thread but the passes.

        No pass is running any more when this returns or raises: the next checkpoint's weights may
        then be put into the model.

        Args:
            forward: takes a list of batches and returns one of what was found in each; called from
                several threads.
            groups: lists of batches, pairs (features, labels), to be run by one call.
            clock: the `Clock`; waiting for a pass counts as "forward".
            take: called with (batch, what was found in it).
        """
        running = collections.deque()
        try:
            for group in clock.iterate(groups):
                if self._pool is None:
                    with clock.measure("forward"):
                        found = forward(group)
                    _take_each(group, found, take)
                    continue
                running.append((group, self._pool.submit(forward, group)))
                # One more than run: it begins while this thread takes the result of another.
                if len(running) > self.at_once:
                    _take_first(running, clock, take)
            while running:
                _take_first(running, clock, take)
        finally:
            for _, future in running:
                future.cancel()
            futures.wait([future for _, future in running])


def _take_first(running, clock, take):
    group, future = running[0]
    with clock.measure("forward"):
        found = future.result()
    running.popleft()
    _take_each(group, found, take)


def _take_each(group, found, take):
    for batch, one in zip(group, found):
        take(batch, one)
