"""Databases as long runs leave them, with real tables and views, written in a moment."""

from __future__ import annotations

import contextlib
import json
import math
import random
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from watcher.store import Store
from watcher.store.database_file import iso

METRIC = "DetectionBoxes_Precision/mAP"
LOSS = "Loss/total_loss"
_OVERALL = (METRIC, f"{METRIC}@.50IOU", "DetectionBoxes_Recall/AR@100", LOSS)
_BEGIN = 1_790_000_000.0
CATEGORIES = (
    *("person", "bicycle", "car", "motorcycle", "aeroplane", "traffic light", "fire hydrant"),
    *("stop sign", "parking meter", "potted plant", "dining table", "hair drier"),
)


def record(
    model_dir: Path,
    *,
    run: str,
    evaluations: int,
    categories: Sequence[str] = CATEGORIES,
    seed: int = 1,
    names: str = "ckpt-{}",
    failures: Sequence[tuple[str, str, str]] = (),
    status: dict[str, object] | None = None,
    waiting: int = 0,
) -> Path:
    """Record a run that ended, or one that still goes on where `status` says so.

    Args:
        model_dir: The run's folder, which is made.
        run: Its name.
        evaluations: How many checkpoints are scored; the score rises, and falls in the end.
        categories: Names of the categories.
        seed: What noise is drawn with.
        names: Form of the checkpoints' names.
        failures: `(name, state, reason)` of checkpoints that have no score.
        status: What the watcher said of itself last.
        waiting: How many checkpoints are pending.

    Returns:
        The database.
    """
    folder = model_dir / "watcher"
    folder.mkdir(parents=True)
    path = folder / "watcher.db"
    Store(path, run=run, model_dir=model_dir, now=_BEGIN).close()
    draw = random.Random(seed)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "UPDATE runs SET metric = ?, mode = 'max', fingerprint = 'f', status = ?, settings = ?",
            [METRIC, json.dumps(status or {}), json.dumps({"patience": 10, "top_k": 3})],
        )
        scores = []
        for n in range(1, evaluations + 1):
            score = 0.45 * (1 - math.exp(-n / 40)) - max(n - 150, 0) / 3000
            score = max(score + draw.gauss(0, 0.012) + seed / 100, 0.0)
            scores.append((score, n))
            _evaluation(db, n, names.format(n), score, categories, draw)
        for rank, (score, n) in enumerate(sorted(scores, reverse=True)[:3], 1):
            db.execute(
                "INSERT INTO promotions (run_id, board, checkpoint_id, evaluation_id, rank, score,"
                " metric, path, promoted_at) VALUES (1, 'best', ?, ?, ?, ?, ?, ?, ?)",
                [n, n, rank, score, METRIC, f"{model_dir}/best/{names.format(n)}", iso(_BEGIN)],
            )
        for n in range(evaluations + 1, evaluations + 1 + waiting):
            _checkpoint(db, n, names.format(n), "pending", None)
        for name, state, reason in failures:
            _checkpoint(db, evaluations + 1000, name, state, reason)
    return path


def _checkpoint(db: sqlite3.Connection, n: int, name: str, state: str, reason: str | None) -> None:
    at = iso(_BEGIN + 60 * n)
    sha256 = f"{n:064x}" if reason is None else None
    db.execute(
        "INSERT INTO all_checkpoints (run_id, name, save_counter, sha256, global_step, state,"
        " reason, discovered_at) VALUES (1, ?, ?, ?, ?, ?, ?, ?)",
        [name, n, sha256, 100 * n, state, reason, at],
    )
    db.execute(
        "INSERT INTO events (run_id, at, kind, checkpoint, message) VALUES (1, ?, ?, ?, ?)",
        [at, state, name, reason or "found and pinned"],
    )


def _evaluation(
    db: sqlite3.Connection,
    n: int,
    name: str,
    score: float,
    categories: Sequence[str],
    draw: random.Random,
) -> None:
    _checkpoint(db, n, name, "scored", None)
    versions = {"python": "3.11.7", "tensorflow": "2.13.1", "numpy": "1.24.3"}
    db.execute(
        "INSERT INTO evaluations (id, checkpoint_id, fingerprint, score, images, device,"
        " started_at, evaluated_at, eval_seconds, timings, versions, details)"
        " VALUES (?, ?, 'f', ?, 512, 'cpu', ?, ?, 12.5, '{\"total_seconds\": 12.5}', ?, '{}')",
        [n, n, score, iso(_BEGIN + 60 * n), iso(_BEGIN + 60 * n + 13), json.dumps(versions)],
    )
    values = [(metric, "", score * (1 - 0.1 * place)) for place, metric in enumerate(_OVERALL)]
    values[-1] = (LOSS, "", 2 - 3 * score)
    for place, category in enumerate(categories):
        share = 1.5 - place / len(categories)
        values.append((METRIC, category, max(share * score + draw.gauss(0, 0.015), 0.0)))
    db.executemany(
        "INSERT INTO metrics (evaluation_id, name, category, value) VALUES (?, ?, ?, ?)",
        [(n, *value) for value in values],
    )
