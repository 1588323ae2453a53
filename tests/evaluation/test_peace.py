"""An evaluation beside a trainer takes what that leaves of the CPU."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from watching import Watcher, wait_until

from evaluators.pace import Pace
from watcher.evaluation.session import Limits, Session
from watcher.types import Lease

IDLE_CLASS, BY_PROCESS = 3, 1
IOPRIO_GET = {"x86_64": 252, "aarch64": 31}


@pytest.fixture
def watcher(tmp_path: Path) -> Iterator[Watcher]:
    found = Watcher(tmp_path)
    Manager(found.model_dir, max_to_keep=None).save(100, model_tensors(1000, "1"))
    yield found
    found.end()


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[None]:
    """A trainer at work on another MODEL_DIR."""
    script = tmp_path / "model_main_tf2.py"
    script.write_text("import time\ntime.sleep(600)\n")
    command = [sys.executable, str(script), "--model_dir", str(tmp_path / "other")]
    command += ["--pipeline_config_path", "x"]
    process = subprocess.Popen(command)
    yield
    process.kill()
    process.wait()


def worker_of(watcher: Watcher, *flags: object) -> int:
    """Evaluates a checkpoint, and returns the worker's process id while that still runs."""
    starts = watcher.model_dir.parent / "starts"
    watcher.start(*flags, STUB_STARTS=starts, CHECKPOINT_WATCHER_PEACE="auto")
    wait_until(lambda: watcher.states().get("ckpt-1") == "scored", "it is scored")
    return int(starts.read_text())


def niceness(pid: int) -> set[int]:
    """That of all threads of a process."""
    stats = [task / "stat" for task in Path(f"/proc/{pid}/task").iterdir()]
    return {int(stat.read_text().rpartition(")")[2].split()[16]) for stat in stats}


def io_class(pid: int) -> int:
    number = IOPRIO_GET[platform.machine()]
    return int(ctypes.CDLL(None).syscall(number, BY_PROCESS, pid)) >> 13


def test_beside_a_trainer_the_worker_leaves_it_the_cpu_and_the_disk(
    watcher: Watcher, trainer: None
):
    pid = worker_of(watcher)
    assert niceness(pid) == {19}
    assert io_class(pid) == IDLE_CLASS
    group = Path(f"/proc/{pid}/autogroup")
    if group.exists() and (said := group.read_text()):
        assert said.split()[-1] == "19"


@pytest.mark.parametrize("flags", [("--peace", "off"), ("--nice", 0)], ids=["off", "a niceness"])
def test_it_does_not_give_way_where_somebody_says_otherwise(
    watcher: Watcher, trainer: None, flags: tuple[object, ...]
):
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert niceness(worker_of(watcher, *flags)) == {own}


def test_at_most_peace_it_gives_way_whether_a_trainer_is_seen_or_not(watcher: Watcher):
    assert niceness(worker_of(watcher, "--peace", "max")) == {19}


def test_what_gives_way_may_be_without_progress_for_longer():
    class Silent:
        def send(self, message: object) -> None: ...

    session = Session(Silent(), Limits(stall_seconds=600.0))  # type: ignore[arg-type]
    lease = Lease(1, "token", "ckpt-1", 100, Path("/p/ckpt-1"), 1)
    session.evaluate(lease, 0.0)
    assert session.due == 600.0
    session.running.clear()
    session.stepped_back = True
    session.evaluate(lease, 0.0)
    assert session.due == 3000.0


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each rest, none of which is taken."""
    taken: list[float] = []
    monkeypatch.setattr("evaluators.pace.time.sleep", taken.append)
    return taken


def work(seconds: float) -> str:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
    return "done"


def test_what_rests_twice_as_long_as_it_works_works_a_third_of_the_time(rests: list[float]):
    began = time.perf_counter()
    assert Pace(2.0).paced(work)(0.05) == "done"
    assert 0.1 <= rests.pop() <= 2 * (time.perf_counter() - began)
    pace = Pace(2.0)
    began = time.perf_counter()
    pace.begin()
    work(0.02)
    pace.take()
    assert 0.04 <= rests.pop() <= 2 * (time.perf_counter() - began)


def test_a_pass_that_was_stopped_meanwhile_rests_no_longer_for_that(
    rests: list[float], monkeypatch: pytest.MonkeyPatch
):
    present = [0.0]
    monkeypatch.setattr("evaluators.pace.time.perf_counter", lambda: present[0])

    def take(seconds: float) -> None:
        present[0] += seconds

    paced = Pace(2.0).paced(take)
    for seconds in (1.0, 1.0, 3600.0):
        paced(seconds)
    assert rests == [2.0, 2.0, 6.0]
    # What goes on to take so long is rested for in full after a while.
    for _ in range(80):
        paced(100.0)
    assert rests[-1] == 200.0


def test_two_passes_do_not_run_while_the_other_rests():
    pace, running = Pace(1.0), threading.Lock()

    def one_at_a_time() -> None:
        with running:
            time.sleep(0.05)

    began = time.perf_counter()
    threads = [threading.Thread(target=pace.paced(one_at_a_time)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.perf_counter() - began >= 0.2


def test_without_a_rest_it_works_on(rests: list[float]):
    assert Pace().paced(work)(0.01) == "done"
    assert rests == []
