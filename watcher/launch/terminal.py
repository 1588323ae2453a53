"""The terminal that the launcher was started on, if any.

The trainer has a process group of its own, which is a background one: Ctrl-C and Ctrl-Z reach the
launcher, which passes them on and knows of them. A trainer that reads from the terminal (a
debugger) is stopped by the kernel for that; then the terminal is lent to it.
"""

from __future__ import annotations

import os


class Terminal:
    """The controlling terminal; without one every method does nothing."""

    def __init__(self) -> None:
        self.lent_to: int | None = None
        try:
            self._descriptor = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError:
            self._descriptor = -1

    def lend(self, group: int) -> bool:
        """Make a process group the foreground one; False when this one is not it."""
        try:
            if os.tcgetpgrp(self._descriptor) not in (os.getpgrp(), group):
                return False
            os.tcsetpgrp(self._descriptor, group)
        except OSError:
            return False
        self.lent_to = group
        return True

    def take_back(self) -> None:
        """Make this process group the foreground one again, if the terminal was lent."""
        if self.lent_to is None:
            return
        try:
            # Needs SIGTTOU blocked, since this is a background group now.
            if os.tcgetpgrp(self._descriptor) == self.lent_to:
                os.tcsetpgrp(self._descriptor, os.getpgrp())
        except OSError:
            pass
        self.lent_to = None

    def close(self) -> None:
        """Take it back and let go of it."""
        self.take_back()
        if self._descriptor >= 0:
            os.close(self._descriptor)
