"""What the launcher itself tells, on the stderr that it shares with the trainer."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable
from pathlib import Path

from watcher.store.database_file import iso

_PATIENCE_SECONDS = 1.0
_STDERR = 2
OURS = "[launcher ]"


def say(text: str) -> None:
    """Write one line to stderr, or lose it: a reader that is gone or does not read ends nothing."""
    _write(_line(text))


class Teller:
    """Tells the user what happens, and what stays so only once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._told: set[str] = set()

    def __call__(self, text: str) -> None:
        """Tell it."""
        self._say(text)

    def once(self, text: str) -> None:
        """Tell it, unless these words were told so before."""
        if text not in self._told:
            self._told.add(text)
            self._say(text)


class SayLater:
    """Writes lines to the trainer's log while a live view holds the terminal, and shows them after.

    The log is a file and takes them at once.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._held: list[bytes] = []

    def __call__(self, text: str) -> None:
        """Tell it in the log now."""
        line = _line(text)
        self._held.append(line)
        with contextlib.suppress(OSError), self._log.open("ab") as file:
            file.write(line)

    def show(self) -> None:
        """Tell it on stderr too: the live view has ended."""
        for line in self._held:
            _write(line)
        self._held.clear()


def _line(text: str) -> bytes:
    line = f"{iso(time.time())} {OURS} {text}"
    return line.encode(errors="replace")[: select.PIPE_BUF - 1] + b"\n"


def _write(line: bytes) -> None:
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [_STDERR], [], _PATIENCE_SECONDS)[1]:
            os.write(_STDERR, line)
