"""Recall: pin again what had a pin before, from MODEL_DIR, while the trainer still has it there.

A pin is released when a checkpoint neither waits nor has a place. Another metric, a lost leader or
a person may want it back; its name says where to look, and only its content counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import structlog

from watcher.decision.retry import Retry
from watcher.errors import CorruptCheckpoint, IncompleteCheckpoint, ModelDirError, PinError
from watcher.files.slices import Job, Unfinished, slice_end
from watcher.protocols import CheckpointSource
from watcher.store import Store
from watcher.types import FoundCheckpoint, Pin, ScoredCheckpoint, Verified

_log = structlog.get_logger(__name__)

_FIRST_RETRY_SECONDS, _MOST_SECONDS = 1.0, 60.0

Here = Mapping[str, FoundCheckpoint]


class Recall:
    """Brings pins of one run back.

    Attributes:
        trouble: Why something that was wanted since the last `here` cannot be pinned now, though it
            may be there; None when nothing is held up.
        blind: The last `here` could not look at all that is there.
    """

    def __init__(
        self,
        store: Store,
        source: CheckpointSource,
        pins_dir: Path,
        verified: Verified | None = None,
    ) -> None:
        self._store = store
        self._source = source
        self._pins_dir = pins_dir
        self._verified = verified
        self._given: set[int] = set()
        self._barred: set[int] = set()
        # What is being pinned, by its digest.
        self._jobs: dict[str, tuple[FoundCheckpoint, Job[Pin]]] = {}
        # What turned out not to be whole, by its digest: read once, and not at each call.
        self._damaged: dict[str, tuple[tuple[int, ...], ...]] = {}
        # What could not be read or kept, by its digest, and when that is tried again.
        self._held_up: dict[str, tuple[Retry, str]] = {}
        self.trouble: str | None = None
        self.blind = False

    @property
    def progress(self) -> str | None:
        """What is being pinned again and how far that is, None when nothing takes long."""
        return next((job.progress.text for _, job in self._jobs.values()), None)

    def here(self) -> Here:
        """Return what lies in MODEL_DIR now, by name; nothing when it cannot be read.

        What is being pinned is among it, whatever the trainer does meanwhile.
        """
        here = {found.name: found for found, _ in self._jobs.values()}
        self.trouble, self.blind = None, not self._source.complete
        try:
            here |= {found.name: found for found in self._source.scan()}
        except (OSError, ModelDirError):
            self.blind = True
        return here

    def pin(
        self, checkpoint_id: int, name: str, sha256: str, here: Here, until: float = math.inf
    ) -> bool:
        """Pin a checkpoint again, and record that; False when its files are gone, or for `trouble`.

        Raises:
            Unfinished: the steady time `until` came first; call again to go on.
            StoreError: the database cannot be written.
        """
        if checkpoint_id in self._barred or not self.take_hold(name, sha256, here):
            return False
        found, job = self._jobs[sha256]
        try:
            taken = job.run(until)
        except (OSError, CorruptCheckpoint, PinError) as error:
            del self._jobs[sha256]
            if isinstance(error, OSError | PinError):
                self._hold_up(name, sha256, error)
            elif not isinstance(error, IncompleteCheckpoint):
                self._damaged[sha256] = found.signature
            return False
        del self._jobs[sha256]
        self._held_up.pop(sha256, None)
        if taken.sha256 != sha256:
            return False
        self._store.queue.note_pin(checkpoint_id, taken)
        self._given.add(checkpoint_id)
        return True

    def take_hold(self, name: str, sha256: str, here: Here) -> bool:
        """Link a checkpoint, so that rotation cannot reach it; False as `pin` says it."""
        if sha256 in self._jobs:
            return True
        found = here.get(name)
        if found is None or self._damaged.get(sha256) == found.signature:
            return False
        if sha256 in self._held_up:
            retry, reason = self._held_up[sha256]
            if time.monotonic() < retry.at:
                self.trouble = reason
                return False
        try:
            job = self._source.take_again(found, sha256, self._pins_dir, self._verified)
        except (OSError, PinError) as error:
            self._hold_up(name, sha256, error)
            return False
        if job:
            self._jobs[sha256] = (found, job)
        return job is not None

    def _hold_up(self, name: str, sha256: str, error: OSError | PinError) -> None:
        """Remember that one cannot be pinned now; what was deleted meanwhile is gone."""
        if isinstance(error, FileNotFoundError):
            return
        retry, _ = self._held_up.get(sha256, (Retry(_FIRST_RETRY_SECONDS, _MOST_SECONDS), ""))
        retry.failed(time.monotonic())
        self.trouble = f"cannot pin {name} again: {getattr(error, 'strerror', None) or error}"
        self._held_up[sha256] = retry, self.trouble

    def fill(self, choose: Callable[[set[int]], Iterable[ScoredCheckpoint]], here: Here) -> None:
        """Pin again what is chosen, until nothing more is chosen whose files are there.

        Args:
            choose: Returns what is wanted and has no pin, without those whose ids it is given:
                their files turned out to be gone, or are something else.
            here: What lies in MODEL_DIR.

        Raises:
            Unfinished: that takes longer; call again to go on.
        """
        until = slice_end()
        back: set[int] = set()
        gone: set[int] = set()
        begun = False
        while wanted := [one for one in choose(gone) if one.checkpoint_id not in back]:
            for one in wanted:
                self.take_hold(one.name, one.sha256, here)
            for one in wanted:
                if one.sha256 in self._jobs:
                    if begun and time.monotonic() >= until:
                        raise Unfinished
                    begun = True
                if self.pin(one.checkpoint_id, one.name, one.sha256, here, until):
                    back.add(one.checkpoint_id)
                    _log.info("pinned again from MODEL_DIR", checkpoint=one.name)
                else:
                    gone.add(one.checkpoint_id)

    def close(self) -> None:
        """End what is being pinned, and leave nothing of it."""
        for _, job in self._jobs.values():
            job.drop()
        self._jobs.clear()

    def lost(self, checkpoint_id: int) -> None:
        """Note that a pin is lost; one that was brought back already is not brought back again."""
        if checkpoint_id in self._given:
            self._barred.add(checkpoint_id)
