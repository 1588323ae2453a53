"""The kind `od-api`: evaluates as the Object Detection API does, in the training environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from watcher.config import Settings
from watcher.evaluation.snapshot import Snapshot

WORKER_FILE = Path(__file__).resolve().parents[2] / "evaluators" / "worker.py"


class ObjectDetection:
    """What a run's workers of this kind are started with."""

    kind = "od-api"

    def __init__(self, settings: Settings, interpreter: str, snapshot: Snapshot) -> None:
        """Take the settings of the run; `interpreter` is an absolute path."""
        self._settings = settings
        self._snapshot = snapshot
        self.command = [interpreter, str(WORKER_FILE)]

    @property
    def options(self) -> dict[str, Any]:
        """What `start` says to this kind alone."""
        settings = self._settings
        return {
            **self._snapshot.options(settings),
            "eval_input": settings.evaluator.eval_input,
            "eval_batch_size": settings.evaluator.eval_batch_size,
            "coco_backend": settings.evaluator.coco_backend,
            "sample_1_of_n": settings.evaluator.sample_1_of_n,
            "cache_bytes": settings.evaluator.eval_cache_mib
            and settings.evaluator.eval_cache_mib << 20,
            "visualizations": settings.exports.visualizations
            if settings.exports.tensorboard
            else 0,
        }
