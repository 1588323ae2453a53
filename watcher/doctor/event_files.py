"""Event files: whether TensorBoard will be shown the evaluations."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from watcher.config.exports import ExportSettings
from watcher.doctor.finding import Finding


def event_files(exports: ExportSettings, folder: Path) -> list[Finding]:
    """Say whether event files can be written; nothing where they are not wanted."""
    if not exports.tensorboard:
        return []
    if importlib.util.find_spec("tensorboardX") is None:
        text = "tensorboardX is not installed here: TensorBoard is shown no evaluations"
        return [_warning(text, "install it, or use --no-tensorboard")]
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir():
        text = f"TensorBoard's evaluations cannot be written: {place} is not a folder"
    elif problem := _not_writable(folder, place):
        text = f"TensorBoard's evaluations cannot be written: {problem}"
    else:
        return [Finding("tensorboard", "ok", f"evaluations are written into {folder}")]
    return [_warning(text, "let the watcher write there, or name another --eval-dir")]


def _not_writable(folder: Path, place: Path) -> str | None:
    below = [path for path in folder.glob("*") if path.is_dir()] if place == folder else []
    refused = [path for path in (place, *below) if not os.access(path, os.W_OK | os.X_OK)]
    return f"no permission in {refused[0]}" if refused else None


def _warning(text: str, remedy: str) -> Finding:
    return Finding("tensorboard", "warning", text, remedy)
