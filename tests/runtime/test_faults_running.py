"""Faults of running: clocks that jump, signals at any moment, two daemons at once."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from faults import end_strace, fork_daemon, need_strace
from folder_source import source_of
from watching import STUB, Watcher, alive, cli, wait_until

from watcher.config import Settings
from watcher.evaluation.messages import Start
from watcher.evaluation.session import Limits
from watcher.evaluation.supervise import Supervisor
from watcher.evaluation.worker import Worker
from watcher.ingest.intake import Intake
from watcher.promotion.projection import Projector
from watcher.runtime.loop import Daemon
from watcher.store import Store

HOUR = 3600.0


def save(watcher: Watcher, count: int, first: int = 1) -> None:
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for number in range(first, first + count):
        manager.save(100 * number, model_tensors(4000, number))


class Clock:
    """The wall clock, and what it was set by."""

    def __init__(self) -> None:
        self.set_by = 0.0

    def __call__(self) -> float:
        return time.time() + self.set_by


@contextlib.contextmanager
def daemon_with_clock(watcher: Watcher, clock: Clock, **steer: str) -> Iterator[None]:
    """The daemon in a thread, with a clock that can be set; its worker is a real process."""
    state_dir = watcher.model_dir / "watcher"
    state_dir.mkdir(exist_ok=True)
    settings = Settings.of(
        model_dir=str(watcher.model_dir),
        pipeline_config=str(watcher.pipeline),
        rescan_seconds=0.2,
        evict_seconds=0.1,
    )
    environment = {"STUB_LOG": str(watcher.evaluated), **steer}

    def work() -> None:
        with Store(watcher.database, run="r", model_dir=watcher.model_dir, now=clock()) as store:
            supervisor = Supervisor(
                spawn=lambda: Worker([str(STUB)], environment, state_dir / "worker.log"),
                start_request=Start(protocol=2, kind="stub"),
                limits=Limits(retry_seconds=1.0),
            )
            intake = Intake(
                source_of(watcher.model_dir), state_dir / "pins", store.queue, grace_seconds=5
            )
            projector = Projector(settings, store, intake.source, "r")
            daemons.append(Daemon(settings, store, intake, projector, [supervisor], clock=clock))
            daemons[0].run()

    daemons: list[Daemon] = []
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        wait_until(lambda: daemons, "it has started")
        daemons[0].wakeup.stop()
        thread.join(timeout=60)
        assert not thread.is_alive()


@pytest.mark.parametrize("jump", [-24 * HOUR, 24 * HOUR])
def test_a_clock_that_is_set_neither_ends_a_lease_nor_holds_the_queue_up(
    watcher: Watcher, tmp_path: Path, jump: float
):
    save(watcher, 2)
    clock, once, goes_on = Clock(), tmp_path / "once", tmp_path / "go"
    once.mkdir()
    steer = {"STUB_WAIT": "ckpt-1", "STUB_WAIT_FOR": str(goes_on)}
    steer |= {"STUB_KILL": "ckpt-2", "STUB_ONCE": str(once)}
    with daemon_with_clock(watcher, clock, **steer):
        wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is being evaluated")
        clock.set_by = jump
        time.sleep(0.6)  # some turns of the loop
        goes_on.touch()
        wait_until(lambda: watcher.states().get("ckpt-1") == "scored", "its answer counts")
        assert watcher.evaluations().count("ckpt-1") == 1
        retried = "SELECT not_before_seconds AS due FROM checkpoints WHERE name = 'ckpt-2'"
        wait_until(lambda: watcher.query(retried)[0]["due"] > 0, "ckpt-2 waits for another attempt")
        clock.set_by = 0.0
        wait_until(lambda: watcher.states().get("ckpt-2") == "scored", "it is not held up")


def test_a_delay_that_a_wrong_clock_wrote_does_not_outlive_a_restart(watcher: Watcher):
    save(watcher, 1)
    daemon = watcher.start("--retry-seconds", 300, STUB_KILL="ckpt-1")
    retried = "SELECT not_before_seconds AS due FROM checkpoints"
    wait_until(lambda: watcher.states().get("ckpt-1") and watcher.query(retried)[0]["due"], "waits")
    daemon.kill()
    daemon.wait()
    assert watcher.run() == 0  # within two minutes, and the delay is five
    assert watcher.states() == {"ckpt-1": "scored"}


@pytest.mark.timeout(600)
def test_sigterm_at_any_moment_ends_it_with_the_lease_returned_and_no_worker_left(
    watcher: Watcher, tmp_path: Path
):
    save(watcher, 8)
    starts = tmp_path / "starts"
    command = watcher.command("--rescan-seconds", 0.5)[2:]
    chance = random.Random(21)
    codes = []
    span = math.inf
    for _ in range(25):
        steer = {"STUB_SECONDS": 0.15, "STUB_STARTS": starts, "STUB_LOG": watcher.evaluated}
        began = time.monotonic()
        daemon = fork_daemon(command, watcher.log, steer)
        if span == math.inf:  # how long this machine takes for what is to be interrupted
            wait_until(starts.exists, "a worker is started")
            span = min(2 * (time.monotonic() - began) + 0.3, 4.0)  # not that of a pause
        time.sleep(max(0.0, chance.uniform(0.0, span) + began - time.monotonic()))
        daemon.kill(signal.SIGTERM)
        wait_until(lambda d=daemon: d.poll() is not None, "it has ended")
        codes.append(daemon.wait())
        if watcher.states():
            rows = watcher.query(
                "SELECT lease_token, attempts FROM checkpoints WHERE"
                " state = 'leased' OR (state = 'pending' AND attempts > 0)"
            )
            assert rows == []
            assert watcher.query("SELECT status FROM runs") == [{"status": "{}"}]
        if starts.exists():
            assert not any(alive(int(worker)) for worker in starts.read_text().split())
    # Before the handler is there the signal's own effect ends it; nothing has begun then.
    assert set(codes) <= {0, -signal.SIGTERM} and codes.count(0) > 8
    assert watcher.run() == 0
    assert set(watcher.states().values()) == {"scored"}


def writes_fail(daemon: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """Fail each `write` from now on: pipes to workers and between threads, logs, wake-ups."""
    need_strace()
    inject = ["-etrace=write", "-einject=write:error=EIO"]
    strace = ["strace", "-f", "-qq", "-o", os.devnull, "-p", str(daemon.pid), *inject]
    fault = subprocess.Popen(strace)
    status = Path(f"/proc/{daemon.pid}/status")
    wait_until(lambda: "TracerPid:\t0" not in status.read_text(), "it is traced")
    return fault


@pytest.mark.parametrize("busy", [True, False])
def test_sigterm_ends_it_while_every_write_fails(watcher: Watcher, tmp_path: Path, busy: bool):
    save(watcher, 2)
    starts = tmp_path / "starts"
    daemon = watcher.start(STUB_SECONDS=600 if busy else 0, STUB_STARTS=starts)
    last = "leased" if busy else "scored"
    wait_until(lambda: last in watcher.states().values(), "it works")
    fault = writes_fail(daemon)
    try:
        time.sleep(1)
        daemon.terminate()
        assert daemon.wait(timeout=60) == 0
    finally:
        end_strace(fault)
    assert not any(alive(int(worker)) for worker in starts.read_text().split())


def test_sigterm_ends_it_after_writes_failed_while_its_watch_was_exchanged(
    watcher: Watcher, tmp_path: Path
):
    """The library's thread is told to end by a write, and joined without a limit."""
    save(watcher, 1)
    elsewhere = ["--state-dir", tmp_path / "state", "--best-dir", tmp_path / "best"]
    watcher.database = tmp_path / "state" / "watcher.db"
    daemon = watcher.start(*elsewhere, "--rescan-seconds", 0.3)
    wait_until(lambda: "scored" in watcher.states().values(), "it works")
    fault = writes_fail(daemon)
    watcher.model_dir.rename(tmp_path / "away")
    watcher.model_dir.mkdir()
    time.sleep(3)
    end_strace(fault)
    save(watcher, 2)
    wait_until(lambda: watcher.states().get("ckpt-2") == "scored", "it goes on by itself")
    daemon.terminate()
    assert daemon.wait(timeout=60) == 0


def test_of_daemons_that_race_for_one_model_dir_one_wins_and_the_others_say_so(watcher: Watcher):
    save(watcher, 2)
    for _ in range(3):
        command = watcher.command()[2:]
        racing = [fork_daemon(command, watcher.log, {"STUB_SECONDS": 0.2}) for _ in range(5)]
        deadline = time.monotonic() + 60
        while len(racing) > 1 and time.monotonic() < deadline:
            assert {daemon.poll() for daemon in racing} <= {3, None}
            racing = [daemon for daemon in racing if daemon.poll() is None]
            time.sleep(0.02)
        (winner,) = racing
        wait_until(lambda: set(watcher.states().values()) == {"scored"}, "the winner works")
        winner.kill(signal.SIGTERM)
        assert winner.wait() == 0
    assert "already watches this model_dir" in watcher.log.read_text()


def test_a_daemon_stopped_for_a_while_goes_on_where_it_was(watcher: Watcher, tmp_path: Path):
    save(watcher, 1)
    goes_on = tmp_path / "go"
    daemon = watcher.start(STUB_WAIT="ckpt-1", STUB_WAIT_FOR=goes_on)
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is being evaluated")
    daemon.send_signal(signal.SIGSTOP)
    goes_on.touch()
    time.sleep(2.5)  # the answer comes meanwhile
    daemon.send_signal(signal.SIGCONT)
    wait_until(lambda: watcher.states().get("ckpt-1") == "scored", "its answer counts")
    assert watcher.evaluations() == ["ckpt-1"]


def test_a_stale_sentinel_of_an_earlier_run_is_told_apart(watcher: Watcher):
    save(watcher, 2)
    watcher.sentinel.write_text(json.dumps({"schema": 1, "run": "an earlier run", "reason": "x"}))
    scores = json.dumps({"ckpt-1": 0.5, "ckpt-2": 0.1})
    assert watcher.run("--patience", 5, STUB_SCORES=scores) == 0
    assert watcher.stop_notice()["run"] == "an earlier run"
    assert "sentinel of another run" in watcher.log.read_text()
    # A decision of this run takes its place.
    assert watcher.run("--patience", 1) == 0
    assert watcher.stop_notice()["run"] == watcher.query("SELECT uuid FROM runs")[0]["uuid"]


def test_what_reading_commands_say_while_the_daemon_is_being_killed_is_whole(watcher: Watcher):
    save(watcher, 3)
    command = watcher.command()[2:]
    for moment in (0.1, 0.25, 0.4):
        daemon = fork_daemon(command, watcher.log, {"STUB_SECONDS": 0.1})
        time.sleep(moment)
        daemon.kill()
        daemon.wait()
        if watcher.states():
            done = cli("status", watcher.model_dir, "--json")
            assert done.returncode == 0, done.stderr
            json.loads(done.stdout)
    assert subprocess.run(watcher.command("--help"), capture_output=True).returncode == 0
