"""What is said of each metric at the start: which value is better, its unit and short names."""

import re

from evaluators.protocol import DeclaredMetric

LATENCY = "latency_ms"
_LOWER = re.compile(r"loss|error|mse|mae$", re.IGNORECASE)
_HIGHER = re.compile(
    r"^(mask_|keypoint_)?(AP|AR)|accuracy|iou|auc|precision|recall|_?(pq|sq|rq)$", re.IGNORECASE
)
_SHORT = {
    "AP": "mAP",
    "AP50": "mAP50",
    "AP75": "mAP75",
    "APs": "mAP_small",
    "APm": "mAP_medium",
    "APl": "mAP_large",
    "ARmax1": "AR1",
    "ARmax10": "AR10",
    "ARmax100": "AR100",
    "ARs": "AR100_small",
    "ARm": "AR100_medium",
    "ARl": "AR100_large",
    "mask_AP": "mask_mAP",
}
# What an experiment is ranked by unless it says so itself; the first that it measures.
_PRIMARY = ("AP", "accuracy", "mean_iou", "validation_loss")
_BETTER = {"higher": "max", "lower": "min"}


def declare(names, params, random_metrics):
    """Returns a `DeclaredMetric` for each name.

    Args:
        names: every overall metric that a result will have.
        params: the experiment's parameters.
        random_metrics: those of them that were seen to differ between two passes of one batch.
    """
    said = _said_by(params)
    return [
        DeclaredMetric(
            name,
            direction=said.get(name) or direction(name),
            unit="ms" if name == LATENCY else None,
            short=_short(name, names),
            # A latency is measured, and is another one each time.
            reproducible=name not in random_metrics and name != LATENCY,
        )
        for name in names
    ]


def primary(names, params):
    """Returns the metric that an experiment is ranked by, and its direction; (None, None) for none.

    That of `best_checkpoint_eval_metric` where it is measured, else what its kind is ranked by.
    """
    for name, better in [*_said_by(params).items(), *((one, None) for one in _PRIMARY)]:
        if name in names:
            return name, better or direction(name)
    return None, None


def direction(name):
    """Returns "max" or "min" by a metric's name, None where that does not say it."""
    if name == LATENCY or _LOWER.search(name):
        return "min"
    return "max" if _HIGHER.search(name) else None


def _said_by(params):
    name = params.trainer.best_checkpoint_eval_metric
    return {name: _BETTER.get(params.trainer.best_checkpoint_metric_comp)} if name else {}


def _short(name, names):
    if name == ("total_loss" if "total_loss" in names else "validation_loss"):
        return ["loss"]
    return [_SHORT[name]] if name in _SHORT and _SHORT[name] not in names else []
