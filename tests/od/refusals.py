"""Tries to set up evaluations that must be refused: `refusals.py < REQUESTS`.

Runs in the training interpreter. Reads a JSON list of start requests and prints, for each, the
refusal as `[code, message, hint]`, or null where there is none.
"""

import json
import os
import sys

ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from evaluators_package import VERSIONS  # noqa: E402, I001
from evaluators.evaluation import Evaluation  # noqa: E402
from evaluators.protocol import Refusal  # noqa: E402


def attempt(request):
    """Returns the refusal of one set-up, or None."""
    try:
        Evaluation(request, VERSIONS)
    except Refusal as refusal:
        return [refusal.code, refusal.message, refusal.hint]
    return None


json.dump([attempt(request) for request in json.load(sys.stdin)], ANSWER)
ANSWER.close()
