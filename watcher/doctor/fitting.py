"""Fitting: which checkpoint pipeline.config has to fit, where that is not known already."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from watcher.config.evaluator import EvaluatorBase
from watcher.config.run import RunSettings
from watcher.doctor.cadence import newest
from watcher.errors import CorruptCheckpoint, ModelDirError, StoreError
from watcher.evaluation.snapshot import unchanged_since
from watcher.sources.choice import CheckpointSource
from watcher.store.queries import evaluation
from watcher.store.reading import open_reader

_MOST = 20


def to_check(run: RunSettings, evaluator: EvaluatorBase, source: CheckpointSource) -> Path | None:
    """Return the prefix of a checkpoint that the configuration has to fit, as `run` takes one.

    The newest in MODEL_DIR that holds a model, else the best that is promoted. None where there is
    none, and where it has a score that was made with it as it is now.
    """
    prefix, sha256 = _newest_trained(source) or (None, "")
    with suppress(StoreError), open_reader(run.state_path, timeout_seconds=2.0) as reader:
        if prefix is None:
            there = [row for row in reader.leaderboard() if row["files"]]
            return Path(there[0]["path"]) if there else None
        if since := unchanged_since(evaluator, run.model_path, run.state_path):
            known = reader.find(sha256, evaluated=True)
            at = known and evaluation(reader, known["evaluation_id"])
            if at and since < datetime.fromisoformat(at["evaluated_at"]):
                return None
    return prefix


def _newest_trained(source: CheckpointSource) -> tuple[Path, str] | None:
    """Return the prefix of the newest that holds a model, and its sha256."""
    try:
        left = source.scan()
    except ModelDirError:  # the check of the folder tells it
        return None
    for _ in range(_MOST):
        if not left:
            break
        last = newest(left)
        # One that is unfinished or gone by now is no matter: there is another.
        with suppress(OSError, CorruptCheckpoint):
            index = source.read_index(last.name)
            if source.format.model_variables(index):
                return last.prefix, hashlib.sha256(index).hexdigest()
        left = [one for one in left if one is not last]
    return None
