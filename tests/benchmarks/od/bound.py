"""Our evaluation against its bound: `bound.py PIPELINE PREFIX ROUNDS`.

Runs in the training interpreter. The bound is what no evaluator with this model and these metrics
can go below: the traced forward pass over the eval set held in memory, and the computation of the
metrics from detections already collected. Prints JSON: seconds of each, round by round.
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
from evaluators.clock import Clock  # noqa: E402
from evaluators.od_api.evaluation import Evaluation  # noqa: E402


def silent(*numbers):
    """Takes progress and says nothing."""


def seconds(work):
    """Returns how long the work took."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(pipeline, prefix, rounds):
    """Prints the answer; the first round warms up and is left out."""
    evaluation = Evaluation({"pipeline_config": pipeline}, VERSIONS)
    evaluation.evaluate(prefix, silent)
    collected = evaluation._run((), Clock(), silent, [])
    groups = list(evaluation._batching.groups(evaluation._eval_set))

    def forward():
        evaluation._passes.map(evaluation._batching.forward, groups)

    answer = {"ours": [], "forward": [], "metrics": []}
    for _ in range(int(rounds) + 1):
        answer["ours"].append(seconds(lambda: evaluation.evaluate(prefix, silent)))
        answer["forward"].append(seconds(forward))
        answer["metrics"].append(seconds(collected.compute))
    answer = {name: values[1:] for name, values in answer.items()}
    answer["size"] = evaluation._batching.size
    answer["backend"] = evaluation.describe().details["coco_backend"]
    json.dump(answer, ANSWER)
    ANSWER.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
