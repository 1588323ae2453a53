"""Keeper: pins what lies in model_dir without asking the database. The intake adopts it later."""

from __future__ import annotations

from pathlib import Path

from watcher.checkpoints.discover import scan
from watcher.checkpoints.pin import identify, pin
from watcher.errors import CorruptCheckpoint, ModelDirError, PinError


class Keeper:
    """For the time before the intake can begin: what of it has a row is not known."""

    def __init__(self, model_dir: Path, pins_dir: Path) -> None:
        self._model_dir = model_dir
        self._pins_dir = pins_dir
        self._tried: dict[str, tuple[tuple[int, ...], ...]] = {}

    def keep(self) -> None:
        """Pin what is new since the last call. What is unfinished or damaged is left to later."""
        try:
            found = scan(self._model_dir)
        except ModelDirError:
            return
        for checkpoint in found:
            if self._tried.get(checkpoint.name) == checkpoint.signature:
                continue
            try:
                if not (self._pins_dir / identify(checkpoint)).exists():
                    pin(checkpoint, self._pins_dir)
            except PinError:
                continue
            except (OSError, CorruptCheckpoint):
                pass
            self._tried[checkpoint.name] = checkpoint.signature
