"""Metrics of one evaluation: losses, COCO's, and whatever else the OD API's evaluators give."""

import numpy as np
import tensorflow as tf
from object_detection import eval_util, inputs, model_lib_v2
from object_detection.core import standard_fields
from object_detection.metrics import lvis_evaluation, lvis_tools
from object_detection.utils import label_map_util

from evaluators.od_api import coco
from evaluators.od_api.detections import AbsoluteDetections, truth_arrays
from evaluators.od_api.plugin_images import PluginMetrics, Truths
from evaluators.protocol import Refusal

FIELDS = standard_fields.InputDataFields
DETECTIONS = standard_fields.DetectionResultFields


class MetricSets:
    """What stays the same from checkpoint to checkpoint: the sets asked for and their ground truth.

    COCO's boxes and masks have a fast path of our own; every other set goes through the OD API's
    evaluators, fed with the OD API's own evaluation dict.

    Args:
        pipeline: the Pipeline.
        class_agnostic: whether the model gives no classes.
        backend: one of `coco.BACKENDS`.
        plugins: metrics of the user's own, loaded (`plugins.load`).

    Attributes:
        categories: dicts with `id` and `name`, under which all figures are given.
    """

    def __init__(self, pipeline, class_agnostic, backend, plugins=()):
        self.eval_config = pipeline.configs["eval_config"]
        self.class_agnostic = class_agnostic
        self.backend = backend
        self.categories = pipeline.label_map.categories
        # A parameterized metric finds its class by the name that the label map has.
        self._as_written = pipeline.label_map.as_written
        if class_agnostic:
            index = label_map_util.create_class_agnostic_category_index()
            self.categories = self._as_written = list(index.values())
        fast = [name for name in pipeline.metrics_sets if self._is_fast(name)]
        self.truths = [coco.GroundTruth(name, self.categories) for name in fast]
        self.plugin_truths = Truths(plugins, self.categories) if plugins else None
        self._others = [name for name in pipeline.metrics_sets if name not in fast]

    def add_ground_truth(self, batches):
        """Takes the eval set, before any checkpoint is scored."""
        for features, labels in batches if self.truths or self.plugin_truths else ():
            self._add_batch(features, labels)

    def _add_batch(self, features, labels):
        arrays = truth_arrays(features, labels, self.class_agnostic)
        arrays[FIELDS.key] = features[inputs.HASH_KEY].numpy()
        masks = FIELDS.groundtruth_instance_masks
        needed = any(truth.with_masks for truth in self.truths)
        if needed and masks not in labels:
            raise Refusal(
                "bad_pipeline_config",
                "metrics_set coco_mask_metrics needs masks in the eval records",
                "set load_instance_masks in the eval_input_reader",
            )
        if needed or (self.plugin_truths and masks in labels):
            found = self.eval_dict(self._no_detections(features), labels, features)
            arrays[masks] = found[masks].numpy()
        for truth in self.truths:
            truth.add(arrays)
        if self.plugin_truths:
            self.plugin_truths.add(arrays)

    def new_evaluators(self):
        """Returns fresh evaluators of the OD API for the sets without a fast path."""
        evaluators = []
        if self._others:
            config = _with_sets(self.eval_config, self._others)
            config.ClearField("parameterized_metric")
            options = eval_util.evaluator_options_from_eval_config(config)
            evaluators = eval_util.get_evaluators(config, self.categories, options)
        # An empty metrics_set means COCO boxes to the OD API, here first in the list.
        config = _with_sets(self.eval_config, [])
        return evaluators + eval_util.get_evaluators(config, self._as_written)[1:]

    def eval_dict(self, detections, labels, features):
        """Returns the OD API's evaluation dict of one batch."""
        tensors = {name: tf.convert_to_tensor(value) for name, value in detections.items()}
        return model_lib_v2.prepare_eval_dict(tensors, dict(labels), features)[0]

    def _is_fast(self, name):
        skips = self.eval_config.skip_predictions_for_unlabeled_class
        return name in coco.SETS and not (skips and name == "coco_detection_metrics")

    def _no_detections(self, features):
        batch = len(features[inputs.HASH_KEY])
        detections = {
            DETECTIONS.detection_boxes: tf.zeros([batch, 0, 4]),
            DETECTIONS.detection_scores: tf.zeros([batch, 0]),
            DETECTIONS.num_detections: tf.zeros([batch]),
        }
        if not self.class_agnostic:
            detections[DETECTIONS.detection_classes] = tf.zeros([batch, 0])
        return detections


class Metrics:
    """Takes the batches of one evaluation and gives its metrics.

    Attributes:
        images: images taken so far.
    """

    def __init__(self, sets):
        self._sets = sets
        self._coco = [
            coco.CocoMetrics(truth, sets.backend, sets.eval_config) for truth in sets.truths
        ]
        self._plugins = PluginMetrics(sets.plugin_truths) if sets.plugin_truths else None
        self._evaluators = sets.new_evaluators()
        self._losses = {}
        self.images = 0

    def add(self, losses, detections, features, labels):
        """Takes one batch: its losses and detections, and the batch itself."""
        image_ids = features[inputs.HASH_KEY].numpy()
        for name, value in losses.items():
            self._losses.setdefault(name, []).append(value)
        takers = [*self._coco, self._plugins] if self._plugins else self._coco
        if takers:
            sizes = features[FIELDS.original_image_spatial_shape].numpy()
            absolute = AbsoluteDetections(detections, image_ids, sizes)
            for metrics in takers:
                metrics.add(absolute)
        if self._evaluators:
            eval_dict = self._sets.eval_dict(detections, labels, features)
            for evaluator in self._evaluators:
                evaluator.add_eval_dict(eval_dict)
        self.images += len(image_ids)

    def compute(self):
        """Returns ({metric: float}, [category metric]), under the OD API's names."""
        found, by_category = {}, []
        for metrics in self._coco:
            values, categories = metrics.compute()
            found.update(values)
            by_category += categories
        for evaluator in self._evaluators:
            _give_lvis_a_detection(evaluator)
            found.update(evaluator.evaluate())
        for name, values in self._losses.items():
            # The same reduction as the OD API's, in the same precision.
            found[name] = tf.reduce_mean(np.array(values)).numpy()
        return {str(name): float(value) for name, value in found.items()}, by_category

    def to_resample(self):
        """Returns what `coco.resampler` takes of COCO's sets, once the metrics are computed."""
        return [metrics.to_resample() for metrics in self._coco]

    def compute_plugins(self):
        """Returns ({metric: float or None}, [warning]) of the metric plugins."""
        return self._plugins.compute() if self._plugins else ({}, [])


def _give_lvis_a_detection(evaluator):
    """Adds an empty mask of score 0 where nothing was found, since LVISResults raises on none.

    It is wrong wherever it counts, so every precision and recall is 0 as without it.
    """
    if not isinstance(evaluator, lvis_evaluation.LVISMaskEvaluator):
        return
    if evaluator._detection_masks_list or not evaluator._groundtruth_list:
        return
    truth = evaluator._groundtruth_list[0]
    empty = np.zeros(evaluator._image_id_to_mask_shape_map[truth["image_id"]][1:], np.uint8)
    evaluator._detection_masks_list.append(
        {
            "image_id": truth["image_id"],
            "category_id": truth["category_id"],
            "segmentation": lvis_tools.RleCompress(empty),
            "score": 0.0,
        }
    )


def _with_sets(eval_config, names):
    config = type(eval_config)()
    config.CopyFrom(eval_config)
    config.ClearField("metrics_set")
    config.metrics_set.extend(names)
    return config
