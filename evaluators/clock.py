"""Where the seconds of an evaluation went."""

import math
import time

PARTS = ("restore", "input", "forward", "latency", "metrics", "draw")
PROGRESS_SECONDS = 0.5


class Clock:
    """Adds up the seconds spent in each part of an evaluation."""

    def __init__(self):
        self._began = time.perf_counter()
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._images = 0

    def measure(self, part):
        """Returns a context that adds its duration to `part`."""
        return _Measure(self._seconds, part)

    def seconds(self, part):
        """Returns the seconds of a part so far."""
        return self._seconds[part]

    def count(self, images):
        """Takes the images of one forward pass."""
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

    @property
    def images_per_second(self):
        """Images over the seconds of the forward passes, several at once where they ran so."""
        return self._images / max(self._seconds["forward"], 1e-9)


class _Measure:
    def __init__(self, seconds, part):
        self._totals = seconds
        self._part = part

    def __enter__(self):
        self._began = time.perf_counter()
        return self

    def __exit__(self, *exc):
        self._totals[self._part] += time.perf_counter() - self._began


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
