"""What a worker owes after a score, its replicates, is never at the cost of another checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from watcher.evaluation import messages, wire
from watcher.evaluation.events import Evaluated, Resampled, Unusable, WorkerLost
from watcher.evaluation.session import Limits
from watcher.evaluation.supervise import Supervisor
from watcher.types import Lease

FINGERPRINT = "a" * 64
READY = {
    "type": "ready",
    "fingerprint": FINGERPRINT,
    "images": 8,
    "device": "cpu",
    "categories": [{"id": 1, "name": "car"}],
    "metrics": [],
    "capabilities": {"overlap": True},
}


class Saying:
    """A worker that says what the test has it say."""

    pid = 0

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.killed = False

    def say(self, type: str, **fields: Any) -> None:
        self.lines.append({"type": type, **fields})

    def send(self, message: msgspec.Struct) -> None:
        pass

    def receive(self) -> list[Any]:
        said, self.lines = self.lines, []
        return [wire.read_reply(msgspec.json.encode(line)) for line in said]

    def resident_bytes(self) -> int:
        return 0

    def step_back(self) -> None:
        pass

    def kill(self) -> None:
        self.killed = True

    def stop(self, timeout_seconds: float) -> None:
        self.killed = True


@pytest.fixture
def worker() -> Saying:
    return Saying()


@pytest.fixture
def supervisor(worker: Saying) -> Supervisor:
    """With a worker that is ready at 0 and has one checkpoint, whose images are done at 10."""
    start = messages.Start(protocol=messages.PROTOCOL, kind="stub")
    made = Supervisor(lambda: worker, start, Limits(stall_seconds=100, retry_seconds=1))
    worker.say("hello", protocol=messages.PROTOCOL, pid=1, versions={})
    worker.say("ready", **{name: value for name, value in READY.items() if name != "type"})
    made.tick(0)
    assert made.ready
    made.evaluate(lease(1), 0)
    worker.say("progress", id="t1", done=8, total=8)
    worker.say("free", id="t1")
    made.tick(10)
    return made


def lease(number: int) -> Lease:
    return Lease(number, f"t{number}", f"ckpt-{number}", 100, Path("/pins/x"), 1)


def result(worker: Saying, number: int, **more: Any) -> None:
    fields = {"images": 8, "metrics": {"mAP": 0.5}, "timings": {}, "replicates_follow": True}
    worker.say("result", id=f"t{number}", global_step=100, **{**fields, **more})


def replicates(worker: Saying, number: int, **more: Any) -> None:
    row = {"name": "mAP", "category": None, "objects": 9, "low": 0.4, "high": 0.6, "values": None}
    fields = {"scheme": "s", "images": 8, "count": 2, "level": 0.95, "metrics": [row]}
    worker.say("replicates", id=f"t{number}", **{**fields, **more})


def let_the_second_wait(supervisor: Supervisor, worker: Saying) -> None:
    """Of two, the first has its result and owes its replicates, which the second waits for."""
    supervisor.evaluate(lease(2), 11)
    worker.say("progress", id="t2", done=8, total=8)
    supervisor.tick(20)
    result(worker, 1)
    supervisor.tick(50)


def test_replicates_that_never_come_cost_what_is_evaluated_beside_them_no_attempt(
    supervisor: Supervisor, worker: Saying
):
    let_the_second_wait(supervisor, worker)
    # The second has been silent for as long, since it waits for them.
    assert supervisor.tick(149) == []
    (lost,) = supervisor.tick(150)
    assert isinstance(lost, WorkerLost) and lost.leases == (lease(2),) and not lost.counts
    assert "the replicates of ckpt-1 did not come within 100 s" in lost.reason
    assert supervisor.breaker.closed and worker.killed


def test_who_waited_for_the_replicates_of_another_has_all_its_time_after_them(
    supervisor: Supervisor, worker: Saying
):
    let_the_second_wait(supervisor, worker)
    replicates(worker, 1)
    assert [type(one) for one in supervisor.tick(140)] == [Resampled]
    assert supervisor.tick(239) == []
    (lost,) = supervisor.tick(240)
    assert isinstance(lost, WorkerLost) and lost.counts


def test_the_replicates_of_a_refused_answer_end_no_worker(supervisor: Supervisor, worker: Saying):
    result(worker, 1, category_metrics=[{"name": "AP", "category": 7, "value": 0.5}])
    replicates(worker, 1)
    assert [type(one) for one in supervisor.tick(20)] == [Unusable]
    assert not worker.killed


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": -1},
        {"metrics": [{"name": "mAP", "category": None, "objects": 1, "low": None, "high": 1}]},
        {"influences": "no base64!"},
    ],
)
def test_replicates_that_say_it_wrongly_are_left_out_and_the_worker_goes_on(
    supervisor: Supervisor, worker: Saying, wrong: dict[str, Any]
):
    supervisor.evaluate(lease(2), 11)
    result(worker, 1)
    replicates(worker, 1, **wrong)
    scored, drawn = supervisor.tick(20)
    assert isinstance(scored, Evaluated) and isinstance(drawn, Resampled)
    assert not drawn.replicates.metrics
    assert not worker.killed and supervisor.leases == (lease(2),)
