"""Asks doctor's far side about several pipelines in one process: `doctor_cases.py < REQUESTS`.

Runs in the training interpreter, where it draws val.tfrecord, train.tfrecord and label_map.pbtxt.
Reads a JSON list of requests and prints, for each, its facts and findings. One with `save` only has
its model written there, untrained, as a trainer saves it. A request with `spoil` has such records
written first (`spoiled_records.py`). Of one with `kept` the records alone are looked at, and the
answer has how many of their boxes count: for the OD API, and for the tally.
"""

import json
import os
import sys

REQUESTS = json.load(sys.stdin)
ANSWER = os.fdopen(os.dup(1), "w")

import evaluators_package  # noqa: E402, F401, I001
import shapes  # noqa: E402
import spoiled_records  # noqa: E402
import tensorflow as tf  # noqa: E402
from evaluators.od_api import dataset, doctor, model, pipeline, record_checks  # noqa: E402


class Heard:
    """What one request was answered with."""

    def __init__(self):
        self.facts = {}
        self.findings = []

    def fact(self, name, value):
        self.facts[name] = value

    def begin(self, text):
        pass

    def progress(self, count):
        pass

    def say(self, check, severity, message, remedy=None):
        self.findings.append([check, severity, message, remedy])


def kept(request, heard):
    """Returns how many boxes of each class are kept: by the OD API, and by the tally."""
    asked = pipeline.Pipeline(request)
    found, tally, _, _ = record_checks.examine(asked)
    for finding in found:
        heard.say(finding.check, finding.severity, finding.message, finding.remedy)
    ours = {str(label): number for label, number in sorted(tally.classes.items())}
    return [spoiled_records.kept(asked.eval_input), ours]


def save(request):
    """Writes the model of a pipeline as a checkpoint."""
    asked = pipeline.Pipeline(request)
    built = model.Model(asked)
    built.build(dataset.first_batch(asked, built.network))
    step = tf.Variable(100, dtype=tf.int64)
    tf.train.Checkpoint(step=step, model=built.network).write(request["save"])


shapes.draw_all(".", {"val": {"images": 60}, "train": {"images": 4, "seed": 2}})
answers = []
for request in REQUESTS:
    if "spoil" in request:
        spoiled_records.write(request["spoil"])
    heard = Heard()
    answer = {"facts": heard.facts, "findings": heard.findings}
    if "save" in request:
        save(request)
    elif request.get("kept"):
        answer["kept"] = kept(request, heard)
    else:
        doctor.examine(request, heard)
    answers.append(answer)
json.dump(answers, ANSWER)
ANSWER.close()
