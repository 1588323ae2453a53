"""od-api-today in the real training environment, whichever TensorFlow that has."""

from __future__ import annotations

import json
import subprocess

import pytest
from evaluator_client import PROGRAMS, environment

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(300)]
STATE = PROGRAMS / "today_state.py"


def answer(od_python: str, *arguments: str, **variables: str) -> dict[str, object]:
    ran = subprocess.run(
        [od_python, str(STATE), *arguments],
        capture_output=True,
        text=True,
        env=environment() | variables,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "od-api-today:" not in ran.stderr
    found: dict[str, object] = json.loads(ran.stdout)
    return found


def test_the_od_api_gets_what_is_gone_and_only_that(od_python: str) -> None:
    found = answer(od_python)
    version = found.pop("tensorflow")
    assert isinstance(version, list)
    keras_2 = "keras" if version < [2, 16] else "tf_keras"
    assert found == {
        # What is faster than protobuf's implementation in Python.
        "protobuf": found["protobuf"] if version < [2, 14] else "upb",
        "eval": "eval",
        "estimator": found["estimator"] if version < [2, 16] else "od_api_today.hooks",
        "lent estimator": found["lent estimator"] if version < [2, 16] else "builtins",
        "case": True,
        "moved": version >= [2, 14],
        "layers": keras_2,
        "resnet": keras_2,
        "keras": found["keras"] if version < [2, 16] else None,
    }
    assert version >= [2, 16] or "od_api_today" not in str(found)


def test_messages_are_those_that_their_old_files_describe(od_python: str) -> None:
    """The Python implementation of protobuf executes the files as they are."""
    built = answer(od_python, "messages")
    assert len(built) > 30
    read = answer(od_python, "messages", PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python")
    assert built == read
