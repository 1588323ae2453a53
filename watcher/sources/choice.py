"""Choice: which source and which format the settings ask for. Everything else is handed them."""

from __future__ import annotations

from pathlib import Path

from watcher.checkpoints import bundle_format
from watcher.config.bucket import Place
from watcher.config.evaluator import MODEL_GARDEN, OD_API
from watcher.config.kinds import is_model_garden
from watcher.config.source import SourceSettings
from watcher.protocols import CheckpointSource
from watcher.sources.local import LocalFolder

__all__ = ["CheckpointSource", "open_source"]

_FORMATS = {OD_API: bundle_format.OD_API, MODEL_GARDEN: bundle_format.MODEL_GARDEN}


def open_source(
    source: SourceSettings, origin: Path | Place, evaluator: str | None = None
) -> CheckpointSource:
    """Return where the checkpoints of a MODEL_DIR come from, with the format they are written in.

    Reads nothing yet but, where the kind of evaluator is not known, the names in MODEL_DIR.

    Raises:
        ConfigError: MODEL_DIR is in a bucket, and what reads buckets is not installed.
    """
    if isinstance(origin, Place):
        # With its library, which no run on a folder needs.
        from watcher.sources.bucket import Bucket

        return Bucket(origin, _FORMATS[evaluator or OD_API], source)
    if evaluator is None:
        evaluator = MODEL_GARDEN if is_model_garden(origin) else OD_API
    return LocalFolder(origin, _FORMATS[evaluator])
