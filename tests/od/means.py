"""Says what an average holds: `means.py AVERAGE PREFIX...`, the newest last, prints it as JSON.

Of the variables those that are no mean of what the checkpoints have (`wrong`), how many are one
(`means`), how many differ from the newest (`moved`), and whether TensorFlow's object graph is
there (`graph`).
"""

import json
import sys

import numpy as np
import tensorflow as tf

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def compare(average, prefixes):
    """Returns what the program prints: read by TensorFlow, and computed by NumPy."""
    found, *readers = [tf.train.load_checkpoint(one) for one in (average, *prefixes)]
    newest = readers[-1]
    keys = set(newest.get_variable_to_shape_map())
    wrong, means, moved = sorted(keys ^ set(found.get_variable_to_shape_map())), 0, 0
    for key in sorted(keys):
        expected = newest.get_tensor(key)
        # All of float32 that is the model's or kept of it, whatever its parts are called.
        is_mean = not key.startswith("optimizer/") and np.asarray(expected).dtype == np.float32
        if is_mean:
            values = [reader.get_tensor(key).astype(np.float64) for reader in readers]
            expected = (sum(values) / len(values)).astype(np.float32)
            means += 1
            moved += not np.array_equal(expected, newest.get_tensor(key))
        if not np.array_equal(expected, found.get_tensor(key)):
            wrong.append(key)
    return {"wrong": wrong, "means": means, "moved": moved, "graph": GRAPH in keys}


if __name__ == "__main__":
    print(json.dumps(compare(sys.argv[1], sys.argv[2:])))
