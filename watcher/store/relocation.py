"""Relocation: paths are recorded relative to MODEL_DIR where they lie inside, so they move with it.

`runs.model_dir` is where MODEL_DIR lay at the last start. A database inside of it that is found in
another place was moved or copied together with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from watcher.config.bucket import is_url
from watcher.config.run import PATHS

_PATHS = frozenset({"model_dir", "device_lock_dir", *PATHS})
_STATE_NAME = "watcher"


def inside(path: str, model_dir: Path) -> str:
    """Return a path as it is recorded: relative to MODEL_DIR, or absolute if it lies outside."""
    try:
        relative = Path(path).relative_to(model_dir)
    except ValueError:
        return path
    return path if ".." in relative.parts else str(relative)


def with_paths(settings: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return settings with each path in them changed."""
    changed = {
        name: change(value) if name in _PATHS and value and not is_url(value) else value
        for name, value in settings.items()
    }
    if boards := settings.get("board"):
        changed["board"] = [
            {**board, "folder": change(board["folder"])} if board.get("folder") else board
            for board in boards
        ]
    return changed


def recorded_settings(run: Mapping[str, Any], model_dir: Path | None = None) -> dict[str, Any]:
    """Return the settings in a row of `runs`; none before the first start, or after a rebuild.

    Args:
        run: The row, as recorded.
        model_dir: Where its MODEL_DIR is taken to lie. Default: where it was recorded.
    """
    before = Path(run["model_dir"])
    now = model_dir or before
    values: dict[str, Any] = msgspec.json.decode(run.get("settings") or "{}")
    values = with_paths(values, lambda path: str(now / inside(path, before)))
    folder = values.get("working_directory")
    if folder and now != before and not is_folder(Path(folder)):
        values["working_directory"] = None  # it moved too, and nothing tells where to
    return values


def recorded_state(run: Mapping[str, Any]) -> Path:
    """Return the state folder that a row of `runs` was last written in."""
    return Path(run["model_dir"]) / (recorded_settings(run).get("state_dir") or _STATE_NAME)


def find_model_dir(state_dir: Path, run: Mapping[str, Any]) -> Path:
    """Return where the MODEL_DIR of a run is now; looks at folders, does not write.

    Args:
        state_dir: Where its database was found, absolute.
        run: Its row of `runs`, as recorded.
    """
    recorded, before = Path(run["model_dir"]), recorded_state(run)
    state = Path(inside(str(before), recorded))
    parts = state.parts
    if not state.is_absolute() and not parts:
        return state_dir  # of a bucket: one folder is both, wherever it lies
    if state.is_absolute() or not parts or state_dir.parts[-len(parts) :] != parts:
        return recorded
    if same_folder(state_dir, before):
        return recorded
    if not recorded_settings(run) and is_folder(recorded) and not os.path.lexists(before):
        return recorded  # rebuilt with a state folder that was elsewhere all the time
    now = state_dir.parents[len(parts) - 1]
    return now.resolve() if ".." in now.parts else now


def same_folder(one: Path, other: Path) -> bool:
    """Return whether two paths lead to one folder; False where that cannot be seen."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Return whether a folder is there; False where that cannot be seen."""
    try:
        return path.is_dir()
    except OSError:
        return False
