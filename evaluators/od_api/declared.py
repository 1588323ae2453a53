"""What is said of each metric at the start: which value is better, its unit and short names."""

import re

from evaluators.protocol import DeclaredMetric

# The OD API's own names say it: a loss is to be small, precision and recall are to be large.
_LOWER = re.compile(r"^Loss/")
_HIGHER = re.compile(r"(Precision|Recall)/")
# After the prefix of boxes or masks; where both are measured the short name means the boxes.
_OF_BOXES_OR_MASKS = {
    "Precision/mAP": "mAP",
    "Precision/mAP@.50IOU": "mAP50",
    "Precision/mAP@.75IOU": "mAP75",
    "Precision/mAP (small)": "mAP_small",
    "Precision/mAP (medium)": "mAP_medium",
    "Precision/mAP (large)": "mAP_large",
    "Recall/AR@1": "AR1",
    "Recall/AR@10": "AR10",
    "Recall/AR@100": "AR100",
    "Recall/AR@100 (small)": "AR100_small",
    "Recall/AR@100 (medium)": "AR100_medium",
    "Recall/AR@100 (large)": "AR100_large",
}
_BOXES, _MASKS = "DetectionBoxes_", "DetectionMasks_"
LATENCY = "latency_ms"


def declare(names, random_metrics):
    """Returns a `DeclaredMetric` for each name.

    Args:
        names: every overall metric that a result will have.
        random_metrics: those of them that the model draws at random in part.
    """
    short = _short_names(names)
    return [
        DeclaredMetric(
            name,
            direction=_direction(name),
            unit="ms" if name == LATENCY else None,
            short=short.get(name, []),
            # A latency is measured, and is another one each time.
            reproducible=name not in random_metrics and name != LATENCY,
        )
        for name in names
    ]


def _direction(name):
    if name == LATENCY or _LOWER.search(name):
        return "min"
    return "max" if _HIGHER.search(name) else None


def _short_names(names):
    """Returns the short names of those metrics that have some, each short name once."""
    found = {"Loss/total_loss": ["loss"], _MASKS + "Precision/mAP": ["mask_mAP"]}
    for suffix, short in _OF_BOXES_OR_MASKS.items():
        meant = _BOXES + suffix if _BOXES + suffix in names else _MASKS + suffix
        found.setdefault(meant, []).append(short)
    pascal = "PascalBoxes_Precision/mAP@0.5IOU"
    if not {_BOXES + "Precision/mAP@.50IOU", _MASKS + "Precision/mAP@.50IOU"} & set(names):
        found[pascal] = ["mAP50"]
    return found
