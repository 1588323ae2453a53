"""Signals of the launcher: remembered when they come, dealt with by its loop.

A signal that was ignored when the launcher was started (`nohup`) stays ignored, here and in what
it starts. No handler is inherited: what is started finds the signals as the launcher found them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Self

FORWARDED = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH),
)
# Whoever sends one of these wants the whole to end.
ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})

_CAUGHT = (*FORWARDED, signal.SIGTSTP, signal.SIGCHLD)


class Signals:
    """Catches signals while it is entered."""

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._previous_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._previous = {
            number: signal.signal(number, _remembered_by_the_pipe)
            for number in _CAUGHT
            if signal.getsignal(number) != signal.SIG_IGN
        }
        # In the background of a terminal set to `tostop`, a line of ours must not stop us.
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        return self

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        os.close(self._reader)
        os.close(self._writer)

    @contextlib.contextmanager
    def as_found(self) -> Iterator[None]:
        """Restore the signal mask for a process that is started meanwhile and inherits it."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})

    def wait(self, seconds: float) -> list[signal.Signals]:
        """Return the signals that came, in order, SIGCHLD left out; at once when one did."""
        select.select([self._reader], [], [], max(seconds, 0.0))
        try:
            received = os.read(self._reader, 4096)
        except BlockingIOError:
            return []
        return [signal.Signals(number) for number in received if number != signal.SIGCHLD]

    def stop_self(self) -> None:
        """Stop as Ctrl-Z stops a program; returns when somebody lets it go on."""
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)


def _remembered_by_the_pipe(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: that there is a handler makes Python write the number into the pipe."""
