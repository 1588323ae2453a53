"""Writes the average of several checkpoints of one run as a checkpoint that its trainer takes.

Each number of the model is the mean of what the checkpoints have there: weights, moving mean and
variance of batch normalisation, and the optimizer's slots, among which are the moving averages of
the weights where those are kept (`use_moving_averages` of the OD API, `ema` of Model Garden),
which are what is evaluated then. The rest, the step, counters and the object graph by which
TensorFlow finds its way, is that of the newest: so the file has every key of a checkpoint of the
trainer's, and whatever reads those reads it.
"""

import numpy as np
import tensorflow as tf

from evaluators import misfit
from evaluators.protocol import Failure
from evaluators.variables import READ_ERRORS, is_trained, unreadable


def write(prefixes, prefix):
    """Writes the average of the checkpoints at `prefixes`, the newest last, to `prefix`.

    Sums are taken in float64, and rounded once, to each variable's own type.

    Returns:
        how many variables were averaged.

    Raises:
        Failure: one cannot be read, they have not the same variables, or the average cannot be
            written.
    """
    try:
        readers = [tf.train.load_checkpoint(one) for one in prefixes]
        _require_equal(prefixes, readers)
        types = readers[-1].get_variable_to_dtype_map()
        averaged = [key for key in sorted(types) if types[key].is_floating and is_trained(key)]
        values = {key: _mean(readers, key, types[key]) for key in averaged}
        others = sorted(types.keys() - values.keys())
        values.update((key, _as_tensor(readers[-1].get_tensor(key), types[key])) for key in others)
    except READ_ERRORS as error:
        raise unreadable(", ".join(prefixes), error) from error
    if not averaged:
        text = "the checkpoints ({}) hold no variable of a model"
        raise Failure("nothing_to_average", text.format(", ".join(prefixes)), permanent=True)
    _save(prefix, values)
    return len(averaged)


def replace(prefix, changed):
    """Writes an average anew, with other values of some variables.

    Args:
        prefix: of the average.
        changed: {key: value}.

    Raises:
        Failure: it cannot be read or written.
    """
    try:
        reader = tf.train.load_checkpoint(prefix)
        types = reader.get_variable_to_dtype_map()
        values = {
            key: _as_tensor(changed[key] if key in changed else reader.get_tensor(key), kind)
            for key, kind in sorted(types.items())
        }
    except READ_ERRORS as error:
        raise unreadable(prefix, error) from error
    _save(prefix, values)


def _save(prefix, values):
    try:
        with tf.device("/CPU:0"):
            tf.raw_ops.SaveV2(
                prefix=prefix,
                tensor_names=list(values),
                shape_and_slices=[""] * len(values),
                tensors=list(values.values()),
            )
    except (tf.errors.OpError, OSError) as error:
        text = "the average ({}) cannot be written: {}".format(prefix, error)
        raise Failure("cannot_write", text, permanent=False) from error


def _mean(readers, key, kind):
    total = np.zeros((), np.float64)
    for reader in readers:
        total = total + reader.get_tensor(key).astype(np.float64)
    return _as_tensor(total / len(readers), kind)


def _as_tensor(value, kind):
    # Rounded by NumPy: TensorFlow's cast makes what is too small to be a normal number a zero, as
    # the momentum of a unit becomes that had no gradient for a while.
    rounded = np.asarray(value).astype(kind.as_numpy_dtype) if kind.is_floating else value
    with tf.device("/CPU:0"):
        return tf.constant(rounded, kind)


def _require_equal(prefixes, readers):
    """Refuses checkpoints of which one has other variables than the newest."""
    ours = _variables(readers[-1])
    for prefix, reader in zip(prefixes, readers[:-1]):
        theirs = _variables(reader)
        differing = misfit.differences(ours, theirs, "the newest of them")
        if differing:
            text = "{} and {} are not of one model: {}{}"
            said = list(differing.values())
            more = " and {} more".format(len(said) - 3) if len(said) > 3 else ""
            raise Failure(
                "not_one_model",
                text.format(_name(prefixes[-1]), _name(prefix), "; ".join(said[:3]), more),
                permanent=True,
            )


def _variables(reader):
    shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    return {
        key: (list(shapes[key]), types[key].name)
        for key in shapes
        if types[key] != tf.string  # the object graph, whose text may differ
    }


def _name(prefix):
    return str(prefix).replace("\\", "/").rsplit("/", 1)[-1]
