"""Log: what a worker prints, or the program that carries one, into a file with a bound."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import IO

# A worker may print so much at once; what it prints beyond that is taken at this rate.
_BURST_BYTES = 8 << 20
_BYTES_PER_SECOND = 1 << 20
_LOG_LIMIT_BYTES = 16 << 20
_LOG_READ_BYTES = 64 << 10


class WorkerLog(threading.Thread):
    """Copies what a worker prints into its log, until the last process that holds it has ended.

    The worker writes into a pipe, not into the file: libraries that print without end would fill
    the disk that the trainer saves to. Here they only wait, and the file has a bound.
    """

    def __init__(self, source: IO[bytes], path: Path | None) -> None:
        """Start to copy; `path` and one older file beside it are all that is kept.

        Without a path it is copied to standard error.
        """
        super().__init__(name="worker-log", daemon=True)
        self._source, self._path = source, path
        self._last = b""
        self.start()

    def run(self) -> None:
        """Copy until the end; what cannot be written is dropped."""
        taken = 0
        with self._source:
            while chunk := self._source.read1(_LOG_READ_BYTES):  # type: ignore[attr-defined]
                self._last = (self._last + chunk)[-4096:]
                with contextlib.suppress(OSError):
                    self._write(chunk)
                taken += len(chunk)
                if taken > _BURST_BYTES:
                    time.sleep(len(chunk) / _BYTES_PER_SECOND)

    def last_line(self) -> str:
        """Return the last line that was printed, empty when there was none."""
        self.join(timeout=0.5)  # what a dead worker printed is still on its way
        lines = self._last.decode(errors="replace").strip().splitlines()
        return lines[-1].strip()[:200] if lines else ""

    def _write(self, chunk: bytes) -> None:
        if self._path is None:
            os.write(2, chunk)
            return
        if self._path.exists() and self._path.stat().st_size > _LOG_LIMIT_BYTES:
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        with self._path.open("ab") as file:
            file.write(chunk)
