"""What systemd is told: ready, how the run stands, pings from a loop that turns, and the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from faults import end_strace, need_strace
from watching import Watcher, wait_until

from watcher.heartbeat import Heartbeat
from watcher.systemd.notify import Notifier, Service


class Manages:
    """The service manager's end of the socket; keeps what was said, and when."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(address.replace("@", "\0", 1) if address[0] == "@" else address)
        self.heard: list[str] = []

    def listen(self) -> list[str]:
        """All assignments so far."""
        while True:
            try:
                self.heard += self._socket.recv(8192).decode().split("\n")
            except BlockingIOError:
                return self.heard

    def pings(self) -> int:
        return self.listen().count("WATCHDOG=1")

    def status(self) -> str:
        said = [text for text in self.listen() if text.startswith("STATUS=")]
        return said[-1].removeprefix("STATUS=") if said else ""

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manages]:
    abstract = f"@checkpoint-watcher-test-{os.getpid()}-{time.monotonic_ns()}"
    manages = Manages(abstract if request.param == "abstract" else str(tmp_path / "notify"))
    yield manages
    manages.close()


@pytest.fixture
def path_manager(tmp_path: Path) -> Iterator[Manages]:
    manages = Manages(str(tmp_path / "notify"))
    yield manages
    manages.close()


def save(watcher: Watcher, count: int) -> None:
    trainer = Manager(watcher.model_dir)
    for number in range(trainer.save_counter + 1, trainer.save_counter + 1 + count):
        trainer.save(100 * number, model_tensors(1000, number))


def test_a_run_tells_that_it_is_ready_how_it_stands_and_that_it_stops(
    watcher: Watcher, manager: Manages
):
    save(watcher, 2)
    watcher.start(NOTIFY_SOCKET=manager.address, STUB_SCORES='{"ckpt-1": 0.5, "ckpt-2": 0.25}')
    expected = "best ckpt-1 (step 100, score 0.5000); 0 waiting; worker: ready"
    wait_until(lambda: manager.status() == expected, f"it says {expected}")
    assert manager.listen().count("READY=1") == 1
    assert manager.pings() == 0, "nobody asked for pings"
    assert watcher.stop() == 0
    assert [text for text in manager.listen() if text != "STOPPING=1"][-2:] == [
        "STATUS=stopping",
        "STATUS=ended",
    ]


def test_the_status_tells_the_queue_and_an_early_stop(watcher: Watcher, path_manager: Manages):
    save(watcher, 3)
    watcher.start("--patience", 1, NOTIFY_SOCKET=path_manager.address, STUB_SECONDS="0.5")
    wait_until(lambda: "2 waiting; worker: evaluating ckpt-1" in path_manager.status(), "the queue")
    manager = Manager(watcher.model_dir)
    wait_until(lambda: "best ckpt-3" in path_manager.status(), "the best")
    manager.save(400, model_tensors(1000, "worse"))
    watcher.stop()
    watcher.start(
        *("--patience", 1), NOTIFY_SOCKET=path_manager.address, STUB_SCORES='{"ckpt-4": 0.0}'
    )
    wait_until(lambda: "early stop: no improvement" in path_manager.status(), "the decision")


def test_a_run_that_ends_with_an_error_leaves_it_in_the_status(
    watcher: Watcher, path_manager: Manages
):
    refused = "label map nowhere.pbtxt does not exist"
    assert watcher.run(NOTIFY_SOCKET=path_manager.address, STUB_REFUSE=refused) == 1
    assert path_manager.status() == f"ended by an error: {refused}"


def test_a_run_that_waits_for_its_model_dir_is_ready_and_says_so(
    watcher: Watcher, path_manager: Manages
):
    watcher.model_dir.rmdir()
    watcher.start("--wait-for-model-dir", NOTIFY_SOCKET=path_manager.address)
    said = f"waiting for {watcher.model_dir}"
    wait_until(lambda: path_manager.status() == said, said)
    assert "READY=1" in path_manager.listen()
    watcher.model_dir.mkdir()
    wait_until(lambda: "worker: ready" in path_manager.status(), "it goes on")


def test_the_watchdog_is_pinged_in_time_and_not_while_the_process_is_stopped(
    watcher: Watcher, path_manager: Manages
):
    daemon = watcher.start(NOTIFY_SOCKET=path_manager.address, WATCHDOG_USEC=1_500_000)
    wait_until(lambda: path_manager.pings() > 3, "an idle loop pings")
    daemon.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    before = path_manager.pings()
    time.sleep(2)
    assert path_manager.pings() == before
    daemon.send_signal(signal.SIGCONT)
    wait_until(lambda: path_manager.pings() > before, "it goes on")


def test_a_loop_that_hangs_in_one_call_is_not_pinged_for_though_its_threads_live(
    watcher: Watcher, path_manager: Manages, tmp_path: Path
):
    need_strace()
    daemon = watcher.start(NOTIFY_SOCKET=path_manager.address, WATCHDOG_USEC=1_500_000)
    wait_until(lambda: path_manager.pings() > 1, "it turns")
    trace = tmp_path / "trace"
    hang = ["--trace=link,linkat", "--inject=link,linkat:delay_enter=3000000:when=1"]
    strace = subprocess.Popen(["strace", "-o", trace, f"--attach={daemon.pid}", *hang])
    try:
        wait_until(lambda: "TracerPid:\t0" not in state_of(daemon.pid), "it is traced")
        save(watcher, 1)
        wait_until(lambda: "link" in trace.read_text(), "the loop is in the call")
        before = path_manager.pings()
        time.sleep(2)
        assert path_manager.pings() == before, "systemd would have ended it by now"
        wait_until(lambda: watcher.states().get("ckpt-1") == "scored", "the call ended")
        assert path_manager.pings() > before
    finally:
        end_strace(strace)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


def test_what_is_told_ends_neither_with_a_dead_service_manager_nor_with_a_strange_one(
    watcher: Watcher, tmp_path: Path
):
    save(watcher, 1)
    for address in (str(tmp_path / "nobody"), "vsock:2:1234"):
        assert watcher.run(NOTIFY_SOCKET=address, WATCHDOG_USEC="soon") == 0


def test_the_variables_are_taken_out_of_the_environment_that_the_worker_inherits():
    environment = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "3000000", "LANG": "C"}
    notifier = Notifier.from_environment(environment)
    assert notifier.watchdog_seconds == 3.0
    assert environment == {"LANG": "C"}
    other = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}
    assert Notifier.from_environment(other).watchdog_seconds is None, "meant for another process"


def test_a_loop_whose_worker_stalled_and_is_still_there_gets_no_ping(path_manager: Manages):
    now = 100.0
    service = Service(Notifier(path_manager.address, 10.0), steady=lambda: now)
    service.turned(Heartbeat(turned=now, due=now + 1, worker_due=now - 5))
    assert path_manager.pings() == 1
    now = 110.0
    service.turned(Heartbeat(turned=now, due=now + 1, worker_due=95.0))
    assert path_manager.pings() == 1
    service.turned(Heartbeat(turned=now, due=now + 1))
    assert path_manager.pings() == 2


def test_a_loop_that_cannot_do_its_work_says_why(path_manager: Manages):
    service = Service(Notifier(path_manager.address), steady=lambda: 0.0)
    service.turned(Heartbeat(turned=0, due=1, failure="database is locked"))
    assert path_manager.status() == "cannot go on, trying again: database is locked"
