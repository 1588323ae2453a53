"""The worker's runtime drives any kind: what it asks of one, and what it answers in its place."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluator_client import ROOT, Client
from schema_judge import complaints

PROGRAM = ROOT / "tests" / "workers" / "plain_kind.py"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(sys.executable, tmp_path, program=PROGRAM) as client:
        yield client


def start(client: Client, **more: Any) -> dict[str, Any]:
    return client.start("none.config", kind="plain", **more)


def ask(client: Client, *prefixes: str) -> None:
    for prefix in prefixes:
        client.send(type="evaluate", id=f"of {prefix}", prefix=prefix)


def told(client: Client) -> list[tuple[str, str]]:
    """What was said of which checkpoint, in order, without the images."""
    said = [reply for reply in client.replies if "id" in reply and reply["type"] != "progress"]
    return [(reply["type"], reply["id"]) for reply in said]


def test_a_kind_is_started_in_its_order_and_declares_what_it_can(client: Client):
    ready = start(client, heartbeat_seconds=0.05)
    assert [reply["type"] for reply in client.replies] == ["phase", "hello", "phase", "ready"]
    assert ready["capabilities"] == {
        "overlap": True,
        "cancel": True,
        "jobs": ["evaluate", "part"],
    }
    assert ready["metrics"][0]["short"] == ["s"] and ready["categories"] == [{"id": 1, "name": "a"}]
    assert client.replies[1]["versions"] == {"plain": "1"}
    client.receive("heartbeat")
    ask(client, "a")
    client.receive("result")
    assert complaints(client.replies) == []


def test_the_next_one_runs_while_the_metrics_of_the_last_are_computed_and_answers_keep_order(
    client: Client,
):
    start(client)
    ask(client, "late", "next")
    for _ in range(2):
        client.receive("result")
    assert told(client) == [
        ("free", "of late"),
        ("free", "of next"),
        ("result", "of late"),
        ("result", "of next"),
    ]


def test_one_is_cancelled_in_the_middle_and_one_before_it_begins(client: Client):
    start(client)
    ask(client, "late", "slow", "waiting", "after")
    client.receive("result")
    client.send(type="cancel", id="of waiting")
    client.send(type="cancel", id="of slow")
    failed = [client.receive("failed") for _ in range(2)]
    assert [(one["id"], one["code"]) for one in failed] == [
        ("of slow", "cancelled"),
        ("of waiting", "cancelled"),
    ]
    assert not any(one["permanent"] for one in failed)
    assert client.receive("result")["id"] == "of after"


def test_what_comes_too_late_to_be_cancelled_is_answered_with_its_result(client: Client):
    start(client)
    ask(client, "late")
    client.receive("free")
    client.send(type="cancel", id="of late")
    assert client.receive("result", "failed")["type"] == "result"


def test_an_evaluation_waits_for_the_parts_of_others_whenever_they_are_told_of(client: Client):
    start(client)
    client.send(type="part_found", id="of a", index=2, path="early.npz")
    client.send(type="evaluate", id="of a", prefix="a", parts=4)
    client.receive("progress")
    client.send(type="part_found", id="of another", index=1, path="of another.npz")
    client.send(type="part_found", id="of a", index=3)
    client.send(type="part_found", id="of a", index=1, path="late.npz")
    assert client.receive("result")["warnings"] == ["late.npz", "early.npz", "None"]


def test_one_that_waits_for_a_part_can_be_cancelled(client: Client):
    start(client)
    client.send(type="evaluate", id="of a", prefix="a", parts=2)
    client.receive("progress")
    client.send(type="cancel", id="of a")
    assert client.receive("failed")["code"] == "cancelled"
    ask(client, "b")
    assert client.receive("result")["warnings"] == []


def test_a_part_is_written_or_failed_under_its_own_id(client: Client, tmp_path: Path):
    start(client)
    path = tmp_path / "part.npz"
    for prefix in ("bad", "a"):
        said = {"id": f"of {prefix}.1", "index": 1, "of": 3, "path": str(path)}
        client.send(type="part", prefix=prefix, **said)
    failed, written = client.receive("failed"), client.receive("part_written")
    assert (failed["id"], failed["code"]) == ("of bad.1", "not_finite")
    assert written == {"type": "part_written", "id": "of a.1", "images": 1, "warnings": []}
    assert path.read_text() == "1 of 3" and complaints(client.replies) == []


def test_a_failure_is_the_checkpoints_own_and_any_other_error_may_pass(client: Client):
    start(client)
    ask(client, "late", "bad", "broken", "fine")
    client.receive("result")
    bad, broken = client.receive("failed"), client.receive("failed")
    assert (bad["code"], bad["message"], bad["permanent"]) == ("not_finite", "NaN in a", True)
    assert (broken["code"], broken["message"]) == ("internal", "KeyError: 'a'")
    assert not broken["permanent"] and "Traceback" in broken["detail"]
    assert client.receive("result")["id"] == "of fine"
    assert complaints(client.replies) == []


def test_a_refusal_ends_the_worker_with_what_to_do(client: Client):
    error = start(client, refuse=True)
    assert (error["code"], error["hint"]) == ("unsupported", "choose another")
    assert client.process.wait(10) == 3


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (
            {"type": "later"},
            "expected one of start, evaluate, part, part_found, average, cancel, stop,"
            " got {'type': 'later'}",
        ),
        ({"type": "evaluate", "id": "a"}, "a wrong evaluate: "),
        (
            {"type": "average", "id": "a", "prefixes": ["a", "b"], "prefix": "c"},
            "evaluate or part is expected: Average(",
        ),
    ],
)
def test_a_request_that_is_none_is_refused_by_what_it_says(
    client: Client, request_: dict[str, Any], said: str
):
    start(client)
    client.send(**request_)
    error = client.receive("error")
    assert error["code"] == "protocol" and said in error["message"]
    assert client.process.wait(10) == 3


@pytest.mark.parametrize("ends", ["stop", "end of input"])
def test_it_ends_at_once_in_the_middle_of_an_evaluation(client: Client, ends: str):
    start(client)
    ask(client, "slow")
    client.receive("progress")
    if ends == "stop":
        client.send(type="stop")
    else:
        assert client.process.stdin
        client.process.stdin.close()
    assert client.process.wait(10) == 0
