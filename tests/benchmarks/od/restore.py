"""Restoring against reading: `restore.py PIPELINE FOLDER ROUNDS`.

Runs in the training interpreter. Builds the model, writes checkpoints of it without an optimizer
into FOLDER, and restores them in turn. Prints JSON: the bytes of one, and the seconds of a restore
and of a read of all its bytes, round by round. The files come from the page cache in both.
"""

import json
import os
import pathlib
import sys
import time

ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "od"))
from evaluators_package import VERSIONS  # noqa: E402, I001
from evaluators.od_api.evaluation import Evaluation  # noqa: E402

import tensorflow as tf  # noqa: E402


def read(prefix):
    """Reads every byte of a checkpoint and returns how many there are."""
    path = pathlib.Path(prefix)
    return sum(len(part.read_bytes()) for part in path.parent.glob(path.name + ".*"))


def seconds(work, prefix):
    """Returns how long the work took."""
    began = time.perf_counter()
    work(prefix)
    return time.perf_counter() - began


def main(pipeline, folder, rounds):
    """Prints the answer; the first round warms up and is left out."""
    model = Evaluation({"pipeline_config": pipeline}, VERSIONS)._model
    step = tf.Variable(1, dtype=tf.int64)
    checkpoint = tf.train.Checkpoint(step=step, model=model.network)
    prefixes = []
    for number in range(2):
        step.assign(number)
        prefixes.append(checkpoint.write(str(pathlib.Path(folder, "ckpt-{}".format(number)))))
    answer = {"bytes": read(prefixes[0]), "restore": [], "read": []}
    for number in range(int(rounds) + 1):
        prefix = prefixes[number % 2]
        answer["restore"].append(seconds(model.restore, prefix))
        answer["read"].append(seconds(read, prefix))
    answer["restore"], answer["read"] = answer["restore"][1:], answer["read"][1:]
    json.dump(answer, ANSWER)
    ANSWER.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
