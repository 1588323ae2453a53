"""Reads the model's variables out of a checkpoint by key, all in one operation.

`tf.train.Checkpoint.restore` walks the whole object graph each time, which costs far more than the
reading. The keys do not change between two checkpoints of one run, so they are learned once
(`evaluators.variables`).
"""

import sys

import tensorflow as tf

from evaluators import misfit
from evaluators.protocol import Failure
from evaluators.soundness import check_finite_variables
from evaluators.variables import READ_ERRORS, SLOT, VALUE, restore, unreadable

# Where train_loop's Checkpoint(step, model, optimizer) keeps the moving averages.
AVERAGE = SLOT + "optimizer/average"
STEP_KEY = "step" + VALUE


def read(prefix, variables, averaged, classes=None):
    """Reads the global step and the value of each variable.

    Args:
        prefix: the checkpoint's prefix.
        variables: {key: variable} the checkpoint must hold, no more and no less.
        averaged: keys whose moving average is to be returned.
        classes: how many pipeline.config says, None where that is not known.

    Returns:
        {key: value}, the step as an int64 under STEP_KEY.

    Raises:
        Failure: it cannot be read, its variables are not the model's, or one is not finite.
    """
    expected = _expected(variables, averaged)
    try:
        _check(prefix, expected, averaged, classes)
        tensors = restore(prefix, {key: kind for key, (_, kind) in expected.items()})
    except READ_ERRORS as error:
        raise unreadable(prefix, error) from error
    values = {key: tensor.numpy() for key, tensor in tensors.items()}
    check_finite_variables(values)
    for key in averaged:
        # The OD API swaps the two in place by sums and differences, so what it evaluates is
        # (average + value) - value, rounded twice.
        values[key] = (values.pop(_average_key(key)) + values[key]) - values[key]
    return values


def check(prefix, variables, averaged, classes=None):
    """Compares the names, shapes and types alone; no value is read. Arguments as for `read`.

    Raises:
        Failure: it cannot be read, or its variables are not the model's.
    """
    try:
        _check(prefix, _expected(variables, averaged), averaged, classes)
    except READ_ERRORS as error:
        raise unreadable(prefix, error) from error


def _expected(variables, averaged):
    """Returns {key: (shape, type)} of what a checkpoint must hold."""
    expected = {key: (list(v.shape), v.dtype) for key, v in variables.items()}
    expected[STEP_KEY] = ([], tf.int64)
    for key in averaged:
        expected[_average_key(key)] = expected[key]
    return expected


def _average_key(key):
    return key[: -len(VALUE)] + AVERAGE + VALUE


def _is_ours(key, averaged):
    if key == STEP_KEY:
        return True
    if not key.startswith("model/") or not key.endswith(VALUE):
        return False
    return SLOT not in key or (bool(averaged) and key.endswith(AVERAGE + VALUE))


def _check(prefix, expected, averaged, classes):
    reader = tf.train.load_checkpoint(prefix)
    shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    ours = {key: (list(shape), kind.name) for key, (shape, kind) in expected.items()}
    theirs = {
        key: (list(shapes[key]), types[key].name) for key in shapes if _is_ours(key, averaged)
    }
    differing = misfit.differences(ours, theirs)
    if differing:
        # All of them, for whoever reads worker.log; the message is to be read at a glance.
        print("{}: {}".format(prefix, "; ".join(differing.values())), file=sys.stderr, flush=True)
        said = misfit.explain(differing, ours, theirs, classes)
        message = "the checkpoint {}".format(said)
        raise Failure(misfit.UNMATCHED, message, permanent=True)
