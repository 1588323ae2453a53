"""Answers: what a worker says, read and checked field by field.

What is wrong in one evaluation is refused here, with the name and the value: the database would
refuse it as well, and say less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from watcher.errors import WorkerError
from watcher.evaluation.events import Ready
from watcher.types import Evaluation

_KEPT_OF_READY = (
    *("eval_input", "metrics_sets", "build_seconds", "categories"),
    *("coco_backend", "eval_set_kept", "warnings", "notes", "eval_name", "own_metrics"),
    *("random_metrics", "deterministic", "ground_truth", "unmeasured"),
)
# The largest label maps have about 1,200 categories, with a dozen metrics each.
_MOST_ROWS = 100_000
_LONGEST_NAME = 1000
# A reason is read in a line of a log and a cell of a table; worker.log has all of it.
_LONGEST_REASON = 400


class UnusableAnswer(Exception):
    """Raised when the values of an evaluation cannot be recorded; the message is the reason."""


def one_line(text: str, longest: float = _LONGEST_REASON) -> str:
    """Return a text in one line, cut off where it is too long for one."""
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: int(longest) - 4].rstrip() + " ..."


def read_ready(message: Mapping[str, Any], versions: dict[str, str]) -> Ready:
    """Read a worker's `ready`.

    Args:
        message: As it came.
        versions: Those of its `hello`.

    Raises:
        WorkerError, KeyError, TypeError, ValueError: it lacks something or mixes it up.
    """
    images = int(message["images"])
    if not 0 <= images < 1 << 53:
        raise WorkerError(f"the worker said ready with {images} images")
    details = {key: message.get(key) for key in _KEPT_OF_READY}
    for category in details["categories"] or ():
        if not isinstance(category["name"], str):
            raise TypeError("categories")
    return Ready(
        fingerprint=str(message["fingerprint"]),
        images=images,
        metric_names=tuple(str(name) for name in message["metric_names"]),
        device=str(message["device"]),
        versions=versions,
        details=details,
        taken={str(path): str(copy) for path, copy in (message.get("taken") or {}).items()},
    )


def read_evaluation(message: Mapping[str, Any], ready: Ready) -> Evaluation:
    """Read a worker's `result`.

    Args:
        message: As it came.
        ready: What the worker said of itself.

    Raises:
        UnusableAnswer: a value is missing its name, there are two of one name, or too many.
        WorkerError, KeyError, TypeError, ValueError: it lacks something or mixes it up.
    """
    images = int(message["images"])
    if images != ready.images:
        raise WorkerError(f"the worker evaluated {images} images of {ready.images}")
    metrics = {name: _number(value) for name, value in message["metrics"].items()}
    rows = [
        (row["name"], row["category"], _number(row["value"]))
        for row in message.get("category_metrics") or ()
    ]
    _check_names(metrics, rows)
    return Evaluation(
        fingerprint=ready.fingerprint,
        images=images,
        metrics=metrics,
        category_metrics=tuple(rows),
        timings={
            str(name): float(value)
            for name, value in message["timings"].items()
            if _number(value) is not None
        },
        device=ready.device,
        versions=ready.versions,
        details={
            **ready.details,
            "cost": message.get("cost"),
            "peak_memory_bytes": message.get("peak_memory_bytes"),
            "peak_gpu_memory_bytes": message.get("peak_gpu_memory_bytes"),
            "model_variables": message.get("model_variables"),
            "visualizations": message.get("visualizations"),
            "metric_warnings": [str(text) for text in message.get("metric_warnings") or ()],
        },
    )


def _check_names(metrics: Iterable[str], rows: list[tuple[Any, Any, float | None]]) -> None:
    if len(rows) > _MOST_ROWS:
        raise UnusableAnswer(f"{len(rows)} values by category are more than {_MOST_ROWS}")
    for name in metrics:
        _check_name(name, "a metric")
    seen = set()
    for name, category, _ in rows:
        _check_name(name, "a metric")
        _check_name(category, f"a category of {name}")
        if (name, category) in seen:
            raise UnusableAnswer(
                f"{name} of {category!r} has two values: two categories have that name, or a set of"
                " metrics was computed twice"
            )
        seen.add((name, category))


def _check_name(name: Any, what: str) -> None:
    if not isinstance(name, str) or not name or len(name) > _LONGEST_NAME:
        raise UnusableAnswer(f"the name of {what} ({str(name)[:80]!r}) is not a name")


def _number(value: Any) -> float | None:
    if value is None or not math.isfinite(number := float(value)):
        return None
    return number
