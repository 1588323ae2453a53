"""Unmeasured: why a score cannot rank, in a sentence. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from watcher.decision.metric import Key, Metric, Values
from watcher.decision.rank import rankable

# How the reason of a checkpoint begins that is scored and cannot rank.
CANNOT_RANK = "its score cannot rank: "

_SIZES = {
    "(small)": ("small", "below 32 x 32 pixels"),
    "(medium)": ("medium", "from 32 x 32 to 96 x 96 pixels"),
    "(large)": ("large", "above 96 x 96 pixels"),
}


def why_unranked(metric: Metric, values: Values, details: Mapping[str, Any]) -> str | None:
    """Say why an evaluation's score cannot rank, None when it can.

    Args:
        metric: What the score is computed from.
        values: What was recorded, by (name, category).
        details: What else the worker said; `ground_truth` tells what there was to find.
    """
    if rankable(metric.value(values)):
        return None
    for shown, key, value in metric.parts(values):
        if value == -1.0:
            nothing = _nothing(key, details.get("ground_truth"))
            return f"{CANNOT_RANK}{shown} has nothing to measure (-1){nothing}"
        if value is None or not math.isfinite(value):
            return f"{CANNOT_RANK}{shown} has no finite value"
    return f"{CANNOT_RANK}{metric.text} has no finite value"


def _nothing(key: Key, truth: Mapping[str, Any] | None) -> str:
    name, category = key
    if not truth:
        return ""
    if not truth["boxes"]:
        return ", since no ground truth box of the eval set is of a class of the label map"
    if category and category in truth["without"]:
        return f", since the eval set has no ground truth box of {category}"
    for suffix, (size, area) in _SIZES.items():
        if name.endswith(suffix) and not truth[size]:
            return f", since the eval set has no {size} ground truth box, {area}"
    return ""
