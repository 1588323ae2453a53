"""Rests between passes, for a trainer that computes on the same CPU."""

import threading
import time

# What takes so many times as long as it mostly does was stopped meanwhile, by SIGSTOP or a frozen
# container say: a trainer is owed no rest for that.
_LONGEST = 3.0


class Pace:
    """Rests after each piece of work, in proportion to how long that took.

    Niceness gives a trainer the cores, but not the caches and the memory that it shares with an
    evaluation beside it. Those are free only while that rests.

    Attributes:
        rest: seconds of rest for each second of work; 0 for none.
    """

    def __init__(self, rest=0.0):
        self.rest = rest
        self._since = time.perf_counter()
        self._lock = threading.Lock()
        self._usual = None

    def begin(self):
        """Work begins."""
        self._since = time.perf_counter()

    def take(self):
        """Rests for the work since the last rest, or since it began."""
        if self.rest:
            self._rest(time.perf_counter() - self._since)
            self._since = time.perf_counter()

    def _rest(self, worked):
        usual = self._usual or worked
        worked = min(worked, _LONGEST * usual)
        self._usual = usual + (worked - usual) / 8  # follows a trainer that comes or goes
        time.sleep(self.rest * worked)

    def paced(self, work):
        """Returns a function that does the same and rests after it, one call at a time."""

        def work_and_rest(*arguments):
            if not self.rest:
                return work(*arguments)
            with self._lock:  # two that rest in turn would never leave the CPU alone
                began = time.perf_counter()
                found = work(*arguments)
                self._rest(time.perf_counter() - began)
                return found

        return work_and_rest


# The process's own: its runtime sets what each evaluation is asked to rest.
PACE = Pace()
