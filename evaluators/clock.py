"""Where the seconds of an evaluation went."""

import math
import time

PARTS = ("restore", "input", "forward", "metrics", "draw")
PROGRESS_SECONDS = 0.5


class Clock:
    """Adds up the seconds spent in each part of an evaluation."""

    def __init__(self):
        self._began = time.perf_counter()
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._latencies = []
        self._images = 0

    def measure(self, part):
        """Returns a context that adds its duration to `part`."""
        return _Measure(self._seconds, part)

    def count(self, images, seconds):
        """Takes one forward pass: its images, and its duration or None where others ran beside."""
        if seconds is not None:
            self._latencies.append(1000 * seconds / images)
        self._images += images

    def iterate(self, items):
        """Yields the items and counts the time to get each as input."""
        iterator = iter(items)
        while True:
            with self.measure("input"):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def timings(self):
        """Returns {PART_seconds: float}, with `total_seconds` since the clock was made."""
        found = {part + "_seconds": seconds for part, seconds in self._seconds.items()}
        found["total_seconds"] = time.perf_counter() - self._began
        return found

    def cost(self):
        """Returns the cost figures of the forward pass.

        `latency_ms` is the median and `latency_ms_p90` the 90th percentile, over batches, of
        milliseconds an image of a pass that runs alone; `images_per_second` is over the seconds
        of the forward passes, several at once where they ran so.
        """
        ordered = sorted(self._latencies)
        return {
            "latency_ms": _quantile(ordered, 0.5),
            "latency_ms_p90": _quantile(ordered, 0.9),
            "images_per_second": self._images / max(self._seconds["forward"], 1e-9),
        }


class _Measure:
    def __init__(self, seconds, part):
        self._totals = seconds
        self._part = part
        self.seconds = 0.0

    def __enter__(self):
        self._began = time.perf_counter()
        return self

    def __exit__(self, *exc):
        self.seconds = time.perf_counter() - self._began
        self._totals[self._part] += self.seconds


def _quantile(ordered, fraction):
    """Returns the value below which that fraction lies (nearest rank)."""
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def throttled(on_progress, total):
    """Returns a function of the images done that calls on_progress at most twice a second.

    The call at which all are done is never left out.
    """
    last = [-math.inf]

    def report(done):
        now = time.monotonic()
        # The last one is always sent: with it the daemon knows that the model is free again.
        if now - last[0] >= PROGRESS_SECONDS or done >= total:
            last[0] = now
            on_progress(done, total)

    return report
