"""Answers: what a worker measured, as it is recorded.

What its messages leave open is checked here, with the name and the value: the database would refuse
it as well, and say less.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from watcher.decision.metric import LATENCY
from watcher.errors import WorkerError
from watcher.evaluation import messages
from watcher.evaluation.events import Ready
from watcher.types import Evaluation

# A reason is read in a line of a log and a cell of a table; worker.log has all of it.
_LONGEST_REASON = 400
_LONGEST_NAME = 1000


class UnusableAnswer(Exception):
    """Raised when the values of an evaluation cannot be recorded; the message is the reason."""


def one_line(text: str, longest: float = _LONGEST_REASON) -> str:
    """Return a text in one line, cut off where it is too long for one."""
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: int(longest) - 4].rstrip() + " ..."


def read_ready(message: messages.Ready, versions: dict[str, str]) -> Ready:
    """Read a worker's `ready`; `versions` are those of its `hello`."""
    # A latency is another one each time, and says itself by how much.
    drawn = [m.name for m in message.metrics if not m.reproducible and m.name != LATENCY]
    details = {
        **message.details,
        "categories": msgspec.to_builtins(message.categories),
        "warnings": message.warnings,
        "notes": message.notes,
        "random_metrics": sorted(drawn),
    }
    return Ready(
        fingerprint=message.fingerprint,
        images=message.images,
        metric_names=tuple(metric.name for metric in message.metrics),
        device=message.device,
        versions=versions,
        details=details,
        taken=message.taken,
        categories={one.id: one.name for one in message.categories or ()},
        overlaps=message.capabilities.overlap,
    )


def read_evaluation(message: messages.Result, ready: Ready) -> Evaluation:
    """Read a worker's `result`.

    Args:
        message: As it came.
        ready: What the worker said of itself.

    Raises:
        UnusableAnswer: a category is unknown, or has two values of one metric.
        WorkerError: it is of a part of the eval set.
    """
    if message.images != ready.images:
        raise WorkerError(f"the worker evaluated {message.images} images of {ready.images}")
    timings = {name: value for name, value in message.timings.items() if value is not None}
    return Evaluation(
        fingerprint=ready.fingerprint,
        images=message.images,
        metrics=dict(message.metrics),
        category_metrics=_by_category(message, ready),
        timings=timings,
        device=ready.device,
        versions=ready.versions,
        details={
            **ready.details,
            "cost": message.cost,
            "peak_memory_bytes": message.peak_memory_bytes,
            "peak_gpu_memory_bytes": message.peak_gpu_memory_bytes,
            "model_variables": message.model_variables,
            "metric_warnings": message.warnings,
            **_artefacts(message),
        },
    )


def _by_category(
    message: messages.Result, ready: Ready
) -> tuple[tuple[str, str, float | None], ...]:
    found: dict[tuple[str, str], float | None] = {}
    for row in message.category_metrics:
        category = ready.categories.get(row.category)
        if category is None:
            raise UnusableAnswer(
                f"{row.name} is given of category {row.category}, which is none of the"
                f" {len(ready.categories)} that the worker named at its start"
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
    kept = {"artefacts": msgspec.to_builtins(others)} if others else {}
    return {"visualizations": folder, **kept}
