"""Averages numbers too small to be normal ones: `tiny_average.py FOLDER` prints what comes of it.

One number of each kind of floating point, of which two checkpoints have 4 and 6 times the kind's
smallest; as JSON, how many times that the average has.
"""

import json
import pathlib
import sys

import numpy as np
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from evaluators import averages

SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}
KEY = "model/{}/.ATTRIBUTES/VARIABLE_VALUE"


def main():
    """Says what came of it."""
    folder = pathlib.Path(sys.argv[1])
    kinds = {name: getattr(tf, name).as_numpy_dtype for name in SMALLEST}
    prefixes = []
    for times in (4, 6):
        prefixes.append(str(folder / "ckpt-{}".format(times)))
        tensors = [np.array([times * SMALLEST[name]]).astype(kind) for name, kind in kinds.items()]
        names = [KEY.format(name) for name in kinds]
        tf.raw_ops.SaveV2(
            prefix=prefixes[-1], tensor_names=names, shape_and_slices=[""] * 4, tensors=tensors
        )
    averages.write(prefixes, str(folder / "average"))
    reader = tf.train.load_checkpoint(str(folder / "average"))
    found = {name: reader.get_tensor(KEY.format(name)).astype(np.float64) for name in kinds}
    print(json.dumps({name: value.item() / SMALLEST[name] for name, value in found.items()}))


if __name__ == "__main__":
    main()
