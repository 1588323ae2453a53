"""The source of a folder's checkpoints, as a run with default settings opens it."""

from __future__ import annotations

from pathlib import Path

from watcher.config.source import SourceSettings
from watcher.protocols import CheckpointSource
from watcher.sources.choice import open_source
from watcher.types import FoundCheckpoint


def source_of(model_dir: Path) -> CheckpointSource:
    """Return the source of a MODEL_DIR's checkpoints."""
    return open_source(SourceSettings(), model_dir)


def scan(model_dir: Path) -> list[FoundCheckpoint]:
    """List the checkpoints in a MODEL_DIR."""
    return source_of(model_dir).scan()
