"""Starts evaluations that cannot work or leave something out: `garden_cases.py < CASES`.

CASES is JSON, a list of options of the kind `model-garden`. Prints a JSON list of an object for
each: `code`, `message` and `hint` of its refusal, or `images` and `warnings`. No model is built.
"""

import json
import os
import sys
import tempfile

REPLIES = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import importlib.util  # noqa: E402
import pathlib  # noqa: E402

EVALUATORS = pathlib.Path(__file__).resolve().parent.parent.parent / "evaluators"


def load():
    """Makes the package `evaluators` importable, and nothing of the Object Detection API."""
    spec = importlib.util.spec_from_file_location(
        "evaluators", EVALUATORS / "__init__.py", submodule_search_locations=[str(EVALUATORS)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["evaluators"] = package
    spec.loader.exec_module(package)
    sys.modules["object_detection"] = None  # whoever imports it raises
    from evaluators.model_garden import libraries

    return libraries.import_libraries()


def start(options, versions):
    """Returns what becomes of one case."""
    from evaluators import fingerprint
    from evaluators.model_garden.data import EvalSet
    from evaluators.model_garden.experiment import Experiment
    from evaluators.model_garden.identity import identity
    from evaluators.model_garden.trainer import Model
    from evaluators.protocol import Refusal
    from evaluators.snapshot import Snapshot

    try:
        experiment = Experiment(options, Snapshot(), False)
        parts = identity(experiment, versions)
        model = Model(experiment, tempfile.mkdtemp())
        found = EvalSet(experiment, model.task)
    except Refusal as refusal:
        return {"code": refusal.code, "message": refusal.message, "hint": refusal.hint}
    return {
        "images": found.images,
        "warnings": experiment.warnings,
        "fingerprint": fingerprint.digest(parts),
    }


def main():
    """Answers all cases."""
    versions = load()
    json.dump([start(options, versions) for options in json.load(sys.stdin)], REPLIES)
    REPLIES.close()


if __name__ == "__main__":
    main()
