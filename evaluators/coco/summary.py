"""The numbers that COCO makes of the arrays of precision and recall."""

import numpy as np


def mean(values):
    """Returns the mean of the values there are, COCO's -1 where there are none."""
    valid = values[values > -1]
    return float(np.mean(valid)) if valid.size else -1.0


def summarize(precision, recall):
    """Returns the 12 numbers of COCOeval.summarize, in its order.

    Computed here from the arrays for every backend, since not all sum in the same order.

    Args:
        precision: [IoU, recall, category, area, maxDets], with the areas all, small, medium,
            large and 1, 10, 100 detections.
        recall: the same without the second axis.
    """
    sizes = range(1, precision.shape[3])
    return [
        mean(precision[:, :, :, 0, -1]),
        mean(precision[0, :, :, 0, -1]),
        mean(precision[5, :, :, 0, -1]),
        *(mean(precision[:, :, :, size, -1]) for size in sizes),
        *(mean(recall[:, :, 0, count]) for count in range(recall.shape[3])),
        *(mean(recall[:, :, size, -1]) for size in sizes),
    ]
