"""Asks doctor's far side about several pipelines in one process: `doctor_cases.py < REQUESTS`.

Runs in the training interpreter. Reads a JSON list of requests and prints, for each, its facts and
findings.
"""

import json
import os
import sys

REQUESTS = json.load(sys.stdin)
ANSWER = os.fdopen(os.dup(1), "w")

import evaluators_package  # noqa: E402, F401, I001
from evaluators import doctor  # noqa: E402


class Heard:
    """What one request was answered with."""

    def __init__(self):
        self.facts = {}
        self.findings = []

    def fact(self, name, value):
        self.facts[name] = value

    def say(self, check, severity, message, remedy=None):
        self.findings.append([check, severity, message, remedy])


answers = []
for request in REQUESTS:
    heard = Heard()
    doctor.examine(request, heard)
    answers.append({"facts": heard.facts, "findings": heard.findings})
json.dump(answers, ANSWER)
ANSWER.close()
