"""Copies a checkpoint with something wrong in it: `spoiled.py PREFIX FOLDER`.

Runs in the training interpreter. FOLDER gets `nan`, with one number of one kernel not a number,
and `classes`, with the heads of a model that knows one class more.
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf

HEADS = "class_predictions_with_background"


def write(prefix, tensors):
    """Writes the tensors as a checkpoint."""
    keys = sorted(tensors)
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=keys,
        shape_and_slices=[""] * len(keys),
        tensors=[tensors[key] for key in keys],
    )


def main(prefix, folder):
    """Writes the copies."""
    reader = tf.train.load_checkpoint(prefix)
    tensors = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
    heads = [key for key in tensors if key.startswith("model/") and HEADS in key]
    kernel = next(key for key in sorted(heads) if "/kernel/" in key)
    spoiled = tensors[kernel].copy()
    spoiled.flat[0] = np.nan
    write(str(pathlib.Path(folder, "nan")), dict(tensors, **{kernel: spoiled}))
    # Three numbers an anchor become four: background and classes.
    wider = {key: np.repeat(tensors[key], 4, axis=-1)[..., ::3] for key in heads}
    write(str(pathlib.Path(folder, "classes")), dict(tensors, **wider))


if __name__ == "__main__":
    main(*sys.argv[1:])
