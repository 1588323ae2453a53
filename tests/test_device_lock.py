"""The lock of a GPU: one worker at a time, in turn, whoever's it is."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from watcher.errors import DeviceTaken, WorkerError
from watcher.evaluation.device_lock import DeviceLock, lock_folder

# Another user's process: imports all as we, then becomes that user and takes the lock.
OTHER_USER = """
import os, sys
from pathlib import Path
from watcher.evaluation.device_lock import DeviceLock, lock_folder
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
os.umask(0o077)
folder = lock_folder(None, [Path(sys.argv[1])])
for device in ("GPU-a", "GPU-b"):
    lock = DeviceLock(folder, device, label=device, run="theirs")
    with lock.take() as taken:
        taken.note(99)
        print(device, folder, flush=True)
        sys.stdin.readline()
"""


def lock(folder: Path, run: str = "first") -> DeviceLock:
    return DeviceLock(folder, "GPU-a", label="gpu:0", run=run)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user reaches; tmp_path is closed to others."""
    with tempfile.TemporaryDirectory(prefix="device-lock-") as name:
        Path(name).chmod(0o1777)
        yield Path(name)


def test_a_device_is_one_watchers_until_its_worker_ends(tmp_path: Path):
    first, second = lock(tmp_path), lock(tmp_path, "second")
    with first.take() as taken:
        worker = subprocess.Popen(["sleep", "60"], pass_fds=[taken.descriptor])
        taken.note(worker.pid)
    try:
        with pytest.raises(DeviceTaken, match="waiting for gpu:0: the watcher of first"):
            second.take().__enter__()
        assert first.is_wanted()
        holder = second.holder()
        assert holder and (holder.worker, holder.watcher) == (worker.pid, os.getpid())
    finally:
        worker.kill()
        worker.wait()
    assert second.holder() is None
    with second.take():
        assert not first.is_wanted()


def test_who_waits_comes_before_who_asks_later(tmp_path: Path):
    first, second, third = lock(tmp_path), lock(tmp_path, "second"), lock(tmp_path, "third")
    with ExitStack() as held:
        held.enter_context(first.take())
        with pytest.raises(DeviceTaken):
            second.take().__enter__()
        with pytest.raises(DeviceTaken, match=r"of first .* and another one is next"):
            third.take().__enter__()
    with pytest.raises(DeviceTaken, match="another one is next"):
        third.take().__enter__()
    with second.take(), pytest.raises(DeviceTaken, match="the watcher of second"):
        third.take().__enter__()


def test_who_waits_no_longer_makes_room(tmp_path: Path):
    first, second = lock(tmp_path), lock(tmp_path)
    with first.take():
        with pytest.raises(DeviceTaken):
            second.take().__enter__()
        assert first.is_wanted()
        second.withdraw()
        assert not first.is_wanted()


def test_devices_do_not_concern_each_other(tmp_path: Path):
    other = DeviceLock(tmp_path, "MIG-1/2/3", label="other", run="second")
    with lock(tmp_path).take(), other.take():
        assert other.path.name == "MIG-1_2_3.lock"


def test_a_lock_file_that_was_tidied_away_is_made_again_and_locks(tmp_path: Path):
    first, second = lock(tmp_path), lock(tmp_path)
    with first.take():
        first.path.unlink()
        # Whoever deletes the file of a lock that is held breaks it; what comes after holds again.
        with second.take(), pytest.raises(DeviceTaken):
            lock(tmp_path).take().__enter__()


def test_links_in_place_of_a_lock_are_refused_and_what_they_name_is_not_touched(tmp_path: Path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    here = lock(tmp_path)
    for link in (here.path.symlink_to, here.path.hardlink_to):
        link(precious)
        with pytest.raises(WorkerError, match="cannot lock the device by") as caught:
            here.take().__enter__()
        assert "--device-lock-dir" in (caught.value.hint or "")
        here.path.unlink()
        here.withdraw()
    assert precious.read_text() == "precious"


def test_what_another_user_wrote_into_the_lock_is_shown_harmlessly(tmp_path: Path):
    here, waiting = lock(tmp_path), lock(tmp_path)
    for said in ("", "{", "[]", '{"watcher": "x"}', json.dumps({"watcher": 1, "worker": 2})):
        with here.take() as taken:
            os.pwrite(taken.descriptor, b" " * 80, 0)
            os.pwrite(taken.descriptor, said.encode(), 0)
            with pytest.raises(DeviceTaken, match="another process evaluates on it"):
                waiting.take().__enter__()
            waiting.withdraw()
    with here.take() as taken:
        hostile = {"watcher": 1, "worker": 2, "run": "\x1b[2J" + "x" * 500}
        os.pwrite(taken.descriptor, json.dumps(hostile).encode(), 0)
        with pytest.raises(DeviceTaken) as caught:
            waiting.take().__enter__()
    assert "\x1b" not in caught.value.message and len(caught.value.message) < 200


def test_users_share_a_folder_that_either_of_them_made(open_folder: Path):
    if os.geteuid() != 0:
        pytest.skip("needs root, to lock as another user")
    ours = lock_folder(None, [open_folder])
    assert ours and stat.S_IMODE(ours.stat().st_mode) == 0o1777
    umask = os.umask(0o077)
    try:
        first = lock(ours)
        first.take().__enter__().note(1)  # leaves a file of ours behind; the descriptor is closed
    finally:
        os.umask(umask)
    with subprocess.Popen(
        [sys.executable, "-c", OTHER_USER, str(open_folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin and other.stdout
        assert other.stdout.readline() == f"GPU-a {ours}\n"
        with pytest.raises(DeviceTaken, match="the watcher of theirs"):
            first.take().__enter__()
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == f"GPU-b {ours}\n"
        theirs = DeviceLock(ours, "GPU-b", label="gpu:1", run="ours")
        with pytest.raises(DeviceTaken, match="the watcher of theirs"):
            theirs.take().__enter__()
        other.communicate("\n")
    assert theirs.path.stat().st_uid == 65534
    with theirs.take():
        assert first.holder() is None


def test_the_folder_is_the_first_that_all_may_write(tmp_path: Path):
    file, linked, free = tmp_path / "file", tmp_path / "linked", tmp_path / "free"
    file.touch()
    for folder in (linked, free):
        folder.mkdir()
    (linked / "checkpoint-watcher").symlink_to(tmp_path)
    bases = [file, tmp_path / "missing", linked, free]
    assert lock_folder(None, bases) == free / "checkpoint-watcher"
    assert lock_folder(None, bases[:3]) is None
    assert lock_folder(str(tmp_path), bases) == tmp_path
