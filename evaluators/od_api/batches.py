"""Batches that change no bit: several images go through the network at once, each alone after it.

A small model at batch size 1 spends its time on setting up operations on tiny maps; in a batch it
needs a third of it. What comes after the network bears no batch: the OD API normalises losses
within one, and a sigmoid of several images may round otherwise. So the model's `predict` gets all
images in one call, and the OD API's own code then runs in a loop of the same graph on each image's
part of what it gave. That the bits are those of an image alone is proven (`proof.py`).
"""

import contextlib

import numpy as np
import tensorflow as tf
from object_detection.core import standard_fields

from evaluators.od_api import randomness
from evaluators.od_api.model import inputs_of_the_model

FIELDS = standard_fields.InputDataFields
TOTAL_LOSS = "Loss/total_loss"


class BatchPass:
    """A pass of several images, which gives of each what `Model.forward` gives of it alone.

    Args:
        model: the Model, traced.
        size: how many images.
        found: what `Model.forward` gave of one: names, order, shapes and types are taken from it.

    Attributes:
        size: how many images.
    """

    def __init__(self, model, size, found):
        self._model = model
        self.size = size
        losses, detections = found
        single = {name: value for name, value in losses.items() if name != TOTAL_LOSS}
        self._signature = tf.nest.map_structure(_spec_of, (single, dict(detections)))
        self._has_total = TOTAL_LOSS in losses
        self._traced = tf.function(self._predict_together, autograph=model.autograph)

    def forward(self, batches):
        """Returns [(losses, detections)] of each image, as NumPy arrays.

        Args:
            batches: pairs (features, labels) of one image each, as many as it was made for.
        """
        features, labels = zip(*batches)
        inputs = [inputs_of_the_model(one) for one in features]
        losses, detections = self._traced(_joined(inputs), _joined(labels))
        if self._has_total:
            losses[TOTAL_LOSS] = total_loss(losses)
        found = [{k: np.asarray(v) for k, v in d.items()} for d in (losses, detections)]
        return [tuple({k: v[at] for k, v in d.items()} for d in found) for at in range(self.size)]

    def _predict_together(self, features, labels):
        network, size = self._model.network, self.size
        together = network.predict(
            features[FIELDS.image],
            features[FIELDS.true_image_shape],
            **network.get_side_inputs(features),
        )
        regularization = network.regularization_losses()
        predict_alone = network.predict

        def one(at):
            def predict(images, shapes, **side_inputs):
                alone = predict_alone(images, shapes, **side_inputs)
                return _replaced(alone, together, network.batched_prediction_tensor_names, at, size)

            parts = [{k: _part(v, at, size) for k, v in d.items()} for d in (features, labels)]
            with _answering(network, predict, lambda: regularization):
                losses, detections = self._model.losses_and_detections(*parts)
            losses.pop(TOTAL_LOSS, None)
            return losses, dict(detections)

        return tf.map_fn(
            one, tf.range(size), fn_output_signature=self._signature, parallel_iterations=size
        )


def total_loss(losses):
    """Returns the sum of losses, each of one image or of several, as the OD API adds them up.

    Not in the graph of a batch: there AddN swaps two inputs when it may reuse the memory of one, so
    that the order, and the last bit with it, would depend on timing.
    """
    single = [value for name, value in losses.items() if name != TOTAL_LOSS]
    return tf.add_n(single).numpy() if single else None


@contextlib.contextmanager
def _answering(network, predict, regularization_losses):
    """Has a network's two methods be these meanwhile."""
    methods = {"predict": predict, "regularization_losses": regularization_losses}
    vars(network).update(methods)
    try:
        yield
    finally:
        for name in methods:
            del vars(network)[name]


def _replaced(alone, together, batched, at, size):
    """Returns the predictions of one image, computed together with those of others.

    Args:
        alone: what the network gives of that image. TensorFlow drops what is replaced of it.
        together: what it gives of all.
        batched: names of the predictions that have a part for each image.
        at: place of the image.
        size: how many there are.
    """

    def choose(own, of_all):
        # Where the shape of the image decides a value, as of anchors, the graph of one image has a
        # constant there, and TensorFlow simplifies what is computed with it: so must this one.
        return own if randomness.is_constant(own) else _part(of_all, at, size)

    return {
        name: tf.nest.map_structure(choose, own, together[name]) if name in batched else own
        for name, own in alone.items()
    }


def _part(tensor, at, size):
    """Returns an image's part of a tensor, which may have several rows an image."""
    rows = tensor.shape[0]
    each = tf.shape(tensor)[0] // size if rows is None else rows // size
    begin = tf.concat([[at * each], tf.zeros([tensor.shape.rank - 1], tf.int32)], 0)
    part = tf.slice(tensor, begin, [each] + [-1] * (tensor.shape.rank - 1))
    part.set_shape([None if rows is None else each, *tensor.shape[1:]])
    return part


def _joined(parts):
    return {name: tf.concat([part[name] for part in parts], 0) for name in parts[0]}


def _spec_of(value):
    return tf.TensorSpec(value.shape, value.dtype)
