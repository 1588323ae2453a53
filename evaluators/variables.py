"""The variables of a checkpoint: by which keys it has them, and how they are read at once.

`tf.train.Checkpoint.restore` walks the whole object graph each time, which costs far more than the
reading. The keys do not change between two checkpoints of one run, so they are learned once.
"""

import pathlib
import tempfile

import numpy as np
import tensorflow as tf

from evaluators.protocol import Failure
from evaluators.soundness import require_finite

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
SLOT = "/.OPTIMIZER_SLOT/"
# One operation reads one variable after another: checksums and copies, on one core. More than two
# at once gained nothing.
AT_ONCE = 2
READ_ERRORS = (tf.errors.OpError, IndexError, OSError, ValueError)


def by_key(checkpoint, variables):
    """Returns {key: variable}: under which key a tf.train.Checkpoint has each variable.

    TensorFlow has no public way to ask for it, in all the versions supported. So each variable is
    given a number of its own, a checkpoint is written, and the numbers are looked up in it; the
    values are put back afterwards.
    """
    variables = list({v.ref(): v for v in variables}.values())
    values = [v.numpy() for v in variables]
    with tempfile.TemporaryDirectory(prefix="checkpoint-watcher-") as folder:
        for number, variable in enumerate(variables):
            variable.assign(_marked(variable, number))
        prefix = checkpoint.write(str(pathlib.Path(folder, "numbered")))
        for variable, value in zip(variables, values):
            variable.assign(value)
        reader = tf.train.load_checkpoint(prefix)
        keys = sorted(key for key in reader.get_variable_to_shape_map() if is_models(key))
        found = {key: variables[_number(reader.get_tensor(key))] for key in keys}
    if len(found) != len(variables):
        raise RuntimeError(
            "the model has {} variables and saves {}".format(len(variables), len(found))
        )
    return found


class Reader:
    """Reads the same variables out of one checkpoint after another, in one call.

    A few hundred operations, one a variable, would take longer than the reading.

    Args:
        types: {key: TensorFlow's type} of what is wanted.
        variables: {key: variable} of those that are to have their values at once.
    """

    def __init__(self, types, variables=()):
        self._types = dict(types)
        self._variables = dict(variables)
        self._returned = [key for key in types if key not in self._variables]
        self._floating = [key for key, kind in types.items() if kind.is_floating]
        wanted = [tf.TensorSpec([], tf.string)]
        self._traced = tf.function(self._restore, input_signature=wanted, autograph=False)

    def read(self, prefix):
        """Returns {key: tensor} of a checkpoint, of what is not in a variable now.

        Raises:
            READ_ERRORS: it cannot be read.
            Failure: a value is NaN or infinite. Then no variable has another value than before.
        """
        tensors, finite = self._traced(prefix)
        require_finite(key for key, sound in zip(self._floating, finite.numpy()) if not sound)
        return dict(zip(self._returned, tensors))

    def _restore(self, prefix):
        with tf.device("/CPU:0"):
            values = {}
            for first in range(AT_ONCE):
                values.update(self._values(prefix, list(self._types)[first::AT_ONCE]))
            sound = [tf.reduce_all(tf.math.is_finite(values[key])) for key in self._floating]
            finite = tf.stack(sound) if sound else tf.ones([0], tf.bool)

        def put():
            for key, variable in self._variables.items():
                variable.assign(values[key], read_value=False)
            return True

        tf.cond(tf.reduce_all(finite), put, lambda: False)
        return [values[key] for key in self._returned], finite

    def _values(self, prefix, keys):
        tensors = tf.raw_ops.RestoreV2(
            prefix=prefix,
            tensor_names=keys,
            shape_and_slices=[""] * len(keys),
            dtypes=[self._types[key] for key in keys],
        )
        return dict(zip(keys, tensors))


class Writer:
    """Gives the same variables new values again and again, all in one call.

    Args:
        variables: {key: variable}.
    """

    def __init__(self, variables):
        self._variables = dict(variables)
        specs = [tf.TensorSpec(v.shape, v.dtype) for v in self._variables.values()]
        self._traced = tf.function(self._assign, input_signature=[specs], autograph=False)

    def write(self, values):
        """Takes {key: value} of every variable."""
        self._traced([values[key] for key in self._variables])

    def _assign(self, values):
        for variable, value in zip(self._variables.values(), values):
            variable.assign(value, read_value=False)


def unreadable(prefix, error):
    """Returns the Failure of a checkpoint that could not be read: it may be there again later."""
    text = "checkpoint ({}) cannot be read: {}: {}"
    return Failure(
        "unreadable_checkpoint",
        text.format(prefix, type(error).__name__, error),
        permanent=False,
    )


def is_models(key):
    """Tells whether a key is of a variable of a model: the rest is the optimizer's and counters.

    It holds where the checkpoint's root has the model's parts and an `optimizer` beside them.
    """
    return SLOT not in key and is_trained(key)


def is_trained(key):
    """Tells whether a key is of a variable of a model, or of what an optimizer keeps of one."""
    others = ("optimizer/", "save_counter/", "global_step/", "step/")
    return key.endswith(VALUE) and not key.startswith(others)


def _marked(variable, number):
    return tf.cast(tf.fill(variable.shape, number), variable.dtype)


def _number(value):
    return int(np.asarray(value).ravel()[0])
