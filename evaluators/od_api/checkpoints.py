"""Reads the model's variables out of a checkpoint by key, all in one operation.

`tf.train.Checkpoint.restore` walks the whole object graph each time, which costs far more than the
reading. The keys do not change between two checkpoints of one run, so they are learned once
(`evaluators.variables`).
"""

import sys

import tensorflow as tf

from evaluators import misfit
from evaluators.protocol import Failure
from evaluators.variables import READ_ERRORS, SLOT, VALUE, Reader, Writer, unreadable

# Where train_loop's Checkpoint(step, model, optimizer) keeps the moving averages.
AVERAGE = SLOT + "optimizer/average"
STEP_KEY = "step" + VALUE


class Checkpoints:
    """The checkpoints of one model: what each must hold, and how it is put into the model.

    Args:
        variables: {key: variable} a checkpoint must hold, no more and no less.
        averaged: keys whose moving average is to be taken.
        classes: how many pipeline.config says, None where that is not known.
    """

    def __init__(self, variables, averaged, classes=None):
        self._averaged = averaged
        self._classes = classes
        self._expected = {key: (list(v.shape), v.dtype) for key, v in variables.items()}
        self._expected[STEP_KEY] = ([], tf.int64)
        for key in averaged:
            self._expected[_average_key(key)] = self._expected[key]
        types = {key: kind for key, (_, kind) in self._expected.items()}
        self._reader = Reader(types, () if averaged else variables)
        self._writer = Writer(variables) if averaged else None

    def restore(self, prefix):
        """Puts a checkpoint into the model and returns its global step.

        Raises:
            Failure: it cannot be read, its variables are not the model's, or one is not finite.
                Then the model keeps what it had.
        """
        try:
            self._compare(prefix)
            values = self._reader.read(prefix)
        except READ_ERRORS as error:
            raise unreadable(prefix, error) from error
        for key in self._averaged:
            # The OD API swaps the two in place by sums and differences, so what it evaluates is
            # (average + value) - value, rounded twice. In a traced function it would be simplified.
            value = values[key].numpy()
            values[key] = (values[_average_key(key)].numpy() + value) - value
        if self._writer:
            self._writer.write(values)
        return int(values[STEP_KEY])

    def check(self, prefix):
        """Compares the names, shapes and types alone; no value is read.

        Raises:
            Failure: it cannot be read, or its variables are not the model's.
        """
        try:
            self._compare(prefix)
        except READ_ERRORS as error:
            raise unreadable(prefix, error) from error

    def _compare(self, prefix):
        reader = tf.train.load_checkpoint(prefix)
        shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        ours = {key: (list(shape), kind.name) for key, (shape, kind) in self._expected.items()}
        theirs = {
            key: (list(shapes[key]), types[key].name)
            for key in shapes
            if _is_ours(key, self._averaged)
        }
        differing = misfit.differences(ours, theirs)
        if differing:
            # All of them, for whoever reads worker.log; the message is to be read at a glance.
            said = "; ".join(differing.values())
            print("{}: {}".format(prefix, said), file=sys.stderr, flush=True)
            said = misfit.explain(differing, ours, theirs, self._classes)
            raise Failure(misfit.UNMATCHED, "the checkpoint {}".format(said), permanent=True)


def _average_key(key):
    return key[: -len(VALUE)] + AVERAGE + VALUE


def _is_ours(key, averaged):
    if key == STEP_KEY:
        return True
    if not key.startswith("model/") or not key.endswith(VALUE):
        return False
    return SLOT not in key or (bool(averaged) and key.endswith(AVERAGE + VALUE))
