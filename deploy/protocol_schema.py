"""The evaluator protocol's JSON Schema from the structs: `python deploy/protocol_schema.py`."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import msgspec

from watcher.evaluation import messages

FILE = Path(__file__).resolve().parents[1] / "docs/reference/evaluator-protocol.schema.json"
_ATTRIBUTE = re.compile(r"^    (\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)


def render() -> str:
    """Returns the file's content."""
    whole = msgspec.json.schema(messages.Request | messages.Reply)
    return (
        json.dumps(
            {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "title": f"checkpoint-watcher: the evaluator protocol, version {messages.PROTOCOL}",
                "description": "A line of either direction. Fields beyond these are ignored.",
                "anyOf": whole["anyOf"],
                "$defs": {name: describe(one) for name, one in sorted(whole["$defs"].items())},
            },
            indent=2,
        )
        + "\n"
    )


def describe(schema: dict[str, Any]) -> dict[str, Any]:
    """Gives each property what the docstring says of it."""
    text, _, attributes = inspect.cleandoc(schema["description"]).partition("\n\nAttributes:\n")
    for name, said in _ATTRIBUTE.findall(attributes):
        schema["properties"][name]["description"] = " ".join(said.split())
    return {**schema, "description": " ".join(text.split())}


if __name__ == "__main__":
    FILE.write_text(render())
