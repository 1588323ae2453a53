"""Copies a checkpoint under other steps: `copies.py PREFIX FOLDER COUNT`.

Runs in the training interpreter. FOLDER gets ckpt-1 to ckpt-COUNT, every tensor as in PREFIX but
the global step: each is another checkpoint to whoever tells them apart by their bytes.
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf

STEP = "step/.ATTRIBUTES/VARIABLE_VALUE"


def main(prefix, folder, count):
    """Writes the copies."""
    reader = tf.train.load_checkpoint(prefix)
    tensors = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
    for number in range(1, int(count) + 1):
        tensors[STEP] = np.int64(1000 + number)
        tf.raw_ops.SaveV2(
            prefix=str(pathlib.Path(folder, "part")),
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=list(tensors.values()),
        )
        tf.raw_ops.MergeV2Checkpoints(
            checkpoint_prefixes=[str(pathlib.Path(folder, "part"))],
            destination_prefix=str(pathlib.Path(folder, "ckpt-{}".format(number))),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
