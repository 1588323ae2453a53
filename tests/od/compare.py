"""Trains, then scores with the OD API and with ours: `compare.py FOLDER FAMILY...`.

Runs in the training interpreter, in the folder of the drawn shapes. For each family it trains a
few steps with the OD API's own `train_loop`, scores the last checkpoint with `eager_eval_loop`
and with the package `evaluators`, and prints one line of JSON.
"""

import json
import os
import pathlib
import sys
import time
import traceback

ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from evaluators_package import VERSIONS  # noqa: E402, I001

import tensorflow as tf  # noqa: E402
from evaluators import coco  # noqa: E402
from evaluators.evaluation import Evaluation  # noqa: E402
from families import FAMILIES  # noqa: E402
from object_detection import model_lib_v2  # noqa: E402
from reference_eval import reference  # noqa: E402


def train(pipeline, model_dir):
    """Trains two steps with the OD API's own loop and returns the last checkpoint."""
    model_lib_v2.train_loop(
        pipeline, model_dir, checkpoint_every_n=2, num_steps_per_iteration=2, record_summaries=False
    )
    return tf.train.latest_checkpoint(model_dir)


# Scored from another family's checkpoint, since only the evaluation differs.
SAME_MODEL = {"ssd_fpn_nothing_found": "ssd_fpn_ema"}


def compare(family, eval_index=0):
    """Returns both sides' metrics of one family, and the seconds each part took."""
    marks = [time.perf_counter()]

    def mark():
        marks.append(time.perf_counter())

    path = pathlib.Path(family + ".config")
    path.write_text(FAMILIES[family])
    model_dir = pathlib.Path(SAME_MODEL.get(family, family))
    prefix = tf.train.latest_checkpoint(str(model_dir)) or train(str(path), str(model_dir))
    tf.keras.backend.clear_session()
    mark()
    expected = reference(str(path), [prefix], eval_index)["metrics"][prefix]
    tf.keras.backend.clear_session()
    mark()
    request = {"pipeline_config": str(path), "eval_input": eval_index}
    evaluation = Evaluation(request, VERSIONS)
    mark()
    results = []
    for backend in backends():
        evaluation._sets.backend = backend
        results.append(evaluation.evaluate(prefix, lambda done, total: None))
    mark()
    tf.keras.backend.clear_session()
    return {
        "family": family,
        "eval_index": eval_index,
        "reference": expected,
        "ready": evaluation.describe(),
        "backends": backends(),
        "results": results,
        "seconds": [round(b - a, 1) for a, b in zip(marks, marks[1:])],
    }


def backends():
    """Returns the COCO backends importable here, the reference first and again at the end."""
    others = [name for name in coco.BACKENDS[:-1] if coco._importable(name)]
    return ["pycocotools", *others, "pycocotools"]


def main():
    """Prints a line a family; `NAME:1` scores the second eval input."""
    os.chdir(sys.argv[1])
    for argument in sys.argv[2:]:
        name, _, index = argument.partition(":")
        try:
            line = compare(name, int(index or 0))
        except Exception as error:
            line = {"family": name, "error": repr(error), "detail": traceback.format_exc()}
        ANSWER.write(json.dumps(line) + "\n")
        ANSWER.flush()


if __name__ == "__main__":
    main()
