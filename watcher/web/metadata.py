"""What the web page says of tables, views and columns, in Datasette's own metadata format."""

from __future__ import annotations

from typing import Any

from watcher.web.queries import ASKED, SHOWN, Query

_CHECKPOINT = {
    "run": "Name of the run",
    "checkpoint": "Name of the checkpoint; a trainer that starts over uses names again",
    "global_step": "Training step at which it was saved",
    "score": "Value of the metric that ranks",
    "metric": "Metric that ranks, by the OD API's name",
    "path": "Checkpoint prefix in best/, as other tools take it",
    "sha256": "Of the index file: it identifies the content",
    "evaluated_at": "When it was recorded, UTC",
    "generation": "Which of the trainer's lives in this folder, 2 after it started over once",
}

_VIEWS: dict[str, dict[str, Any]] = {
    "best": {"description": "The best checkpoint: one row, or none.", "columns": _CHECKPOINT},
    "leaderboard": {
        "description": "The checkpoints in best/, in order.",
        "columns": {"rank": "Place in best/, 1 is the best", **_CHECKPOINT},
    },
    "boards": {
        "description": "Every board and `kept`, in order.",
        "columns": {"board": "Folder's name", "rank": "Place in it", **_CHECKPOINT},
        "facets": ["board"],
    },
    "history": {
        "description": "Each checkpoint ever seen, and what became of it.",
        "columns": {
            **{name: _CHECKPOINT[name] for name in ("run", "checkpoint", "global_step", "score")},
            "state": "pending, leased, scored, untrained, corrupt, skipped, failed or missed",
            "reason": "Why it has no score, or one that cannot rank",
            "sha256": _CHECKPOINT["sha256"],
            "discovered_at": "When it was seen first, UTC",
            "evaluated_at": _CHECKPOINT["evaluated_at"],
            "eval_seconds": "Seconds that the evaluation took",
            "note": "Why a scored one was not promoted",
            "generation": _CHECKPOINT["generation"],
        },
        "facets": ["state"],
        "sortable_columns": ["global_step", "score", "discovered_at", "eval_seconds"],
    },
    "metric_values": {
        "description": "Each metric of each evaluation.",
        "columns": {
            **{name: _CHECKPOINT[name] for name in ("run", "checkpoint", "global_step")},
            "metric": "The OD API's name of it",
            "category": "Category's name, empty for overall metrics",
            "value": "Empty where it was not finite; COCO's -1 says that there was nothing",
        },
        "facets": ["metric", "category"],
        "sortable_columns": ["global_step", "value"],
    },
}

_TABLES: dict[str, dict[str, Any]] = {
    "runs": {
        "description": "The run of this database.",
        "label_column": "name",
        "columns": {
            "uuid": "Identity of the run",
            "fingerprint": "The evaluation that counts: model, eval set, evaluator and versions",
            "status": "What the watcher last said of itself, as JSON; {} after its end",
            "settings": "Settings of the last start, as JSON",
        },
    },
    "checkpoints": {
        "description": "Checkpoints, with what the queue knows of them.",
        "label_column": "name",
        "facets": ["state"],
        "sort_desc": "id",
        "columns": {
            "save_counter": "The number in its name, which is not the step",
            "attempts": "How often an evaluation was begun",
            "pin_path": "Where it is kept safe, in pins/",
        },
    },
    "evaluations": {
        "description": "Evaluations; those of another fingerprint do not rank.",
        "sort_desc": "id",
        "columns": {
            "images": "Images that were evaluated",
            "timings": "Seconds of each phase, as JSON",
            "versions": "Of Python, TensorFlow and the others, as JSON",
        },
    },
    "metrics": {
        "description": "Values of all evaluations; category is '' for overall metrics.",
        "facets": ["name"],
    },
    "promotions": {
        "description": "What came into a board and left it, and when.",
        "facets": ["board"],
        "sort_desc": "id",
    },
    "events": {
        "description": "What the watcher noticed and did.",
        "facets": ["kind"],
        "sort_desc": "id",
        "columns": {"at": "UTC", "kind": "What happened", "message": "A sentence on it"},
    },
    "placements": {"hidden": True},
    "_sqlite_migrations": {"hidden": True},
}


def database_metadata(label: str, model_dir: str) -> dict[str, Any]:
    """Return the metadata of one run's database: descriptions, facets, and the canned queries."""
    return {
        "title": label,
        "description": f"checkpoint-watcher on {model_dir}",
        "tables": {**_VIEWS, **_TABLES},
        "queries": {name: _canned(query) for name, query in {**SHOWN, **ASKED}.items()},
    }


def _canned(query: Query) -> dict[str, Any]:
    return {"title": query.title, "description": query.about, "sql": query.sql.strip()}
