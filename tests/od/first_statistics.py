"""Says what was recomputed: `first_statistics.py RECORDS IMAGES BATCH PLAIN RECOMPUTED`.

Of two averages of the same checkpoints, one with statistics computed anew, it prints as JSON: of
the keys of either those with other values (`changed`), the statistics of batch normalisation
(`statistics`), and by how much those of the model's first layer are off from what NumPy makes of
the images and the kernel before it (`mean_off`, `variance_off`, relative).
"""

import json
import sys

import numpy as np
import tensorflow as tf
from numpy.lib.stride_tricks import sliding_window_view

FIRST = "model/_feature_extractor/classification_backbone/layer_with_weights-{}/{}"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
SIZE, STRIDE = 128, 2


def images_of(records, count):
    """Returns the first images, of the size and in the range that the network takes."""
    feature = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
    found = []
    for record in tf.data.TFRecordDataset(records).take(count):
        encoded = tf.io.parse_single_example(record, feature)["image/encoded"]
        pixels = tf.cast(tf.io.decode_image(encoded, 3, expand_animations=False), tf.float32)
        found.append(tf.compat.v1.image.resize(pixels, (SIZE, SIZE)).numpy() * (2 / 255) - 1)
    return np.stack(found).astype(np.float64)


def convolved(images, kernel):
    """Returns what a convolution with TensorFlow's padding `SAME` gives."""
    (rows, columns), total = kernel.shape[:2], kernel.shape[0] - STRIDE
    before = total // 2
    edges = [(0, 0), (before, total - before), (before, total - before), (0, 0)]
    windows = sliding_window_view(np.pad(images, edges), (rows, columns), axis=(1, 2))
    return np.einsum("nyxcij,ijco->nyxo", windows[:, ::STRIDE, ::STRIDE], kernel)


def statistics(images, kernel, batch_size):
    """Returns the means of the batches' means, and of their variances, as TensorFlow has them."""
    means, variances = [], []
    for first in range(0, len(images), batch_size):
        found = convolved(images[first : first + batch_size], kernel)
        means.append(found.mean(axis=(0, 1, 2)))
        variances.append(found.var(axis=(0, 1, 2), ddof=1))
    return np.mean(means, axis=0), np.mean(variances, axis=0)


def main():
    """Prints what there is to say."""
    records, count, batch_size, plain, recomputed = sys.argv[1:]
    before, after = (tf.train.load_checkpoint(one) for one in (plain, recomputed))
    keys = sorted(set(before.get_variable_to_shape_map()) | set(after.get_variable_to_shape_map()))
    changed = [
        key for key in keys if not np.array_equal(before.get_tensor(key), after.get_tensor(key))
    ]
    kernel = after.get_tensor(FIRST.format(0, "kernel") + VALUE).astype(np.float64)
    expected = statistics(images_of(records, int(count)), kernel, int(batch_size))
    told = {"changed": changed}
    told["statistics"] = [
        key for key in keys if key.endswith(("moving_mean" + VALUE, "moving_variance" + VALUE))
    ]
    for name, value in zip(("mean", "variance"), expected):
        found = after.get_tensor(FIRST.format(1, "moving_" + name) + VALUE)
        scale = np.sqrt(expected[1]) if name == "mean" else expected[1]
        told[name + "_off"] = float(np.abs((found - value) / scale).max())
    print(json.dumps(told))


if __name__ == "__main__":
    main()
