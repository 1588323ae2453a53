"""COCO metrics of boxes and masks from columns of numbers, through one of several backends.

Libraries of models keep a dict for each box and hand them to pycocotools. Here ground truth and
detections are columns (one array for each field), which every backend can take; `pycocotools` is
the reference the others must equal. Boxes are [x, y, width, height] in pixels.
"""

from evaluators.coco.backends import (
    BACKENDS,
    EXACT_BACKENDS,
    choose_backend,
    evaluate,
    precision_and_recall,
    usable,
)
from evaluators.coco.columns import Columns, run_lengths
from evaluators.coco.intervals import resampler
from evaluators.coco.summary import mean, summarize

__all__ = [
    "BACKENDS",
    "EXACT_BACKENDS",
    "Columns",
    "choose_backend",
    "evaluate",
    "resampler",
    "usable",
    "mean",
    "precision_and_recall",
    "run_lengths",
    "summarize",
]
