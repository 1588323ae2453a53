"""Rests between passes, for a trainer that computes on the same CPU."""

import time


class Pace:
    """Rests after each piece of work, in proportion to how long that took.

    Niceness gives a trainer the cores, but not the caches and the memory that it shares with an
    evaluation beside it. Those are free only while that rests.

    Args:
        rest: seconds of rest for each second of work; 0 or None for none.

    Attributes:
        rests: whether there is any.
    """

    def __init__(self, rest):
        self._rest = rest or 0.0
        self.rests = self._rest > 0
        self._since = time.perf_counter()

    def begin(self):
        """Work begins."""
        self._since = time.perf_counter()

    def rest(self):
        """Rests for the work since the last rest, or since it began."""
        if self._rest:
            time.sleep(self._rest * (time.perf_counter() - self._since))
            self._since = time.perf_counter()

    def paced(self, work):
        """Returns a function that does the same and rests after it."""
        if not self._rest:
            return work

        def work_and_rest(*arguments):
            began = time.perf_counter()
            found = work(*arguments)
            time.sleep(self._rest * (time.perf_counter() - began))
            return found

        return work_and_rest
