"""Recall: pin again what had a pin before, from MODEL_DIR, while the trainer still has it there.

A pin is released when a checkpoint neither waits nor has a place. Another metric, a lost leader or
a person may want it back; its name says where to look, and only its content counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import structlog

from watcher.checkpoints.discover import scan
from watcher.checkpoints.pin import Verified, identify, pin
from watcher.data import FoundCheckpoint
from watcher.errors import CorruptCheckpoint, ModelDirError, PinError
from watcher.store import Store

_log = structlog.get_logger(__name__)

Here = Mapping[str, FoundCheckpoint]


class Wanted(Protocol):
    """A checkpoint as it is recorded."""

    @property
    def checkpoint_id(self) -> int:
        """Its row."""

    @property
    def name(self) -> str:
        """Its name in MODEL_DIR, if it is there."""

    @property
    def sha256(self) -> str:
        """What it must be, whatever it is called."""


def look_into(model_dir: Path) -> Here:
    """Return what lies in `model_dir` now, by name; nothing when it cannot be read."""
    try:
        return {found.name: found for found in scan(model_dir)}
    except (OSError, ModelDirError):
        return {}


def is_here(name: str, sha256: str, here: Here) -> bool:
    """Tell whether a checkpoint lies in MODEL_DIR, by its index; its shards are not read."""
    try:
        return name in here and identify(here[name]) == sha256
    except (OSError, CorruptCheckpoint):
        return False


class Recall:
    """Brings pins of one run back."""

    def __init__(
        self, store: Store, model_dir: Path, pins_dir: Path, verified: Verified | None = None
    ) -> None:
        self._store = store
        self._model_dir = model_dir
        self._pins_dir = pins_dir
        self._verified = verified
        self._given: set[int] = set()
        self._barred: set[int] = set()

    def here(self) -> Here:
        """Return what lies in MODEL_DIR now, by name; nothing when it cannot be read."""
        return look_into(self._model_dir)

    def pin(self, checkpoint_id: int, name: str, sha256: str, here: Here) -> bool:
        """Pin a checkpoint again, and record that; False when its files are gone.

        Raises:
            StoreError: the database cannot be written.
        """
        if checkpoint_id in self._barred or not is_here(name, sha256, here):
            return False
        try:
            taken = pin(here[name], self._pins_dir, self._verified)
        except (OSError, CorruptCheckpoint, PinError):
            return False
        if taken.sha256 != sha256:
            return False
        path = "/".join(taken.prefix.parts[-2:])
        self._store.by_hand.note_pin(checkpoint_id, path, taken.method)
        self._given.add(checkpoint_id)
        return True

    def fill(self, choose: Callable[[set[int]], Iterable[Wanted]], here: Here) -> None:
        """Pin again what is chosen, until nothing more is chosen whose files are there.

        Args:
            choose: Returns what is wanted and has no pin, without those whose ids it is given:
                their files turned out to be gone, or are something else.
            here: What lies in MODEL_DIR.
        """
        back: set[int] = set()
        gone: set[int] = set()
        while wanted := [one for one in choose(gone) if one.checkpoint_id not in back]:
            for one in wanted:
                if self.pin(one.checkpoint_id, one.name, one.sha256, here):
                    back.add(one.checkpoint_id)
                    _log.info("pinned again from MODEL_DIR", checkpoint=one.name)
                else:
                    gone.add(one.checkpoint_id)

    def lost(self, checkpoint_id: int) -> None:
        """Note that a pin is lost; one that was brought back already is not brought back again."""
        if checkpoint_id in self._given:
            self._barred.add(checkpoint_id)
