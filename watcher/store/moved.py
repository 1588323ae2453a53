"""Moved: where the files of a run lie now, after its folder was moved or copied.

A database that lies inside its MODEL_DIR moves with it, and holds paths of where it was. Commands
that read it, and the next start of `run`, take those for what they are today.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from watcher.config.run import PATHS

_STATE_NAME = "watcher"


@dataclass(frozen=True, slots=True)
class Moved:
    """A MODEL_DIR that was recorded at `old` and lies at `new`; equal when it did not move."""

    old: Path
    new: Path

    def path(self, recorded: str) -> str:
        """Return where a recorded path is now. One outside the old folder stays as it is."""
        try:
            return str(self.new / Path(recorded).relative_to(self.old))
        except ValueError:
            return recorded

    def settings(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Return recorded settings with the paths of now."""
        if not recorded:
            return {}
        now = {**recorded, "model_dir": str(self.new)}
        for name in PATHS:
            if now.get(name):
                now[name] = self.path(now[name])
        if now.get("working_directory") and not _is_folder(Path(now["working_directory"])):
            now["working_directory"] = None  # it moved too, and nothing tells where to
        now["board"] = [
            {**board, "folder": self.path(board["folder"])} if board.get("folder") else board
            for board in now.get("board") or ()
        ]
        return now


def recorded_settings(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a row of `runs`; none before the first start, or after a rebuild."""
    values: dict[str, Any] = msgspec.json.decode(run.get("settings") or "{}")
    return values


def recorded_state(run: Mapping[str, Any]) -> Path:
    """Return the state folder that a row of `runs` was last written in."""
    model_dir = Path(run["model_dir"])
    return model_dir / (recorded_settings(run).get("state_dir") or _STATE_NAME)


def find_move(state_dir: Path, run: Mapping[str, Any]) -> Moved:
    """Return where a run was and is; looks at folders, does not write.

    Args:
        state_dir: Where its database was found, absolute.
        run: Its row of `runs`, as recorded.
    """
    old, before = Path(run["model_dir"]), recorded_state(run)
    there = Moved(old, old)
    if state_dir == before or not before.is_relative_to(old):
        return there
    inside = before.relative_to(old).parts
    if not inside or state_dir.parts[-len(inside) :] != inside or same_folder(state_dir, before):
        return there
    if not recorded_settings(run) and _is_folder(old) and not os.path.lexists(before):
        return there  # rebuilt with a state folder that was elsewhere all the time
    new = state_dir.parents[len(inside) - 1]
    return Moved(old, new.resolve() if ".." in new.parts else new)


def same_folder(one: Path, other: Path) -> bool:
    """Return whether two paths lead to one folder; False where that cannot be seen."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False
