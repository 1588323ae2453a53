"""A wake-up is never lost, whichever instruction of the loop it comes before."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
from folder_source import source_of
from watching import Watcher

from watcher.config import Settings
from watcher.errors import DeviceTaken
from watcher.evaluation.messages import Start
from watcher.evaluation.session import Limits
from watcher.evaluation.supervise import Supervisor
from watcher.evaluation.worker import Worker
from watcher.ingest.intake import Intake
from watcher.promotion.projection import Projector
from watcher.runtime.loop import Daemon
from watcher.runtime.task import Task
from watcher.runtime.wakeup import WakeUp
from watcher.store import Store

LOOP = {
    function.__code__
    for function in (
        *(Daemon._guarded_step, Daemon.step, Daemon._look, Daemon._wait, Daemon._pin_meanwhile),
        *(Daemon._heed, WakeUp.take, WakeUp.wait, Task.now, Task.take),
    )
}


@pytest.fixture
def daemon(watcher: Watcher) -> Iterator[Daemon]:
    """A daemon that has begun; it waits for a device, so there is no worker."""

    def spawn() -> Worker:
        raise DeviceTaken("another has it")

    settings = Settings.of(model_dir=str(watcher.model_dir), pipeline_config="-", tensorboard=False)
    pins = watcher.database.parent / "pins"
    pins.mkdir(parents=True)
    with Store(watcher.database, run="r", model_dir=watcher.model_dir, now=time.time()) as store:
        intake = Intake(source_of(watcher.model_dir), pins, store.queue, grace_seconds=5)
        supervisor = Supervisor(
            spawn=spawn, start_request=Start(protocol=2, kind="stub"), limits=Limits()
        )
        daemon = Daemon(
            settings, store, intake, Projector(settings, store, intake.source, "r"), [supervisor]
        )
        for _ in range(3):
            daemon._guarded_step()
        yield daemon
        daemon._close()


class Tracer:
    """Calls `wake` before the n-th instruction of the loop, and notes each look."""

    def __init__(self, number: int, wake: Callable[[], None]) -> None:
        self.left = number
        self.wake = wake
        self.happened: list[str] = []

    def __call__(self, frame: FrameType, event: str, _: object) -> Tracer | None:
        if frame.f_code is Intake.look.__code__:
            self.happened.append("look")
        if frame.f_code not in LOOP:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                self.happened.append(f"wake in {frame.f_code.co_name}:{frame.f_lineno}")
                self.wake()
        return self


def turned(daemon: Daemon, turn: Callable[[], object], number: int) -> list[str]:
    """Turn with a wake-up before that instruction, and once more; what happened, in order."""
    tracer, before = Tracer(number, daemon.wakeup.wake), sys.gettrace()
    sys.settrace(tracer)
    try:
        turn()
        daemon._wait(0.0)
        tracer.left = 0
        daemon._guarded_step()
    finally:
        sys.settrace(before)
    daemon._wait(0.0)
    daemon._guarded_step()
    return tracer.happened


@pytest.mark.parametrize("kind", ["quiet", "woken", "in trouble"])
def test_a_wake_up_before_any_instruction_is_followed_by_a_look(daemon: Daemon, kind: str):
    def turn() -> None:
        if kind == "woken":
            daemon.wakeup.wake()
        if kind == "in trouble":
            daemon._pin_meanwhile()
        else:
            daemon._guarded_step()

    assert turned(daemon, turn, 0) == ([] if kind == "quiet" else ["look"])
    number, lost = 1, []
    while "wake" in " ".join(happened := turned(daemon, turn, number)):
        if happened[-1] != "look":
            lost += happened
        number += 1
    assert number > 50, "the loop is traced"
    assert lost == []
