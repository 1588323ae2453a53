"""Output: what takes the lines of a run, and never stops it.

A terminal on which Ctrl-S was typed, `run 2>&1 | less`, a `tee` that was stopped: each takes
nothing for as long as it likes, and a write to it waits for that. So whatever is no file is written
to by a thread. The descriptor stays as it is: others may share what it stands for.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol, TextIO

# Enough for what a run says in hours.
_MOST_WAITING = 1000
_PATIENCE_SECONDS = 1.0
_DRAIN_SECONDS = 5.0


def _untold(_count: int) -> str:
    return ""


class Output(Protocol):
    """A text stream whose lines may be lost.

    Attributes:
        tell_lost: Makes the line that tells how many texts were lost.
    """

    encoding: str
    tell_lost: Callable[[int], str]

    def write(self, text: str) -> int:
        """Take a text, raise nothing."""

    def flush(self) -> None:
        """Do nothing that waits."""

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""

    @property
    def idle(self) -> bool:
        """True when all it took is written: what is drawn over itself has to wait for that."""

    def drain(self) -> None:
        """Wait until all is written, or nothing is taken for a while."""


class FileOutput:
    """A regular file: each text is in it at once; a full disk must not end the run."""

    idle = True

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding
        self.tell_lost: Callable[[int], str] = _untold

    def write(self, text: str) -> int:
        """Write it, or lose it."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand it to the system."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return self._stream.isatty()

    def drain(self) -> None:
        """Do as `flush`: nothing waits here."""
        self.flush()


class WaitingOutput:
    """A pipe, a terminal or a socket, written to by a thread.

    What comes while a thousand texts wait is lost. How many were is told behind those that waited.
    """

    def __init__(self, stream: TextIO) -> None:
        """Start the thread, which writes to the descriptor of `stream`."""
        self.encoding, self._errors = stream.encoding, stream.errors or "replace"
        self._fileno, self._is_terminal = stream.fileno(), stream.isatty()
        self.tell_lost: Callable[[int], str] = _untold
        self._changed = threading.Condition()
        # The first is being written. None stands for the line that tells what was lost.
        self._waiting: deque[bytes | None] = deque()
        self._lost = self._written_bytes = 0
        # One that waits in a write ends with the process.
        threading.Thread(target=self._write_all, name="output", daemon=True).start()

    def write(self, text: str) -> int:
        """Have it written, or lose it."""
        data = text.encode(self.encoding, self._errors)
        with self._changed:
            if len(self._waiting) >= _MOST_WAITING or (self._lost and self._waiting):
                self._lost += 1
            else:
                self._waiting.extend([None, data] if self._lost else [data])
                self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Do nothing: the thread writes at once."""

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return self._is_terminal

    @property
    def idle(self) -> bool:
        """True when nothing waits."""
        return not self._waiting

    def drain(self) -> None:
        """Wait while something is taken, some seconds at most."""
        deadline, before = time.monotonic() + _DRAIN_SECONDS, -1
        with self._changed:
            while self._waiting and before != self._written_bytes and time.monotonic() < deadline:
                before = self._written_bytes
                self._changed.wait_for(partial(self._moved, before), _PATIENCE_SECONDS)

    def abandon(self) -> None:
        """Have whoever writes there itself write to nowhere, unless something is taken again."""
        if self._waiting or not select.select([], [self._fileno], [], _PATIENCE_SECONDS)[1]:
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, self._fileno)
            os.close(nowhere)

    def _moved(self, before: int) -> bool:
        return not self._waiting or self._written_bytes != before

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                data, lost = self._waiting[0], self._lost
            taken = self._put(self._encoded_loss(lost) if data is None else data)
            with self._changed:
                self._waiting.popleft()
                if data is None:
                    self._lost -= lost if taken else 0
                elif not taken:
                    self._lost += 1
                # Where nothing is taken at all it is told behind the next that is.
                if taken and self._lost and not self._waiting:
                    self._waiting.append(None)
                self._changed.notify_all()

    def _encoded_loss(self, count: int) -> bytes:
        return self.tell_lost(count).encode(self.encoding, self._errors)

    def _put(self, data: bytes) -> bool:
        """Write all of it, however long that takes; False where it fails."""
        try:
            while data:
                try:
                    count = os.write(self._fileno, data)
                except BlockingIOError:  # somebody who shares it made it so
                    select.select([], [self._fileno], [])
                    continue
                data = data[count:]
                with self._changed:
                    self._written_bytes += count
                    self._changed.notify_all()
        except OSError:  # the reader is gone, the terminal was closed
            return False
        return True


# One for each descriptor: loggers keep theirs, and two would mix their lines.
_outputs: dict[int, WaitingOutput] = {}
# A thread does not live on in a process that was forked.
os.register_at_fork(after_in_child=_outputs.clear)


def output_of(stream: TextIO) -> Output:
    """Return what takes the lines for standard output, standard error or a file."""
    try:
        fileno = stream.fileno()
    except OSError:  # in memory
        return FileOutput(stream)
    if stat.S_ISREG(os.fstat(fileno).st_mode):
        return FileOutput(stream)
    if fileno not in _outputs:
        _outputs[fileno] = WaitingOutput(stream)
    return _outputs[fileno]


def end_outputs() -> None:
    """Wait until all that was said is written: what ends a process speaks after it.

    It speaks to nobody where nothing is taken; it would wait for that, and heed no signal.
    """
    for output in _outputs.values():
        output.drain()
        output.abandon()
