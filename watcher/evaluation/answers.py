"""Answers: what a worker measured, as it is recorded.

What its messages leave open is checked here, with the name and the value: the database would refuse
it as well, and say less.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from watcher.errors import WorkerError
from watcher.evaluation import messages
from watcher.evaluation.events import Ready
from watcher.types import Evaluation, Replicated, Replicates

# A reason is read in a line of a log and a cell of a table; worker.log has all of it.
_LONGEST_REASON = 400
_LONGEST_NAME = 1000


class UnusableAnswer(Exception):
    """Raised when the values of an evaluation cannot be recorded; the message is the reason."""


def one_line(text: str, longest: float = _LONGEST_REASON) -> str:
    """Return a text in one line, cut off where it is too long for one."""
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: int(longest) - 4].rstrip() + " ..."


def read_evaluation(message: messages.Result, ready: Ready) -> Evaluation:
    """Read a worker's `result`.

    Args:
        message: As it came.
        ready: What the worker said of itself.

    Raises:
        UnusableAnswer: a category is unknown, or has two values of one metric.
        WorkerError: it is of a part of the eval set.
    """
    said = ready.said
    if message.images != said.images:
        raise WorkerError(f"the worker evaluated {message.images} images of {said.images}")
    timings = {name: value for name, value in message.timings.items() if value is not None}
    return Evaluation(
        fingerprint=said.fingerprint,
        images=message.images,
        metrics=dict(message.metrics),
        category_metrics=_by_category(message, ready),
        timings=timings,
        device=said.device,
        versions=ready.versions,
        machine=said.machine,
        details={
            **said.details,
            "categories": msgspec.to_builtins(said.categories),
            "warnings": said.warnings,
            "notes": said.notes,
            "random_metrics": ready.random_metrics,
            "cost": message.cost,
            "peak_memory_bytes": message.peak_memory_bytes,
            "peak_gpu_memory_bytes": message.peak_gpu_memory_bytes,
            "model_variables": message.model_variables,
            "metric_warnings": message.warnings,
            **_artefacts(message),
        },
    )


def read_replicates(message: messages.Replicates, ready: Ready) -> Replicates:
    """Read a worker's `replicates`; what is not as it has to be is left out.

    The score stands without them.
    """
    categories = {one.id: one.name for one in ready.said.categories or ()}
    length, metrics = 4 * message.count, dict[tuple[str, str], Replicated]()
    for one in message.metrics:
        category = "" if one.category is None else categories.get(one.category)
        if category is None or not one.low <= one.high:
            continue
        values = one.values if one.values and len(one.values) == length else None
        row = Replicated(one.name, category, one.objects, one.low, one.high, values)
        metrics[one.name, category] = row
    names = message.image_names or ()
    whole = message.influences is not None and len(message.influences) == 4 * message.images
    return Replicates(
        message.scheme,
        message.images,
        message.count,
        message.level,
        tuple(metrics.values()),
        message.influences if whole else None,
        tuple(names) if len(names) == message.images else None,
    )


def _by_category(
    message: messages.Result, ready: Ready
) -> tuple[tuple[str, str, float | None], ...]:
    found: dict[tuple[str, str], float | None] = {}
    categories = {one.id: one.name for one in ready.said.categories or ()}
    for row in message.category_metrics:
        category = categories.get(row.category)
        if category is None:
            raise UnusableAnswer(
                f"{row.name} is given of category {row.category}, which is none of the"
                f" {len(categories)} that the worker named at its start"
            )
        if not 0 < len(category) <= _LONGEST_NAME:
            raise UnusableAnswer(f"the name of category {row.category} ({category[:80]!r}) is none")
        if (row.name, category) in found:
            raise UnusableAnswer(
                f"{row.name} of {category!r} has two values: two categories have that name, or a"
                " set of metrics was computed twice"
            )
        found[row.name, category] = row.value
    return tuple((name, category, value) for (name, category), value in found.items())


def _artefacts(message: messages.Result) -> dict[str, Any]:
    """Return what is recorded of the files that an evaluation left."""
    pictures = [one.path for one in message.artefacts if one.kind == "picture" and one.path]
    others = [one for one in message.artefacts if one.kind != "picture"]
    # Event files take all pictures of a folder, which is a worker's own for each evaluation.
    folder = str(Path(pictures[0]).parent) if pictures else None
    kept: dict[str, Any] = {"artefacts": msgspec.to_builtins(others)} if others else {}
    if shown := {one.image: one.name for one in message.artefacts if one.path and one.image}:
        kept["pictured"] = shown
    return {"visualizations": folder, **kept}
