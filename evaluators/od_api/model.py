"""The detection model: built and traced once, restored from one checkpoint after another."""

import pathlib

import tensorflow as tf
from object_detection import model_lib, model_lib_v2
from object_detection.core import standard_fields

from evaluators import misfit, variables
from evaluators.memory import tensor_bytes
from evaluators.od_api import randomness
from evaluators.od_api.checkpoints import Checkpoints
from evaluators.od_api.pipeline import number_of_classes
from evaluators.protocol import Failure, Refusal, one_line

FIELDS = standard_fields.InputDataFields
DETECTIONS = standard_fields.DetectionResultFields
# What the OD API's builders raise for a model or a size of image they do not take.
BUILD_ERRORS = (ValueError, TypeError, LookupError, NotImplementedError, tf.errors.OpError)
MESSAGE_LENGTH = 400


class Model:
    """A detection model as `model_lib_v2.eval_continuously` builds it.

    Attributes:
        network: the OD API's DetectionModel.
        autograph: whether AutoGraph converts what is traced.
        global_step: step of the restored checkpoint.
        class_agnostic: whether it gives no classes; known once traced.
        random_outputs: names of the losses and detections that it draws at random, as the traced
            graph says: two evaluations of one checkpoint differ in them.
    """

    def __init__(self, pipeline):
        self._batch_size = pipeline.batch_size
        self._averages = pipeline.configs["eval_config"].use_moving_averages
        self._add_regularization_loss = pipeline.configs["train_config"].add_regularization_loss
        self._config = pipeline.configs["model"]
        self.global_step = 0
        self.class_agnostic = False
        self.random_outputs = set()
        self._variables = {}
        self._begin(autograph=False)
        self._classes = number_of_classes(pipeline.configs)

    def _begin(self, autograph):
        # Built for training and switched over afterwards, exactly as the OD API does: some
        # architectures build different layers otherwise.
        try:
            self.network = model_lib_v2.MODEL_BUILD_UTIL_MAP["detection_model_fn_base"](
                model_config=self._config, is_training=True
            )
        except BUILD_ERRORS as error:
            raise _cannot_build(error) from error
        self.autograph = autograph
        self._forward = tf.function(self._traced, autograph=autograph)

    def trace(self, batches):
        """Builds the variables and traces the forward pass for each batch's shapes."""
        _, detections = self._build(batches, self.forward)
        self.class_agnostic = DETECTIONS.detection_classes not in detections

    def build(self, batch):
        """Builds the variables alone, for `require_fit`: nothing goes through the model."""
        self._build(
            [batch],
            lambda features, labels: self._forward.get_concrete_function(
                inputs_of_the_model(features), labels
            ),
        )

    def _build(self, batches, run):
        """Builds the variables by what `run` makes of each batch; returns that of the last."""
        try:
            try:
                made = self._run_each(batches, run)
            except BUILD_ERRORS:
                # AutoGraph turns Python's `if` and `for` on tensors, which the OD API has in
                # CenterNet alone, into operations, and makes the tracing of any model take ten
                # times as long. Where it is not needed the graph is the same without it.
                self._begin(autograph=True)
                made = self._run_each(batches, run)
        except BUILD_ERRORS as error:
            raise _cannot_build(error) from error
        self._learn_keys()
        return made

    def _learn_keys(self):
        checkpoint = tf.train.Checkpoint(model=self.network)
        self._variables = variables.by_key(checkpoint, self.network.variables)
        averaged = [key for key, v in self._variables.items() if self._averages and v.trainable]
        self._checkpoints = Checkpoints(self._variables, averaged, self._classes)

    def _run_each(self, batches, run):
        self.network._is_training = False
        tf.keras.backend.set_learning_phase(False)
        return [run(*batch) for batch in batches][-1]

    @property
    def variables(self):
        """{key: variable}: what a checkpoint must hold of the model."""
        return self._variables

    @property
    def variable_count(self):
        """How many variables of the model a checkpoint must hold."""
        return len(self._variables)

    def forward(self, features, labels):
        """Returns one batch's losses as NumPy scalars and its detections as tensors."""
        losses, detections = self._forward(inputs_of_the_model(features), labels)
        # On a GPU the call returns before the work is done; asking for a value waits for it.
        detections[DETECTIONS.num_detections].numpy()
        return {name: value.numpy() for name, value in losses.items()}, detections

    def restore(self, prefix):
        """Restores one checkpoint, every variable of it.

        Raises:
            Failure: it cannot be read, its variables are not the model's, or one holds NaN or
                infinity.
        """
        self.global_step = self._checkpoints.restore(prefix)

    def require_fit(self, prefix):
        """Raises Refusal when a checkpoint is of another model; one that cannot be read may be."""
        try:
            self._checkpoints.check(prefix)
        except Failure as failure:
            if failure.code == misfit.UNMATCHED:
                name = pathlib.Path(prefix).name
                message = failure.message.replace("the checkpoint", "checkpoint " + name, 1)
                raise Refusal(failure.code, message, misfit.HINT) from failure

    def largest_tensor_bytes(self):
        """Returns the bytes of the largest tensor in a pass, of those whose shape is known."""
        outputs = (tensor for op in self._graph.get_operations() for tensor in op.outputs)
        return max(tensor_bytes(one) for one in outputs if one.shape.is_fully_defined())

    def _traced(self, features, labels):
        self._graph = tf.compat.v1.get_default_graph()
        losses, detections = self.losses_and_detections(features, labels)
        self.random_outputs |= randomness.random_outputs({**losses, **detections})
        return losses, detections

    def losses_and_detections(self, features, labels):
        """Returns the losses and the detections of a batch, in a function that is being traced."""
        # The same operations in the same order as compute_eval_dict in eager_eval_loop: equality
        # to the last bit, of all that is not drawn at random, rests on the graph being the same.
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


def _cannot_build(error):
    return Refusal(
        "bad_pipeline_config",
        "the model of pipeline.config cannot be built with this version of the OD API: "
        "{}: {}".format(type(error).__name__, one_line(error)[:MESSAGE_LENGTH]),
        "train with it first, with the same interpreter",
    )


def inputs_of_the_model(features):
    """Returns the features without those only metrics look at.

    Each would be traced apart for each of its shapes, and original images have many.
    """
    return {key: value for key, value in features.items() if key not in _FOR_METRICS}


_FOR_METRICS = (
    FIELDS.original_image,
    FIELDS.original_image_spatial_shape,
)
