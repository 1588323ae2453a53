"""The detection model: built and traced once, restored from one checkpoint after another."""

import pathlib
import tempfile

import tensorflow as tf
from object_detection import inputs, model_lib, model_lib_v2
from object_detection.core import standard_fields

from evaluators.protocol import Failure

FIELDS = standard_fields.InputDataFields
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
SLOT = ".OPTIMIZER_SLOT"
STEP_KEY = "step" + VALUE
NAMED_MISMATCHES = 5


class Model:
    """A detection model as `model_lib_v2.eval_continuously` builds it.

    Attributes:
        network: the OD API's DetectionModel.
        global_step: the restored checkpoint's step.
    """

    def __init__(self, pipeline):
        self._batch_size = pipeline.batch_size
        self._add_regularization_loss = pipeline.configs["train_config"].add_regularization_loss
        # Built for training and switched over afterwards, exactly as the OD API does: some
        # architectures build different layers otherwise.
        self.network = model_lib_v2.MODEL_BUILD_UTIL_MAP["detection_model_fn_base"](
            model_config=pipeline.configs["model"], is_training=True
        )
        self.global_step = tf.Variable(0, trainable=False, dtype=tf.int64)
        self._checkpoint = tf.train.Checkpoint(step=self.global_step, model=self.network)
        self._forward = tf.function(self._losses_and_detections)
        self._expected = {}

    def trace(self, batches):
        """Builds the variables and traces the forward pass for each batch's shapes."""
        self.network._is_training = False
        tf.keras.backend.set_learning_phase(False)
        for features, labels in batches:
            self._forward(features, labels)
        self._expected = self._own_entries()
        self._all_finite = tf.function(
            lambda: tf.stack([tf.reduce_all(tf.math.is_finite(v)) for v in self._floats()])
        )

    @property
    def variables(self):
        """How many variables of the model a checkpoint must hold."""
        return len(self._expected) - 1

    def forward(self, features, labels):
        """Returns the losses and the detections of one batch, both as dicts of tensors."""
        return self._forward(features, labels)

    def restore(self, prefix):
        """Restores one checkpoint, every variable of it.

        Raises:
            Failure: it cannot be read, its variables are not the model's, or one holds NaN or
                infinity.
        """
        self._check_entries(prefix)
        try:
            status = self._checkpoint.read(prefix)
            status.assert_existing_objects_matched()
            status.expect_partial()
        except AssertionError as error:
            raise Failure("unmatched_variables", str(error), permanent=True) from error
        except (tf.errors.OpError, IndexError, OSError, ValueError) as error:
            raise _unreadable(prefix, error) from error
        finite = self._all_finite().numpy()
        if not finite.all():
            names = [v.name for v, good in zip(self._floats(), finite) if not good]
            raise Failure(
                "not_finite",
                "{} variables hold NaN or infinity: {}".format(len(names), _few(names)),
                permanent=True,
            )

    def _losses_and_detections(self, features, labels):
        # The same operations in the same order as compute_eval_dict in eager_eval_loop: equality
        # to the last bit rests on the graph being the same.
        boxes_shape = labels[FIELDS.groundtruth_boxes].get_shape().as_list()
        labels = model_lib.unstack_batch(
            labels,
            unpad_groundtruth_tensors=boxes_shape[1] is not None and self._batch_size == 1,
        )
        losses, predictions = model_lib_v2._compute_losses_and_predictions_dicts(
            self.network,
            features,
            labels,
            training_step=None,
            add_regularization_loss=self._add_regularization_loss,
        )
        detections = self.network.postprocess(predictions, features[FIELDS.true_image_shape])
        return losses, detections

    def _floats(self):
        return [v for v in self.network.variables if v.dtype.is_floating]

    def _own_entries(self):
        """Returns {checkpoint key: shape} of the built model.

        TensorFlow has no public way to name the keys of an object in every version, but it names
        them in a file.
        """
        with tempfile.TemporaryDirectory(prefix="checkpoint-watcher-") as folder:
            return _entries(self._checkpoint.write(str(pathlib.Path(folder, "built"))))

    def _check_entries(self, prefix):
        try:
            found = _entries(prefix)
        except (tf.errors.OpError, IndexError, OSError, ValueError) as error:
            raise _unreadable(prefix, error) from error
        wrong = ["{} is missing".format(k) for k in self._expected if k not in found]
        wrong += ["{} is not of this model".format(k) for k in found if k not in self._expected]
        wrong += [
            "{} is {} and must be {}".format(k, found[k], shape)
            for k, shape in self._expected.items()
            if k in found and found[k] != shape
        ]
        if wrong:
            message = "{} variables of the checkpoint do not match the model of pipeline.config: {}"
            raise Failure(
                "unmatched_variables", message.format(len(wrong), _few(wrong)), permanent=True
            )


def prepare_eval_dict(detections, labels, features):
    """Returns the OD API's evaluation dict of a batch, and whether it is class-agnostic."""
    return model_lib_v2.prepare_eval_dict(dict(detections), dict(labels), features)


def image_hashes(features):
    """Returns the identities of a batch's images."""
    return features[inputs.HASH_KEY].numpy()


def _entries(prefix):
    """Returns {key: shape} of the step and of the model's variables in a checkpoint."""
    shapes = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    return {
        key: shape
        for key, shape in shapes.items()
        if key == STEP_KEY or (key.startswith("model/") and key.endswith(VALUE) and SLOT not in key)
    }


def _few(names):
    shown = "; ".join(sorted(names)[:NAMED_MISMATCHES])
    return shown + ("; ..." if len(names) > NAMED_MISMATCHES else "")


def _unreadable(prefix, error):
    text = "checkpoint ({}) cannot be read: {}: {}".format(prefix, type(error).__name__, error)
    return Failure("unreadable_checkpoint", text, permanent=False)
