"""What the web page says of tables, views and columns, in Datasette's own metadata format."""

from __future__ import annotations

from typing import Any

from watcher.store.page_queries import ASKED, SHOWN, Query

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

_ENDS = {
    "low": "Lower end of the score's 95 % interval, empty where there is none",
    "high": "Upper end of it",
}
_STANDING = {
    "tied": "1 where it is not worse than the best, at one-sided 95 %",
    "p_best": "Share of the eval sets drawn from this one on which it is the first",
    "p_top_k": "Share on which it has a place in best/",
    "rank_low": "The best rank that it may have",
    "rank_high": "The worst rank that it may have",
}

_VALUE = {
    **{name: _CHECKPOINT[name] for name in ("run", "checkpoint", "global_step", "generation")},
    "value": "Empty where it was not finite; COCO's -1 says that there was nothing",
}

_VIEWS: dict[str, dict[str, Any]] = {
    "best": {
        "description": "The best checkpoint: one row, or none.",
        "columns": {**_CHECKPOINT, **_ENDS, **_STANDING},
    },
    "leaderboard": {
        "description": "The checkpoints in best/, in order.",
        "columns": {
            "rank": "Place in best/, 1 is the best",
            **_CHECKPOINT,
            **_ENDS,
            **_STANDING,
        },
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
            "rank": "Place in best/, empty for what is not there",
            "machine": "Which one measured it, see machine_state; empty where that is not known",
            **_ENDS,
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
            "value": _VALUE["value"],
        },
        "facets": ["metric", "category"],
        "sortable_columns": ["global_step", "value"],
    },
    "overall_values": {
        "description": "Each metric of each evaluation, without those of categories.",
        "columns": {**_VALUE, "metric": "The OD API's name of it"},
        "facets": ["metric"],
        "sortable_columns": ["global_step", "value"],
    },
    "category_values": {
        "description": "Each category's figures of each evaluation.",
        "columns": {
            **_VALUE,
            "metric": "As `--metric` takes it, AP[person]",
            "category": "Category's name",
        },
        "facets": ["metric", "category"],
        "sortable_columns": ["global_step", "value"],
    },
    "intervals": {
        "description": "The interval of each metric that has one: what it is on eval sets drawn"
        " from this one.",
        "columns": {
            **_VALUE,
            "metric": "As it was reported",
            "category": "Category's name, empty for overall metrics",
            "low": "Lower end",
            "high": "Upper end",
            "level": "Of so many eval sets out of 1 the true value lies between the ends",
            "n": "Images of the eval set",
            "b": "Replicates, the eval sets that were drawn",
            "objects": "Objects to find; with fewer than 20 the interval is not to be trusted",
        },
        "facets": ["metric", "category"],
        "sortable_columns": ["global_step", "value", "objects"],
    },
    "ties": {
        "description": "How the best evaluations stand to each other; not all of them have files.",
        "columns": {
            **{name: _CHECKPOINT[name] for name in ("run", "checkpoint", "global_step", "score")},
            **_STANDING,
            "generation": _CHECKPOINT["generation"],
        },
        "sortable_columns": ["global_step", "score", "p_best"],
    },
    "machine_state": {
        "description": "The machines that evaluate, and whether they measure the same.",
        "columns": {
            "run": _CHECKPOINT["run"],
            "machine": "Its number, as in history",
            "standing": "reference: the scores began with it; equal: it measures the same to the"
            " last bit; accepted: it differs and was let in; differs: it was left out; unproven",
            "evaluations": "Scores that were measured there",
            "parts": "What of it may change a number's last bits, as JSON",
            "device": "Where it was compared",
            "checkpoint": "Which scored checkpoint was measured again",
            "compared": "How many figures were compared",
            "differences": "Those that differ, as JSON",
            "largest": "By how much at most; empty where one was no number",
            "tolerance": "Up to where it was let in",
            "proved_at": "When it was compared, UTC",
        },
    },
    "run_state": {
        "description": "Where the run stands: one row.",
        "columns": {
            "run": _CHECKPOINT["run"],
            "state": "running, stopped (early stop), failed (the watcher ended with an error),"
            " ended; running is what the watcher said of itself last",
            "stop_reason": "Rule that stopped it, as in EARLY_STOP",
            "message": "Why it was stopped, what the watcher ended with or what is the matter",
            "metric": _CHECKPOINT["metric"],
            "mode": "max: larger is better; min: smaller is",
            "patience": "Evaluations without improvement after which it stops",
            "patience_left": "Those that may still pass",
            "patience_steps": "Steps without improvement after which it stops",
            "patience_steps_left": "Those that may still pass",
            "min_delta": "A gain up to this is no improvement",
            "best": "The best checkpoint, with its step and score behind",
            "scored": "Checkpoints that have been evaluated",
            "waiting": "Checkpoints that wait or are being evaluated",
            "updated_at": "When something was recorded last, UTC",
        },
    },
}

_INTERNAL = ("placements", "replicates", "influences", "image_names", "standings")

_TABLES: dict[str, dict[str, Any]] = {
    "runs": {
        "description": "The run of this database.",
        "label_column": "name",
        "columns": {
            "uuid": "Identity of the run",
            "fingerprint": "The evaluation that counts: model, eval set, evaluator and versions",
            "status": "What the watcher last said of itself, as JSON; {} after its end",
            "settings": "Settings of the last start, as JSON; paths in MODEL_DIR relative to it",
            "stopping": "Where stopping stands, as JSON; the view run_state is made of these",
        },
    },
    "checkpoints": {
        "description": "Checkpoints, with what the queue knows of them.",
        "label_column": "name",
        "facets": ["state"],
        "sort_desc": "id",
        "columns": {
            "save_counter": "The number in its name, which is not the step",
            "saves": "How many it stands for: those nobody saw, one after another, are one row",
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
    "machines": {
        "description": "Machines that evaluated, by what of them may change a number's last bits.",
        "columns": {"parts": "Device, instruction sets and so on, as JSON"},
    },
    "machine_references": {
        "description": "With which machine the scores of an evaluation began.",
    },
    "machine_proofs": {
        "description": "Scored checkpoints measured again, to compare a machine with another.",
        "sort_desc": "id",
        "columns": {
            "against_id": "The machine of the scores",
            "equal": "1 where all figures were the same to the last bit",
            "differences": "Those that were not, as JSON",
            "tolerance": "Up to where it was let in all the same",
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
        "columns": {"path": "Relative to MODEL_DIR where it lies inside"},
    },
    "events": {
        "description": "What the watcher noticed and did.",
        "facets": ["kind"],
        "sort_desc": "id",
        "columns": {"at": "UTC", "kind": "What happened", "message": "A sentence on it"},
    },
    **{name: {"hidden": True} for name in _INTERNAL},
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
