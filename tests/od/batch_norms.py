"""What becomes of batch normalisation that is computed anew, of a model that trains 2 at a time."""

import copy
import types

import numpy as np
import tensorflow as tf
from evaluators.od_api import batch_norm
from evaluators.protocol import Failure

IMAGES = 4


def recomputed(evaluation, prefix):
    """Computes it twice from the weights of a checkpoint.

    Returns:
        what it says of it (`told`), whether both are `equal`, and the keys.
    """
    first, told = evaluation.recompute_batch_norm(prefix, IMAGES, _ignore)
    second, _ = evaluation.recompute_batch_norm(prefix, IMAGES, _ignore)
    equal = all(np.array_equal(first[key], second[key]) for key in first)
    kept = tf.train.load_checkpoint(prefix)
    moved = sum(not np.allclose(first[key], kept.get_tensor(key)) for key in first)
    return {"told": vars(told), "equal": equal, "keys": sorted(first), "moved": moved}


def odd(evaluation, prefix):
    """Returns what is said of a model that has its layers frozen, or has none, or no memory."""
    network, configs = evaluation._model.network, copy.deepcopy(evaluation._pipeline.configs)
    layers = batch_norm._layers(evaluation._model)
    configs["train_config"].batch_size = 8
    empty = types.SimpleNamespace(network=tf.Module(), variables={})
    found = {"none": _tried(lambda: batch_norm.recompute(empty, configs, 8, _ignore))}
    predict = network.predict
    for room in (3, 1):

        def small(images, shapes, room=room, **others):
            if images.shape[0] > room:
                raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
            return predict(images, shapes, **others)

        network.predict = small
        found["room for {}".format(room)] = _tried(
            lambda: batch_norm.recompute(evaluation._model, configs, 8, _ignore)
        )
    network.predict = predict
    for name, frozen in (("part", layers[:5]), ("all", layers)):
        for layer in frozen:
            layer._training = False  # as freeze_batchnorm does
        found[name] = _tried(lambda: evaluation.recompute_batch_norm(prefix, IMAGES, _ignore))
    for layer in layers:
        layer._training = None
    return found


def _tried(work):
    try:
        return vars(work()[1])
    except Failure as failure:
        return [failure.code, failure.message]


def _ignore(done, total):
    return None
