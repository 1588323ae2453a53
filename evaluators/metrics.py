"""Metrics: the OD API's own evaluators, fresh for each checkpoint."""

import numpy as np
import tensorflow as tf
from object_detection import eval_util
from object_detection.utils import label_map_util


class Metrics:
    """Takes the batches of one evaluation and gives its metrics.

    Attributes:
        images: images taken so far.
    """

    def __init__(self, pipeline):
        self._eval_config = pipeline.configs["eval_config"]
        self._options = eval_util.evaluator_options_from_eval_config(self._eval_config)
        self._categories = pipeline.categories
        self._evaluators = None
        self._losses = {}
        self.images = 0

    def add(self, losses, eval_dict, class_agnostic, images):
        """Takes one batch: its losses and the OD API's evaluation dict."""
        if self._evaluators is None:
            self._evaluators = self._new_evaluators(class_agnostic)
        for evaluator in self._evaluators:
            evaluator.add_eval_dict(eval_dict)
        for name, value in losses.items():
            self._losses.setdefault(name, []).append(value.numpy())
        self.images += images

    def compute(self):
        """Returns {metric: float}, under the OD API's names."""
        found = {}
        for evaluator in self._evaluators:
            found.update(evaluator.evaluate())
        for name, values in self._losses.items():
            # The same reduction as the OD API's, in the same precision.
            found[name] = tf.reduce_mean(np.array(values)).numpy()
        return {str(name): float(value) for name, value in found.items()}

    def _new_evaluators(self, class_agnostic):
        categories = self._categories
        if class_agnostic:
            index = label_map_util.create_class_agnostic_category_index()
            categories = list(index.values())
        return eval_util.get_evaluators(self._eval_config, categories, self._options)
