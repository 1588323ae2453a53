"""The kind `model-garden`: evaluates as Model Garden's official.vision does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from watcher.config.evaluator import ModelGardenSettings
from watcher.config.garden_params import config_files
from watcher.evaluation.od_api import WORKER_FILE
from watcher.evaluation.snapshot import Snapshot


class ModelGarden:
    """What a run's workers of this kind are started with."""

    kind = "model-garden"

    def __init__(
        self, evaluator: ModelGardenSettings, model_dir: Path, interpreter: str, snapshot: Snapshot
    ) -> None:
        """Take the settings of the run; `interpreter` is an absolute path."""
        self._evaluator, self._model_dir, self._snapshot = evaluator, model_dir, snapshot
        self.command = [interpreter, str(WORKER_FILE)]

    @property
    def options(self) -> dict[str, Any]:
        """What `start` says to this kind alone; of files it names the run's copies."""
        evaluator = self._evaluator
        first, *others = map(str, config_files(self._model_dir, evaluator.config_file))
        return {
            "experiment": evaluator.experiment,
            "config_file": self._copy(first),
            # Model Garden takes a further file as it takes an override.
            "params_overrides": [self._copy(o) for o in (*others, *evaluator.params_override)],
            "garden_imports": [self._copy(text) for text in evaluator.garden_import],
            "whole_eval_set": evaluator.whole_eval_set,
            "coco_backend": evaluator.coco_backend,
            "cache_bytes": evaluator.eval_cache_mib and evaluator.eval_cache_mib << 20,
        }

    def _copy(self, given: str) -> str:
        return self._snapshot.copy_of(given) or given
