"""Choice: which source and which format the settings ask for. Everything else is handed them."""

from __future__ import annotations

from pathlib import Path

from watcher.checkpoints.bundle_format import OD_API
from watcher.config.source import SourceSettings
from watcher.protocols import CheckpointSource
from watcher.sources.local import LocalFolder

__all__ = ["CheckpointSource", "open_source"]


def open_source(source: SourceSettings, model_dir: Path) -> CheckpointSource:
    """Return where the checkpoints of a MODEL_DIR come from, with the format they are written in.

    Reads nothing yet.
    """
    match source:
        case SourceSettings():  # a further source or format is a further kind of this section
            return LocalFolder(model_dir, OD_API)
