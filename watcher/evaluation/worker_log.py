"""What a worker prints, kept in a file that cannot grow without bound.

The worker writes into a pipe, not into the file: libraries that print without end would fill the
disk that the trainer saves to. Here they only wait.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import IO

_FILE_LIMIT_BYTES = 16 << 20
_READ_BYTES = 64 << 10
# A worker may say this much at once; what it says beyond that is taken at this rate.
_BURST_BYTES = 8 << 20
_BYTES_PER_SECOND = 1 << 20


class WorkerLog(threading.Thread):
    """Copies a worker's output into its log, until the last process that holds it has ended."""

    def __init__(self, source: IO[bytes], path: Path) -> None:
        """Start to copy; `path` and one older file beside it are all that is kept."""
        super().__init__(name="worker-log", daemon=True)
        self._source, self._path = source, path
        self._last = b""
        self.start()

    def run(self) -> None:
        """Copy until the end; what cannot be written is dropped."""
        taken = 0
        with self._source:
            while chunk := self._source.read1(_READ_BYTES):  # type: ignore[attr-defined]
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
        if self._path.exists() and self._path.stat().st_size > _FILE_LIMIT_BYTES:
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        with self._path.open("ab") as file:
            file.write(chunk)
