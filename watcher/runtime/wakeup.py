"""Wake-up: how signal handlers, threads and descriptors end the loop's wait.

Those outside only set flags, which the loop reads after it took the wake-up: what is set later
comes with a wake-up of its own.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterable

# A signal handler that could not write its wake-up is noticed after so long.
_WAIT_SECONDS = 2.0


class WakeUp:
    """The wake-ups of one loop. What is called from outside is safe in any thread and handler.

    Attributes:
        stop_asked: The loop is to end now.
        finish_asked: The loop is to end once nothing is left to do.
    """

    def __init__(self) -> None:
        self.stop_asked = self.finish_asked = False
        self._woken = True
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def wake(self) -> None:
        """End the wait; raises nothing, for it would come out of whatever a signal interrupted."""
        self._woken = True
        with contextlib.suppress(OSError):
            os.write(self._writer, b".")

    def stop(self) -> None:
        """Ask for the end now."""
        self.stop_asked = True
        self.wake()

    def finish(self) -> None:
        """Ask for the end once nothing is left to do."""
        self.finish_asked = True
        self.wake()

    def take(self) -> bool:
        """Return whether there was a wake-up since the last time; whoever takes it has to look.

        One may come between any two instructions. One that is not seen here stays for the next
        turn, and one that is cleared unseen came before the look that follows.
        """
        if not self._woken:
            return False
        self._woken = False
        return True

    def wait(self, seconds: float, filenos: Iterable[int]) -> None:
        """Wait for so long at most, for a wake-up or until one of these can be read."""
        readers = [self._reader, *filenos]
        until = time.monotonic() + seconds
        while not self._woken and (left := until - time.monotonic()) > 0:
            if select.select(readers, [], [], min(left, _WAIT_SECONDS))[0]:
                break
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 4096)

    def close(self) -> None:
        """Wait no more. The writer stays open: a late signal may still write to it."""
        os.close(self._reader)
