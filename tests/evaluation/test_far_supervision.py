"""Workers on other hosts that wait, fail or measure otherwise; with a clock passed in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from watcher.errors import HostTrouble, WorkerError
from watcher.evaluation import frames, messages
from watcher.evaluation.events import Ready, WorkerLost
from watcher.evaluation.home_first import HomeFirst
from watcher.evaluation.machines import Machines
from watcher.evaluation.phase import Admission, WorkerPhase
from watcher.evaluation.pool import WorkerPool
from watcher.evaluation.session import Limits, Session
from watcher.evaluation.supervise import Supervisor
from watcher.store import Store
from watcher.types import Lease

START = messages.Start(protocol=messages.PROTOCOL, kind="stub")
LIMITS = Limits(start_seconds=600, retry_seconds=1)
READY = messages.Ready(fingerprint="f" * 64, images=8, metrics=[])


class Saying:
    """A worker that says what the test has it say; an error last."""

    pid = 0

    def __init__(self, *said: msgspec.Struct | WorkerError) -> None:
        self.said = list(said)

    def receive(self) -> Any:
        while self.said:
            one = self.said.pop(0)
            if isinstance(one, WorkerError):
                raise one
            yield one

    def send(self, message: msgspec.Struct) -> None:
        pass

    def resident_bytes(self) -> int:
        return 0

    def filenos(self) -> tuple[int, ...]:
        return ()

    def step_back(self) -> None:
        pass

    def kill(self) -> None:
        pass

    def stop(self, timeout_seconds: float) -> None:
        pass


def supervisor(worker: Saying, device: str = "far-1/gpu:0", *, far: bool = True) -> Supervisor:
    return Supervisor(lambda: worker, START, LIMITS, device=device, far=far)


def ready(device: str, fingerprint: str, *, far: bool, held: bool = False) -> Supervisor:
    """A device whose worker is ready."""
    made = supervisor(Saying(), device, far=far)
    said = msgspec.structs.replace(READY, fingerprint=fingerprint * 64)
    made.session = Session(Saying(), LIMITS, WorkerPhase.READY, Ready(said, {}))
    made.was_ready, made.held = True, held
    return made


def lease(number: int) -> Lease:
    return Lease(number, f"t{number}", f"ckpt-{number}", 100, Path("/pins/x"), 1)


# -- a device of another host that others have


def test_a_device_that_others_have_there_is_waited_for_without_limit():
    worker = Saying(frames.Waits(), frames.Waits(reason="gpu:0 is another watcher's"))
    made = supervisor(worker)
    made.tick(0)
    for hours in range(1, 50):
        assert made.tick(3600 * hours) == []
    assert made.waiting_for == "gpu:0 is another watcher's" and made.failures == 0
    worker.said = [frames.Waits(), READY]
    assert [type(event) for event in made.tick(3600 * 50)] == [Ready]


def test_once_it_has_the_device_a_worker_there_has_its_time_to_start_and_no_more():
    worker = Saying(frames.Waits(reason="gpu:0 is another watcher's"))
    made = supervisor(worker)
    made.tick(0)
    worker.said = [frames.Waits()]
    assert made.tick(5000) == [] and made.waiting_for is None
    assert made.tick(5599) == []
    (lost,) = made.tick(5600)
    assert isinstance(lost, WorkerLost) and "not ready within 600 s" in lost.reason


# -- home first


def holds(near: Supervisor) -> bool:
    far = ready("far-1/cpu", "e", far=True)
    assert far.ready
    return HomeFirst(WorkerPool([near, far])).holds(far, far.ready, "f" * 64)


@pytest.mark.parametrize("failures", [2, 6])
def test_a_device_of_this_machine_that_was_ready_is_waited_for_after_losses(failures: int):
    near = supervisor(Saying(), "cpu", far=False)
    near.was_ready, near.failures = True, failures
    assert holds(near)


def test_one_that_never_was_ready_or_fails_on_and_on_is_not_waited_for():
    near = supervisor(Saying(), "cpu", far=False)
    near.failures = 2
    assert not holds(near)
    near.was_ready, near.failures = True, 7
    assert not holds(near)


def test_a_host_that_is_held_keeps_no_other_host_out():
    stale, good = ready("far-1/cpu", "e", far=True, held=True), ready("far-2/cpu", "f", far=True)
    assert good.ready and stale.ready
    pool = WorkerPool([stale, good])
    assert pool.disagreement(good, good.ready) is None
    assert "is not that of far-2/cpu" in str(pool.disagreement(stale, stale.ready))


# -- what lacks on another host


def test_what_lacks_on_a_host_is_no_attempt_and_the_device_is_probed_with_another_one():
    worker = Saying()
    made = supervisor(worker)
    now = 0.0
    for _ in range(3):
        worker.said = [READY]
        made.tick(now)
        made.evaluate(lease(7), now)
        worker.said = [HostTrouble("far-1 cannot evaluate: it is another file there")]
        (lost, *_) = made.tick(now)
        assert isinstance(lost, WorkerLost) and not lost.counts
        now += 1000
    assert not made.breaker.closed
    assert list(made.breaker.lost) == [7]


def test_a_held_host_is_not_the_machine_that_others_are_compared_with(tmp_path: Path):
    pool = WorkerPool([ready("far-1/cpu", "e", far=True, held=True), ready("b/cpu", "f", far=True)])
    for number, one in enumerate(pool):
        assert one.session and one.session.ready
        said = msgspec.structs.replace(one.session.ready.said, machine={"cpu": str(number)})
        one.session.ready = Ready(said, {})
    with Store(tmp_path / "w.sqlite", run="r", model_dir=tmp_path, now=0) as store:
        Machines(store, pool, None, 3).admit(True, 0, 0)
    assert [one.admission for one in pool] == [Admission.WAITS, Admission.ADMITTED]
