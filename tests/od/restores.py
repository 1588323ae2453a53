"""Whether a checkpoint reaches a model whole and unchanged, or not at all."""

import pathlib
import tempfile

import numpy as np
import tensorflow as tf
from evaluators.od_api.checkpoints import AVERAGE, Checkpoints
from evaluators.protocol import Failure
from evaluators.variables import VALUE

import spoiled

SHAPES = {"a": [3, 3, 8, 16], "b": [16], "c": [], "count": [2]}


class Tree(tf.Module):
    """Variables in a tree of their own, as a checkpoint has them."""


def model_of(generator, dtypes):
    """Returns a tree of variables with values drawn at random."""
    model = Tree()
    for name, shape in SHAPES.items():
        value = (100 * generator.normal(size=shape)).astype(dtypes.get(name, "float32"))
        setattr(model, name, tf.Variable(value))
    return model


def written(model, folder, name, averages=None):
    """Writes a checkpoint as the OD API's trainer does; returns its prefix."""
    step = tf.Variable(7, dtype=tf.int64)
    tf.train.Checkpoint(step=step, model=model).write(str(folder / "plain"))
    reader = tf.train.load_checkpoint(str(folder / "plain"))
    tensors = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
    tensors.pop("_CHECKPOINTABLE_OBJECT_GRAPH")
    for key, value in (averages or {}).items():
        tensors[key[: -len(VALUE)] + AVERAGE + VALUE] = value
    prefix = str(folder / name)
    spoiled.write(prefix, tensors)
    return prefix


def values_of(model):
    """Returns the bytes of each variable."""
    return {name: getattr(model, name).numpy().tobytes() for name in SHAPES}


def restores():
    """Returns what became of each attempt."""
    generator = np.random.default_rng(3)
    dtypes = {"count": "int64"}
    source, target = (model_of(generator, dtypes) for _ in range(2))
    variables = {"model/" + name + VALUE: getattr(target, name) for name in SHAPES}
    averaged = [key for key, v in variables.items() if v.dtype.is_floating]
    sums = {k: (9 * generator.normal(size=variables[k].shape)).astype("float32") for k in averaged}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        sound = written(source, folder, "sound")
        plain = Checkpoints(variables, [])
        found = {"step": plain.restore(sound), "equal": values_of(source) == values_of(target)}
        bad = model_of(generator, dtypes)
        kernel = bad.a.numpy()
        kernel.flat[5], before = np.inf, values_of(target)
        bad.a.assign(kernel)
        bad.c.assign(np.nan)
        try:
            plain.restore(written(bad, folder, "bad"))
        except Failure as failure:
            found["failure"] = [failure.code, failure.message]
        found["kept"] = values_of(target) == before
        Checkpoints(variables, averaged).restore(written(source, folder, "averages", sums))
    found["averages"] = [
        variables[key].numpy().tobytes() == twice_rounded(average, getattr(source, key[6]))
        for key, average in sums.items()
    ]
    return found


def twice_rounded(average, variable):
    """Returns the bytes of what the OD API evaluates where it has moving averages."""
    value = variable.numpy()
    return np.asarray((average + value) - value).tobytes()
