"""Says what an average holds, and what the OD API makes of it.

`averaged.py PIPELINE AVERAGE EXPORTED PREFIX...` prints one JSON object: of the variables those
that are no mean of what the checkpoints have (`wrong`, the newest last), how many are one
(`means`), how many differ from the newest (`moved`), and what the OD API's own loop gives
(`metrics`). Its exporter writes the model into the folder EXPORTED.
"""

import json
import os
import pathlib
import sys

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from object_detection import exporter_lib_v2
from object_detection.protos import pipeline_pb2

import reference_eval

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def compare(average, prefixes):
    """Returns `wrong`, `means` and `moved`, read by TensorFlow and computed by NumPy."""
    found, *readers = [tf.train.load_checkpoint(one) for one in (average, *prefixes)]
    newest = readers[-1]
    keys = set(newest.get_variable_to_shape_map())
    wrong, means, moved = sorted(keys ^ set(found.get_variable_to_shape_map())), 0, 0
    for key in sorted(keys):
        is_mean = key.startswith("model/") and newest.get_tensor(key).dtype == np.float32
        expected = newest.get_tensor(key)
        if is_mean:
            values = [reader.get_tensor(key).astype(np.float64) for reader in readers]
            expected = (sum(values) / len(values)).astype(np.float32)
            means += 1
            moved += not np.array_equal(expected, newest.get_tensor(key))
        if not np.array_equal(expected, found.get_tensor(key)):
            wrong.append(key)
    return {"wrong": wrong, "means": means, "moved": moved, "graph": GRAPH in keys}


def export(pipeline, average, folder):
    """Exports as `exporter_main_v2` does, from a folder whose `checkpoint` names the average."""
    source = pathlib.Path(average)
    state = 'model_checkpoint_path: "{}"\n'.format(source.name)
    (source.parent / "checkpoint").write_text(state)
    config = pipeline_pb2.TrainEvalPipelineConfig()
    text_format.Merge(pathlib.Path(pipeline).read_text(), config)
    exporter_lib_v2.export_inference_graph(
        "float_image_tensor", config, str(source.parent), str(folder)
    )


def main():
    """Keeps stdout for the answer, since pycocotools prints there."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    pipeline, average, exported, *prefixes = sys.argv[1:]
    told = compare(average, prefixes)
    told["metrics"] = reference_eval.reference(pipeline, [average])["metrics"][average]
    export(pipeline, average, exported)
    json.dump(told, answer)
    answer.close()


if __name__ == "__main__":
    sys.exit(main())
