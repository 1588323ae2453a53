"""Whether a batch is given up where TensorFlow computes other bits in it, on networks of one layer.

A product of matrices with one row an image is computed otherwise for one image than for several; a
convolution is not. What the proof says of such networks is what it says of any model.
"""

import numpy as np
import tensorflow as tf
from evaluators.od_api.passes import Passes
from evaluators.od_api.proof import Batching
from object_detection.core import standard_fields

FIELDS = standard_fields.InputDataFields
IMAGES = 40
SIDE, WIDTH = 39, 96


class Network:
    """As much of the OD API's DetectionModel as an evaluation asks for."""

    batched_prediction_tensor_names = ("scores",)

    def __init__(self, kernel, anchor):
        self.kernel = tf.Variable(kernel)
        self.trainable_variables = [self.kernel]
        self._anchor = anchor

    def predict(self, images, shapes):
        """Returns the predictions: by a convolution, or by a product with one row an image."""
        if self.kernel.shape.rank == 4:
            scores = tf.nn.conv2d(images, self.kernel, 1, "SAME")
        else:
            scores = tf.reshape(images, [images.shape[0], -1]) @ self.kernel
        return {"scores": scores + self._anchor, "anchors": tf.ones([4])}

    def regularization_losses(self):
        """Returns a loss for the weights."""
        return [tf.nn.l2_loss(self.kernel)]

    def get_side_inputs(self, features):
        """Returns what some architectures take besides."""
        return {}


class Model:
    """As much of our Model as the proof asks for."""

    autograph = False

    def __init__(self, kernel, random_outputs=(), anchor=0.0):
        self.network = Network(kernel, anchor)
        self.random_outputs = set(random_outputs)
        self._traced = tf.function(self.losses_and_detections, autograph=False)

    def forward(self, features, labels):
        """Returns one image's losses and detections."""
        losses, detections = self._traced(features, labels)
        return {name: value.numpy() for name, value in losses.items()}, detections

    def largest_tensor_bytes(self):
        """Returns little."""
        return 1024

    def losses_and_detections(self, features, labels):
        """Returns both, the total as the OD API adds it up."""
        shapes = features[FIELDS.true_image_shape]
        predictions = self.network.predict(features[FIELDS.image], shapes)
        loss = tf.reduce_mean(predictions["scores"] * labels["weight"])
        weights = tf.add_n(self.network.regularization_losses())
        losses = {"Loss/scores": loss, "Loss/weights": weights}
        losses["Loss/total_loss"] = tf.add_n(list(losses.values()))
        return losses, {"detection_scores": predictions["scores"]}


class EvalSet(list):
    """Batches of one image each, all of one shape."""

    def __init__(self, generator, images=IMAGES):
        super().__init__()
        for _ in range(images):
            pixels = generator.normal(size=(1, SIDE, SIDE, 3))
            features = {
                FIELDS.image: tf.constant(pixels, tf.float32),
                FIELDS.true_image_shape: tf.constant([[SIDE, SIDE, 3]]),
            }
            self.append((features, {"weight": tf.constant([generator.normal()], tf.float32)}))
        self.images = images
        self.shapes = [self[0]]


class Pipeline:
    """As much of the Pipeline as the choice asks for."""

    def __init__(self, batch_size=1, fixed_batch_size=False):
        self.batch_size = batch_size
        self.fixed_batch_size = fixed_batch_size


def settled(model, eval_set, pipeline=None, seconds=0.001):
    """Returns the Batching of a model after it has settled, gained or not."""
    batching = Batching(model, eval_set, Passes(1))
    batching.least_gain = 0
    batching.settle(pipeline or Pipeline(), model.forward(*eval_set[0]), seconds)
    return batching


def told(batching):
    """Returns what it says."""
    return {**batching.describe(), "notes": batching.notes}


def proofs():
    """Returns what was chosen, by case."""
    generator = np.random.default_rng(1)
    eval_set = EvalSet(generator)
    pixels = int(np.prod(eval_set[0][0][FIELDS.image].shape))
    filters = generator.normal(size=(3, 3, 3, 8)).astype(np.float32)
    product = generator.normal(size=(pixels, WIDTH)).astype(np.float32)
    found = {
        "convolution": told(settled(Model(filters), eval_set)),
        "product": told(settled(Model(product), eval_set)),
        # Rounded away beside the anchor, until the weights have grown.
        "small product": told(settled(small := Model(1e-30 * product, anchor=1.0), eval_set)),
        "random": told(settled(Model(filters, {"Loss/scores"}), eval_set)),
        "few": told(settled(Model(filters), EvalSet(generator, 4))),
        "slow": told(settled(Model(filters), eval_set, seconds=2.0)),
        "pipeline": told(settled(Model(filters), eval_set, Pipeline(batch_size=8))),
        "fixed": told(settled(Model(filters), eval_set, Pipeline(fixed_batch_size=True))),
    }
    found["small product"]["put back"] = bool(np.all(small.network.kernel == 1e-30 * product))
    # All weights zero hide what those of a checkpoint show.
    late = settled(Model(np.zeros_like(product)), eval_set)
    found["before the checkpoint"] = told(late)
    late._model.network.kernel.assign(product)
    found["warning"], found["again"] = late.confirm(), late.confirm()
    found["at the checkpoint"] = told(late)
    kept = settled(Model(filters), eval_set)
    kept._model.network.kernel.assign(2 * filters)
    found["kept"] = [kept.confirm(), kept.size, [len(group) for group in kept.groups(eval_set)]]
    return found
