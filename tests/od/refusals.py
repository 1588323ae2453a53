"""Tries to set up evaluations that must be refused: `refusals.py < REQUESTS`.

Runs in the training interpreter, where it draws val.tfrecord and label_map.pbtxt. Reads a JSON list
of start requests and prints, for each, the refusal as `[code, message, hint]`, or null where there
is none. A request with `spoil` has such records written first (`spoiled_records.py`). `records`
says that they alone are looked at, and how: "warned" asks what is warned of, "explained" for the
refusal after an error.
"""

import json
import os
import sys

ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from evaluators_package import VERSIONS  # noqa: E402, I001
import shapes  # noqa: E402
import spoiled_records  # noqa: E402
from evaluators.od_api import record_checks, records  # noqa: E402
from evaluators.od_api.evaluation import Evaluation  # noqa: E402
from evaluators.od_api.pipeline import Pipeline  # noqa: E402
from evaluators.protocol import Refusal  # noqa: E402


def attempt(request):
    """Returns the refusal of one set-up, or None; its warnings where those are asked for."""
    if "spoil" in request:
        spoiled_records.write(request["spoil"])
    try:
        if request.get("records") == "explained":
            raise records.explain(Pipeline(request), OSError())
        if request.get("records") == "warned":
            pipeline = Pipeline(request)
            record_checks.require_sound(pipeline)
            return pipeline.warnings
        Evaluation(request, VERSIONS)
    except Refusal as refusal:
        return [refusal.code, refusal.message, refusal.hint]
    return None


shapes.draw(".", "val", images=60)
json.dump([attempt(request) for request in json.load(sys.stdin)], ANSWER)
ANSWER.close()
