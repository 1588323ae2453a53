"""Metrics of one evaluation: what the Trainer gives, and COCO's, computed apart from it."""

import copy
import types

import numpy as np
from official.vision.evaluation import coco_evaluator, coco_utils
from pycocotools import cocoeval

# What is also given for each category: name, index of the IoU threshold.
CATEGORY_PRECISIONS = (("AP", None), ("AP50", 0), ("AP75", 5))


class DeferredCoco:
    """Keeps what a task's COCOEvaluator collected, so that its metrics are computed later.

    The next checkpoint may then be in the model. A task without one is left alone.
    """

    def __init__(self, task):
        metric = getattr(task, "coco_metric", None)
        self._metric = metric if isinstance(metric, coco_evaluator.COCOEvaluator) else None
        self._taken = None
        if self._metric is not None:
            self._metric.result = self._take
            _let_numpy_count()

    def _take(self):
        """Stands in for the evaluator's `result`."""
        taken = copy.copy(self._metric)
        del taken.result
        self._metric.reset_states()
        self._taken = taken
        return {}

    def taken(self):
        """Returns a function that computes the metrics of what was collected, once.

        It returns ({metric: value}, [(metric, category, value)]).
        """
        taken, self._taken = self._taken, None
        return (lambda: _compute(taken)) if taken is not None else (lambda: ({}, []))


def _compute(metric):
    made = []

    class Remembered(cocoeval.COCOeval):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            made.append(self)

    coco_evaluator.cocoeval = types.SimpleNamespace(COCOeval=Remembered)
    values = metric.result()
    return values, [found for evaluator in made for found in _by_category(evaluator)]


def _by_category(evaluator):
    prefix = {"segm": "mask_", "bbox": ""}.get(evaluator.params.iouType)
    if prefix is None:
        return
    precision = evaluator.eval["precision"]
    for place, category in enumerate(evaluator.params.catIds):
        for name, iou in CATEGORY_PRECISIONS:
            part = precision[:, :, place, 0, -1] if iou is None else precision[iou, :, place, 0, -1]
            valid = part[part > -1]
            yield prefix + name, int(category), float(np.mean(valid)) if valid.size else -1.0


def _let_numpy_count():
    """Lets Model Garden count the boxes of an image where NumPy is 2.4 or newer.

    It asks for an array of one number to be a number, which NumPy refuses since then.
    """
    convert = coco_utils.convert_groundtruths_to_coco_dataset

    def converted(groundtruths, *arguments):
        counts = [np.reshape(count, [-1]) for count in groundtruths["num_detections"]]
        return convert(dict(groundtruths, num_detections=counts), *arguments)

    coco_utils.convert_groundtruths_to_coco_dataset = converted
