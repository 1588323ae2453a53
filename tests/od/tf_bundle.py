"""Write checkpoints with TensorFlow, and say what TensorFlow reads in them and in given ones.

    tf_bundle.py FOLDER PREFIX...

Saves in FOLDER: `objects/ckpt-1` and `ckpt-2` (tf.train.CheckpointManager), `sliced` (partitioned
variables in two shards), `variant`, and `wide` (so many tensors that the index has several blocks).
Prints JSON: `variables`, how many the model of `objects/ckpt-2` has; `values`, prefix by prefix
{key: [dtype, shape, bytes in hex]}, of `objects/ckpt-2`, `sliced` and the given ones; `restored`,
what tf.train.Checkpoint restores from the given ones.
"""

import json
import os
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import object_detection  # first: it decides which Keras tf.keras is, as in a trainer
import tensorflow as tf

assert object_detection


class Things(tf.Module):
    """One variable of each kind that a bundle stores differently."""

    def __init__(self):
        super().__init__()
        self.half = tf.Variable(np.arange(6).reshape(2, 3), dtype=tf.float16)
        self.brain = tf.Variable(tf.cast(np.arange(5), tf.bfloat16))
        self.double = tf.Variable(np.linspace(0, 1, 7))
        self.scalar = tf.Variable(-7, dtype=tf.int64)
        self.small = tf.Variable([-1, 2], dtype=tf.int8)
        self.boolean = tf.Variable([True, False, True])
        self.text = tf.Variable([[b"a", b""], ["x" * 300, b"\0\xff"]])
        self.no_text = tf.Variable(tf.zeros((0,), tf.string))
        self.empty = tf.Variable(np.zeros((0, 3), np.float32))
        self.complex = tf.Variable(np.full(3, 1 + 2j, np.complex64))
        self.unsigned = tf.Variable([3], dtype=tf.uint32)


def write_objects(folder):
    """Save what model_main_tf2 saves: first without the model, then with it, after 12 steps."""
    step = tf.Variable(0, dtype=tf.int64)
    model = tf.keras.Sequential([tf.keras.layers.Dense(3), tf.keras.layers.BatchNormalization()])
    # TensorFlow 2.8 has no other ones yet.
    optimizers = getattr(tf.keras.optimizers, "legacy", tf.keras.optimizers)
    optimizer = optimizers.SGD(0.1, momentum=0.9)
    saved = tf.train.Checkpoint(step=step, model=model, optimizer=optimizer)
    manager = tf.train.CheckpointManager(saved, folder, max_to_keep=7)
    manager.save()
    model(tf.zeros((1, 2)))
    pairs = [(tf.ones_like(variable), variable) for variable in model.trainable_variables]
    optimizer.apply_gradients(pairs)
    step.assign(12)
    saved.things = Things()
    manager.save()
    return len(model.variables)


def write(folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    variables = write_objects(str(folder / "objects"))
    ops = tf.raw_ops
    table = np.arange(24, dtype=np.float32).reshape(4, 6)
    row = np.arange(300, dtype=np.float64)
    parts = [str(folder / ("part-" + half)) for half in "ab"]
    ops.SaveV2(
        prefix=parts[0],
        tensor_names=["table", "whole", "row"],
        shape_and_slices=["4 6 0,2:-", "", "300 0,100"],
        tensors=[table[:2], np.int64(3), row[:100]],
    )
    ops.SaveV2(
        prefix=parts[1],
        tensor_names=["table", "other", "row"],
        shape_and_slices=["4 6 2,2:-", "", "300 100,200"],
        tensors=[table[2:], np.float16(3), row[100:]],
    )
    ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(folder / "sliced"))
    handle = ops.EmptyTensorList(element_shape=[-1], max_num_elements=-1, element_dtype=tf.float32)
    handle = ops.TensorListPushBack(input_handle=handle, tensor=tf.constant([1.0, 2.0]))
    ops.SaveV2(
        prefix=str(folder / "variant"),
        tensor_names=["list"],
        shape_and_slices=[""],
        tensors=[handle],
    )
    names = [f"model/layer_{n:05d}/some/rather/long/name/kernel" for n in range(9000)]
    ops.SaveV2(
        prefix=str(folder / "wide"),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[np.float32(n) for n in range(len(names))],
    )
    return variables


def read(prefix):
    reader = tf.train.load_checkpoint(prefix)
    found = {}
    for key, shape in reader.get_variable_to_shape_map().items():
        value = reader.get_tensor(key)
        if isinstance(value, bytes):
            data = value.hex()
        elif value.dtype == object:
            data = [text.hex() for text in value.ravel()]
        else:
            data = value.tobytes().hex()
        found[key] = [tf.as_dtype(reader.get_variable_to_dtype_map()[key]).name, shape, data]
    return found


def restore(prefix):
    step = tf.Variable(-1, dtype=tf.int64)
    kernel = tf.Variable(tf.zeros((3,)))
    model = tf.Module()
    model.kernel = kernel
    status = tf.train.Checkpoint(step=step, model=model).restore(prefix)
    status.assert_existing_objects_matched()
    return {"step": int(step), "kernel": kernel.numpy().tolist()}


def main(folder, *prefixes):
    variables = write(folder)
    own = [str(Path(folder) / name) for name in ("objects/ckpt-2", "sliced")]
    answer = {
        "variables": variables,
        "values": {prefix: read(prefix) for prefix in [*own, *prefixes]},
        "restored": {prefix: restore(prefix) for prefix in prefixes},
    }
    print("ANSWER " + json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
