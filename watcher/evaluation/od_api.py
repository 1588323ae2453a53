"""The kind `od-api`: evaluates as the Object Detection API does, in the training environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from watcher.config.evaluator import OdApiSettings
from watcher.config.exports import ExportSettings
from watcher.evaluation.snapshot import Snapshot

WORKER_FILE = Path(__file__).resolve().parents[2] / "evaluators" / "worker.py"


class ObjectDetection:
    """What a run's workers of this kind are started with."""

    kind = "od-api"

    def __init__(
        self,
        evaluator: OdApiSettings,
        exports: ExportSettings,
        interpreter: str,
        snapshot: Snapshot,
    ) -> None:
        """Take the settings of the run; `interpreter` is an absolute path."""
        self._evaluator, self._exports, self._snapshot = evaluator, exports, snapshot
        self.command = [interpreter, str(WORKER_FILE)]

    @property
    def options(self) -> dict[str, Any]:
        """What `start` says to this kind alone."""
        evaluator, exports = self._evaluator, self._exports
        return {
            "pipeline_config": self._snapshot.copy_of(evaluator.pipeline_config),
            "metric_plugins": [self._plugin(text) for text in evaluator.metric_plugin],
            "eval_input": evaluator.eval_input,
            "eval_batch_size": evaluator.eval_batch_size,
            "coco_backend": evaluator.coco_backend,
            "sample_1_of_n": evaluator.sample_1_of_n,
            "cache_bytes": evaluator.eval_cache_mib and evaluator.eval_cache_mib << 20,
            "visualizations": exports.visualizations if exports.tensorboard else 0,
        }

    def _plugin(self, text: str) -> str:
        """Return a plugin by the copy of its file, else by a path that is good elsewhere."""
        file, colon, name = text.rpartition(":")
        whole = str(Path(file).absolute()) if file else file
        return (self._snapshot.copy_of(file) or whole) + colon + name
