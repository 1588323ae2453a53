"""Events wake the loop; when they cannot, the watch says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_trainer import Manager
from faults import need_strace
from watching import wait_until

from watcher.sources.watch import Watch


@pytest.fixture
def woken() -> threading.Event:
    return threading.Event()


@pytest.fixture
def watch(tmp_path: Path, woken: threading.Event) -> Iterator[Watch]:
    folder = tmp_path / "model_dir"
    folder.mkdir()
    watch = Watch(folder, woken.set)
    watch.ensure()
    yield watch
    watch.close()


def test_a_finished_checkpoint_wakes_the_loop(watch: Watch, woken: threading.Event):
    Manager(watch.folder).save(100, {})
    assert woken.wait(60)
    assert watch.degraded is None


def test_other_files_and_our_own_reading_do_not_wake_it(watch: Watch, woken: threading.Event):
    Manager(watch.folder).save(100, {})
    assert woken.wait(60)
    woken.clear()
    (watch.folder / "ckpt-1.index").read_bytes()
    (watch.folder / "events.out").write_text("x")
    assert not woken.wait(0.5)


def test_a_folder_deleted_and_made_again_is_watched_again(watch: Watch, woken: threading.Event):
    shutil.rmtree(watch.folder)
    watch.ensure()
    assert "No such file" in (watch.degraded or "")
    watch.folder.mkdir()
    watch.ensure()
    assert watch.degraded is None
    woken.clear()
    Manager(watch.folder).save(100, {})
    assert woken.wait(60)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ended_is_replaced_and_said_to_be(tmp_path: Path):
    def wake() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("as a fault in the library would")

    calls: list[int] = []
    watch = Watch(tmp_path, wake)
    watch.ensure()
    manager = Manager(tmp_path)
    manager.save(100, {})
    wait_until(lambda: not watch.ensure(), "the dead thread is noticed")
    assert watch.degraded == "the thread that hands on file system events had ended"
    manager.save(200, {})
    wait_until(lambda: watch.ensure() and watch.degraded is None, "events work again")
    assert watch.take_news()[-1] == "file system events work again"
    watch.close()


CLOSING = """
import sys, time
from pathlib import Path
from watcher.sources.watch import Watch
watches = [Watch(Path(sys.argv[1]), lambda: None) for _ in range(3)]
for watch in watches:
    watch.ensure()
print("armed", flush=True)
sys.stdin.readline()
began = time.monotonic()
for watch in watches:
    watch.close()
Path(sys.argv[1], "ended").mkdir()
"""


def test_closing_ends_although_the_library_cannot_tell_its_threads_to(tmp_path: Path):
    """They are told through a pipe, and joined without a limit."""
    need_strace()
    closing = subprocess.Popen(
        [sys.executable, "-c", CLOSING, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert closing.stdin and closing.stdout and closing.stdout.readline() == b"armed\n"
    inject = ["-etrace=write", "-einject=write:error=EIO"]
    strace = ["strace", "-f", "-qq", "-o", os.devnull, "-p", str(closing.pid), *inject]
    with subprocess.Popen(strace) as fault:
        status = Path(f"/proc/{closing.pid}/status")
        wait_until(lambda: "TracerPid:\t0" not in status.read_text(), "it is traced")
        closing.communicate(b"go\n", timeout=60)
        assert (tmp_path / "ended").is_dir()
        fault.wait(timeout=60)
