"""The evaluator protocol: one schema, which both sides, the stub and the example speak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_trainer import Manager, model_tensors
from schema_judge import ROOT, SCHEMA, complaints
from watching import STUB, Watcher

from evaluators import protocol as far
from watcher.evaluation import messages as near
from watcher.evaluation import wire
from watcher.evaluation.messages import PROTOCOL, Evaluate, SnapshotFiles, Start, Stop

EXAMPLE = ROOT / "evaluators" / "example_worker.py"
PAGE = ROOT / "docs" / "reference" / "protocol.md"
TOKEN = "a-token"
# What one side may restrict further than the other, and what is there for people.
_LOOSE = {"contentEncoding", "title", "description", "default", "minLength", "maxLength", "minimum"}
_LOOSE |= {"exclusiveMaximum", "maxItems", "pattern", "propertyNames"}


def test_the_checked_in_schema_is_that_of_the_structs():
    rendered = subprocess.run(
        [sys.executable, "-c", "import protocol_schema as s; print(s.render(), end='')"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "deploy")},
    )
    assert rendered.returncode == 0, rendered.stderr
    assert rendered.stdout == SCHEMA.read_text(), "run deploy/protocol_schema.py"


def shape(schema: Any, name: str) -> Any:
    """A schema without what the sides may say differently: fields, their types, what must be."""
    if isinstance(schema, list):
        return [shape(one, name) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("$ref", "").endswith("/SnapshotFiles"):
        return {"type": "object"}  # which the far side reads as it is
    if "enum" in schema:
        return {"type": "string"}
    found = {key: shape(value, name) for key, value in schema.items() if key not in _LOOSE}
    if name and "properties" in found:
        found["properties"].pop("type", None)
        found["required"] = sorted(set(found.get("required", [])) - {"type"})
    return found


def near_types() -> list[type]:
    messages = [*typing.get_args(near.Request | near.Reply)]
    return [
        *messages,
        near.DeclaredMetric,
        near.Category,
        near.Capabilities,
        near.CategoryMetric,
        near.Replicated,
    ]


@pytest.mark.parametrize("struct", [*near_types(), near.Artefact], ids=lambda one: one.__name__)
def test_both_sides_have_the_same_messages_with_the_same_fields(struct: type):
    name = struct.__name__
    plain = getattr(far, name)
    if issubclass(plain, far.Message):
        assert struct.__struct_config__.tag == plain.TYPE  # type: ignore[attr-defined]
    ours, theirs = (msgspec.json.schema_components([side])[1][name] for side in (struct, plain))
    assert shape(theirs, name) == shape(ours, name)
    assert far.PROTOCOL == PROTOCOL == 2


def test_what_the_watcher_sends_is_what_the_worker_reads_whatever_is_in_a_path():
    start = Start(protocol=PROTOCOL, kind="od-api", options={"pipeline_config": "a\udce9.config"})
    start = msgspec.structs.replace(start, snapshot=SnapshotFiles("/f", {"/f/a": "a"}))
    requests = [start, Evaluate(id=TOKEN, prefix="/p/ckpt-1"), near.Cancel(TOKEN), Stop()]
    lines = [wire.write_request(request) for request in requests]
    for request, line in zip(requests, lines, strict=True):
        read = far.read_request(line)
        assert vars(read) == {k: v for k, v in msgspec.to_builtins(request).items() if k != "type"}
        assert type(read).__name__ == type(request).__name__
    assert complaints(json.loads(line) for line in lines) == []


def talk(*command: object, requests: list[msgspec.Struct], **variables: str) -> list[Any]:
    """What a worker says until it has answered all of these requests, or refused to."""
    worker = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **variables},
    )
    with worker:
        assert worker.stdin and worker.stdout
        for request in requests:
            worker.stdin.write(wire.write_request(request))
        worker.stdin.flush()
        said: list[Any] = []
        left = len(requests)
        while left and (not said or said[-1]["type"] != "error"):
            said.append(json.loads(worker.stdout.readline()))
            left += said[-1].get("replicates_follow", False)
            left -= said[-1]["type"] in ("ready", "result", "replicates", "failed")
        worker.stdin.close()
    return said


def started(tmp_path: Path, **fields: Any) -> Start:
    config = tmp_path / "pipeline.config"
    config.write_text("ckpt-1 0.25\nckpt-3 0.75\n")
    options = {"pipeline_config": str(config), "metric_plugins": []}
    said = {"kind": "od-api", "options": options, "artefacts_dir": str(tmp_path), **fields}
    return Start(protocol=PROTOCOL, **said)


@pytest.mark.parametrize("worker", [STUB, EXAMPLE], ids=["the stub", "the example"])
def test_the_messages_of_a_worker_are_those_of_the_schema_and_of_the_structs(
    worker: Path, tmp_path: Path
):
    asked = [Evaluate(str(number), f"/p/ckpt-{number}") for number in (1, 2)]
    requests = [started(tmp_path), *asked]
    pictures = tmp_path / "drawn"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(b"a picture")
    steer = {
        "STUB_NAN": "ckpt-2",
        "STUB_REPLICATES": '{"ckpt-1": [0.25, 0.5]}',
        "STUB_PICTURES": str(pictures),
        "STUB_PHASES": '[["one", 0]]',
    }
    said = talk(sys.executable, worker, requests=requests, **steer)
    kinds = [message["type"] for message in said if message["type"] not in ("phase", "free")]
    drawn = ["replicates"] * (worker == STUB)
    kinds = [kind for kind in kinds if kind != "progress"]
    assert kinds == ["hello", "ready", "result", *drawn, "failed"]
    assert complaints(said) == []
    for message in said:
        read = wire.read_reply(json.dumps(message).encode())
        assert not isinstance(read, wire.WrongResult), read


def test_the_runtime_of_all_kinds_speaks_as_the_schema_says(tmp_path: Path):
    """What it says without TensorFlow; the rest is held to the schema where that is at hand."""
    worker = ROOT / "evaluators" / "worker.py"
    said = talk(sys.executable, worker, requests=[started(tmp_path, kind="of-later")])
    assert [(one["type"], one["code"]) for one in said] == [("error", "unsupported")]
    assert "kind (of-later) is not one of od-api" in said[0]["message"]
    said += talk(sys.executable, worker, requests=[started(tmp_path)])
    assert [one["type"] for one in said[1:]] == ["phase", "error"]
    said += talk(sys.executable, worker, requests=[near.Evaluate("1", "p")])
    assert "speaks protocol 2" in said[-1]["message"] and said[-1]["code"] == "protocol"
    assert complaints(said) == []


def test_a_worker_of_an_earlier_protocol_is_refused_by_its_number(watcher: Watcher):
    assert watcher.run(STUB_PROTOCOL="1") == 1
    assert "the worker speaks protocol 1, this watcher 2" in watcher.log.read_text()


def test_a_watcher_of_an_earlier_protocol_is_refused_by_its_number(tmp_path: Path):
    earlier = msgspec.structs.replace(started(tmp_path), protocol=1)
    for worker in (ROOT / "evaluators" / "worker.py", EXAMPLE):
        (said,) = talk(sys.executable, worker, requests=[earlier])
        assert (said["type"], said["code"]) == ("error", "protocol")
        assert "this worker speaks protocol 2" in said["message"]


def test_the_example_worker_does_a_whole_run(watcher: Watcher):
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for number in range(1, 4):
        manager.save(100 * number, model_tensors(1000, number))
    watcher.pipeline.write_text("ckpt-1 0.25\nckpt-3 0.75\n")
    assert watcher.run("--python", EXAMPLE, "--metric", "score", "--mode", "max") == 0
    assert watcher.states() == {"ckpt-1": "scored", "ckpt-2": "failed", "ckpt-3": "scored"}
    assert watcher.leaderboard() == ["ckpt-3", "ckpt-1"]
    reasons = watcher.query("SELECT reason FROM history WHERE checkpoint = 'ckpt-2'")
    assert reasons == [{"reason": "no_score: ckpt-2 has no line"}]
    watcher.pipeline.write_text("ckpt-1 high\n")
    assert watcher.run("--python", EXAMPLE, "--metric", "score", "--mode", "max") == 1
    assert "could not convert string to float: 'high'" in watcher.log.read_text()


def test_a_wrong_result_fails_its_checkpoint_alone_and_its_worker_lives_on(
    watcher: Watcher, tmp_path: Path
):
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for number in range(1, 4):
        manager.save(100 * number, model_tensors(1000, number))
    starts = tmp_path / "starts"
    assert watcher.run(STUB_WRONG="ckpt-2", STUB_STARTS=starts) == 0
    assert watcher.states() == {"ckpt-1": "scored", "ckpt-2": "failed", "ckpt-3": "scored"}
    reasons = watcher.query("SELECT reason, attempts FROM checkpoints WHERE name = 'ckpt-2'")
    told = "its answer cannot be recorded: metrics['DetectionBoxes_Precision/mAP'] ('high'):"
    assert reasons[0]["reason"].startswith(told) and reasons[0]["attempts"] == 1
    assert len(starts.read_text().split()) == 1


def test_the_page_shows_the_example_and_names_every_field_of_every_message():
    page = PAGE.read_text()
    assert f"```python\n{EXAMPLE.read_text()}```" in page
    assert len(EXAMPLE.read_text().splitlines()) <= 60
    for struct in [*near_types(), near.Artefact, SnapshotFiles]:
        fields = [field.encode_name for field in msgspec.structs.fields(struct)]
        assert [name for name in fields if f"`{name}`" not in page] == [], struct.__name__
