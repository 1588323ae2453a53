"""A device of another machine comes after those of this one: real workers, a daemon in a thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from folder_source import source_of
from stores import NOW
from two_gpus import save
from watching import STUB, Watcher, wait_until

from watcher.config import Settings
from watcher.errors import DeviceTaken
from watcher.evaluation.messages import Start
from watcher.evaluation.session import Limits
from watcher.evaluation.supervise import Supervisor
from watcher.evaluation.worker import Worker
from watcher.ingest.intake import Intake
from watcher.promotion.projection import Projector
from watcher.runtime.loop import Daemon
from watcher.store import Store

pytestmark = pytest.mark.slow

NEAR, FAR = {"device": "cpu", "instructions": "avx2"}, {"device": "cpu", "instructions": "avx512f"}


def supervisor(watcher: Watcher, name: str, go: Path, *, far: bool, **steer: str) -> Supervisor:
    """A device that has a worker once a file is there."""
    parts = {"STUB_MACHINE": json.dumps(FAR if far else NEAR)}
    log = watcher.database.parent / f"{name}.log"
    environment = {"STUB_LOG": str(watcher.model_dir.parent / name), **parts, **steer}

    def spawn() -> Worker:
        if not go.exists():
            raise DeviceTaken(f"{go.name} is not there")
        return Worker([str(STUB)], environment, log)

    limits = Limits(retry_seconds=0.05)
    start = Start(protocol=2, kind="stub")
    return Supervisor(spawn=spawn, start_request=start, limits=limits, device=name, far=far)


@contextmanager
def running(watcher: Watcher, *made: Supervisor) -> Iterator[None]:
    """The daemon on these devices; it ends with the block."""
    settings = Settings.of(
        model_dir=str(watcher.model_dir),
        pipeline_config=str(watcher.pipeline),
        rescan_seconds=0.2,
        tensorboard=False,
    )
    daemons: list[Daemon] = []

    def work() -> None:
        model_dir, pins = watcher.model_dir, watcher.database.parent / "pins"
        with Store(watcher.database, run="r", model_dir=model_dir, now=NOW) as store:
            intake = Intake(source_of(model_dir), pins, store.queue, grace_seconds=5)
            projector = Projector(settings, store, intake.source, "r")
            daemons.append(Daemon(settings, store, intake, projector, made))
            daemons[0].run()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        wait_until(lambda: daemons, "it has started")
        daemons[0].wakeup.stop()
        thread.join(timeout=60)
        assert not thread.is_alive()


@pytest.fixture
def go(watcher: Watcher) -> Path:
    """The file that lets the device of this machine have a worker."""
    (watcher.database.parent / "pins").mkdir(parents=True)
    save(watcher, range(1, 5))
    return watcher.model_dir.parent / "go"


def evaluated(watcher: Watcher, name: str) -> list[str]:
    log = watcher.model_dir.parent / name
    return log.read_text().split() if log.exists() else []


def doing(watcher: Watcher, name: str) -> str | None:
    workers: list[dict[str, Any]] = watcher.status().get("workers", [])
    return next((one["worker"] for one in workers if one["on"] == name), None)


def all_scored(watcher: Watcher) -> bool:
    return list(watcher.states().values()) == ["scored"] * 4


def test_with_no_score_yet_the_far_device_waits_for_the_first_one_of_this_machine(
    watcher: Watcher, go: Path
):
    near = supervisor(watcher, "near", go, far=False)
    far = supervisor(watcher, "far", watcher.pipeline, far=True)
    with running(watcher, far, near):
        wait_until(lambda: doing(watcher, "far") == "waiting to be compared", "the far one waits")
        assert evaluated(watcher, "far") == [] and watcher.query("SELECT * FROM machines") == []
        go.touch()
        wait_until(lambda: all_scored(watcher), "all are scored")
    assert evaluated(watcher, "far")[:1] in ([], evaluated(watcher, "near")[:1])
    reference = watcher.query("SELECT parts FROM machine_state WHERE standing = 'reference'")
    assert json.loads(reference[0]["parts"]) == NEAR


def test_where_no_device_of_this_machine_can_work_the_far_one_does(watcher: Watcher, go: Path):
    near = supervisor(watcher, "near", watcher.pipeline, far=False, STUB_DIE="7")
    far = supervisor(watcher, "far", watcher.pipeline, far=True)
    with running(watcher, near, far):
        wait_until(lambda: all_scored(watcher), "all are scored")
        assert "near is left out" in watcher.status()["problem"]
    assert len(evaluated(watcher, "far")) == 4
