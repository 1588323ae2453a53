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
        forward: takes features and labels of one batch; called from several threads.
        at_once: how many calls may run at the same time.
    """

    def __init__(self, forward, at_once):
        self._forward = forward
        self._at_once = at_once
        self._pool = futures.ThreadPoolExecutor(at_once) if at_once > 1 else None

    def run(self, batches, clock, take):
        """Runs each batch and gives it to `take`, all in the calling thread but the passes.

        No pass is running any more when this returns or raises: the next checkpoint's weights may
        then be put into the model.

        Args:
            batches: pairs (features, labels).
            clock: the `Clock`; waiting for a pass counts as "forward".
            take: called with (batch, what `forward` returned).
        """
        running = collections.deque()
        try:
            for batch in clock.iterate(batches):
                if self._pool is None:
                    with clock.measure("forward"):
                        found = self._forward(*batch)
                    take(batch, found)
                    continue
                running.append((batch, self._pool.submit(self._forward, *batch)))
                # One more than run: it begins while this thread takes the result of another.
                if len(running) > self._at_once:
                    _take_first(running, clock, take)
            while running:
                _take_first(running, clock, take)
        finally:
            for _, future in running:
                future.cancel()
            futures.wait([future for _, future in running])


def _take_first(running, clock, take):
    batch, future = running[0]
    with clock.measure("forward"):
        found = future.result()
    running.popleft()
    take(batch, found)
