"""Keeper: pins what lies in model_dir without asking the database. The intake adopts it later."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

from watcher.checkpoints.pin import identify, pinning
from watcher.errors import CorruptCheckpoint, ModelDirError, PinError
from watcher.files.slices import Job, Unfinished, slice_end
from watcher.sources.local import scan
from watcher.types import FoundCheckpoint, Pin

_AT_ONCE = 16


class Keeper:
    """For the time before the intake can begin: what of it has a row is not known.

    Attributes:
        more: True when the last call left something to verify, so that another is due now.
    """

    def __init__(self, model_dir: Path, pins_dir: Path) -> None:
        self._model_dir = model_dir
        self._pins_dir = pins_dir
        self._tried: dict[str, tuple[tuple[int, ...], ...]] = {}
        self._jobs: deque[tuple[FoundCheckpoint, Job[Pin]]] = deque()
        self.more = False

    def keep(self) -> None:
        """Pin what is new since the last call. What is unfinished or damaged is left to later."""
        until = slice_end()
        try:
            found = scan(self._model_dir)
        except ModelDirError:
            found = []
        self.more = False
        for checkpoint in found:
            if self._tried.get(checkpoint.name) == checkpoint.signature:
                continue
            if len(self._jobs) >= _AT_ONCE:
                self.more = True
                break
            self._take_hold(checkpoint)
        self._go_on(until)

    def close(self) -> None:
        """End; what is linked and not verified yet is left to the intake."""
        while self._jobs:
            self._jobs.popleft()[1].close()

    def _take_hold(self, checkpoint: FoundCheckpoint) -> None:
        try:
            if not (self._pins_dir / identify(checkpoint)).exists():
                job = Job(lambda progress: pinning(checkpoint, self._pins_dir, None, progress))
                job.begin()
                self._jobs.append((checkpoint, job))
        except PinError:
            return
        except (OSError, CorruptCheckpoint):
            pass
        self._tried[checkpoint.name] = checkpoint.signature

    def _go_on(self, until: float) -> None:
        while self._jobs:
            checkpoint, job = self._jobs[0]
            try:
                job.run(until)
            except Unfinished:
                self.more = True
                return
            except PinError:
                self._tried.pop(checkpoint.name, None)
            except (OSError, CorruptCheckpoint):
                pass
            self._jobs.popleft()
            if self._jobs and time.monotonic() >= until:
                self.more = True
                return
