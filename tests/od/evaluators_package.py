"""Importing this makes the package `evaluators` importable, the way worker.py does."""

import importlib.util
import pathlib
import sys

EVALUATORS = pathlib.Path(__file__).resolve().parent.parent.parent / "evaluators"


def _load():
    spec = importlib.util.spec_from_file_location(
        "evaluators", EVALUATORS / "__init__.py", submodule_search_locations=[str(EVALUATORS)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["evaluators"] = package
    spec.loader.exec_module(package)
    from evaluators.od_api import compat

    return compat.import_libraries()


VERSIONS = _load()
