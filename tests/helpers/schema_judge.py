"""The checked-in schema of the evaluator protocol, and a judge of messages by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKS = ROOT / "build" / "deploy-checks"
SCHEMA = ROOT / "docs" / "reference" / "evaluator-protocol.schema.json"
# With the jsonschema of the linters, which is no dependency of ours.
JUDGE = """
import json, sys
from jsonschema import Draft202012Validator
schema, messages = json.load(sys.stdin)
for message in messages:
    # By its own type, so that a complaint names the field and not every type there is.
    name = message["type"].title().replace("_", "")
    own = {"$ref": "#/$defs/" + name, "$defs": schema["$defs"]}
    for error in Draft202012Validator(own).iter_errors(message):
        print(message["type"], error.json_path, error.message)
"""


def complaints(messages: Iterable[dict[str, Any]]) -> list[str]:
    """What is wrong with messages by the schema, whatever either side's code says."""
    if not (CHECKS / ".installed").exists():
        pytest.fail(f"no jsonschema at {CHECKS}: run `make test`, which installs it")
    done = subprocess.run(
        [sys.executable, "-c", JUDGE],
        input=json.dumps([json.loads(SCHEMA.read_text()), list(messages)]),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKS)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
