"""Writes an eval set of many images: `many.py FOLDER IMAGES PIXELS PIPELINE`.

Runs in the training interpreter. A few hundred images are drawn and repeated, each time under an
identity of its own, since drawing takes far longer than all else. Then it initialises the model of
PIPELINE, saves it as a checkpoint and prints its prefix as JSON.
"""

import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "od"))
import compare
import numpy as np
import shapes
import tensorflow as tf

DRAWN = 250


def write(folder, images, pixels):
    """Writes val.tfrecord and label_map.pbtxt."""
    rng = np.random.default_rng(2)
    drawn = []
    for number in range(min(images, DRAWN)):
        size = (pixels, pixels)
        example, _ = shapes.example(number, "val", b"", rng, size, number % 10 == 0, True, False)
        del example.features.feature["image/object/mask"]
        drawn.append(example)
    with tf.io.TFRecordWriter(str(folder / "val.tfrecord")) as writer:
        for number in range(images):
            example = drawn[number % len(drawn)]
            identity = example.features.feature["image/source_id"].bytes_list
            identity.value[:] = ["val-{}".format(number).encode()]
            writer.write(example.SerializeToString())
    shapes.write_label_map(folder / "label_map.pbtxt")


def main(folder, images, pixels, pipeline):
    """Prints the answer."""
    os.chdir(folder)
    write(pathlib.Path(folder), int(images), int(pixels))
    prefix = compare.initialise(pipeline, folder)
    json.dump(prefix, compare.ANSWER)
    compare.ANSWER.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
