"""The lock of a GPU: one worker at a time, in turn, whoever's it is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from privileges import OPEN_TO_ALL

from watcher.errors import DeviceTaken, WorkerError
from watcher.evaluation.device_lock import DeviceLock, LockFolders

# Another user's process: imports all as we, then becomes that user and takes the lock.
OTHER_USER = """
import os, sys
from pathlib import Path
from watcher.errors import DeviceTaken
from watcher.evaluation.device_lock import DeviceLock, LockFolders
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
os.umask(0o077)
folders = LockFolders(None, [Path(name) for name in sys.argv[1:]])
for device in ("GPU-a", "GPU-b"):
    lock = DeviceLock(folders, device, label=device, run="theirs")
    try:
        with lock.take() as taken:
            taken.note(99)
            print(device, *folders.usable(), flush=True)
            sys.stdin.readline()
    except DeviceTaken as error:
        print(error.message, flush=True)
"""


def lock(folder: Path, run: str = "first") -> DeviceLock:
    return DeviceLock(LockFolders(str(folder)), "GPU-a", label="gpu:0", run=run)


def lock_file(folder: Path) -> Path:
    return folder / "GPU-a.lock"


@contextlib.contextmanager
def other_user(*bases: Path) -> Iterator[subprocess.Popen[str]]:
    """Another user's watcher, which has GPU-a, GPU-b after a line, and then ends."""
    with subprocess.Popen(
        [sys.executable, "-c", OTHER_USER, *map(str, bases)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        yield other
        other.communicate("\n\n")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user reaches; tmp_path is closed to others."""
    with tempfile.TemporaryDirectory(prefix="device-lock-", dir=OPEN_TO_ALL) as name:
        Path(name).chmod(0o1777)
        yield Path(name)


def test_a_device_is_one_watchers_until_its_worker_ends(tmp_path: Path):
    first, second = lock(tmp_path), lock(tmp_path, "second")
    with first.take() as taken:
        worker = subprocess.Popen(["sleep", "60"], pass_fds=taken.descriptors)
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
    other = DeviceLock(LockFolders(str(tmp_path)), "MIG-1/2/3", label="other", run="second")
    with lock(tmp_path).take(), other.take():
        assert (tmp_path / "MIG-1_2_3.lock").exists()


def test_a_lock_file_that_was_tidied_away_is_made_again_and_locks(tmp_path: Path):
    first, second = lock(tmp_path), lock(tmp_path)
    with first.take():
        lock_file(tmp_path).unlink()
        # Whoever deletes the file of a lock that is held breaks it; what comes after holds again.
        with second.take(), pytest.raises(DeviceTaken):
            lock(tmp_path).take().__enter__()


def test_links_in_place_of_a_lock_are_refused_and_what_they_name_is_not_touched(tmp_path: Path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    here = lock(tmp_path)
    for link in (lock_file(tmp_path).symlink_to, lock_file(tmp_path).hardlink_to):
        link(precious)
        with pytest.raises(WorkerError, match="cannot lock the device by") as caught:
            here.take().__enter__()
        assert "--device-lock-dir" in (caught.value.hint or "")
        lock_file(tmp_path).unlink()
        here.withdraw()
    assert precious.read_text() == "precious"


def test_what_another_user_wrote_into_the_lock_is_shown_harmlessly(tmp_path: Path):
    here, waiting = lock(tmp_path), lock(tmp_path)
    for said in ("", "{", "[]", '{"watcher": "x"}', json.dumps({"watcher": 1, "worker": 2})):
        with here.take() as taken:
            os.pwrite(taken.descriptors[0], b" " * 80, 0)
            os.pwrite(taken.descriptors[0], said.encode(), 0)
            with pytest.raises(DeviceTaken, match="another process evaluates on it"):
                waiting.take().__enter__()
            waiting.withdraw()
    with here.take() as taken:
        hostile = {"watcher": 1, "worker": 2, "run": "\x1b[2J" + "x" * 500}
        os.pwrite(taken.descriptors[0], json.dumps(hostile).encode(), 0)
        with pytest.raises(DeviceTaken) as caught:
            waiting.take().__enter__()
    assert "\x1b" not in caught.value.message and len(caught.value.message) < 200


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to lock as another user")
def test_users_share_a_folder_that_either_of_them_made(open_folder: Path):
    folders = LockFolders(None, [open_folder])
    (ours,) = folders.usable()
    assert stat.S_IMODE(ours.stat().st_mode) == 0o1777
    umask = os.umask(0o077)
    try:
        first = DeviceLock(folders, "GPU-a", label="gpu:0", run="first")
        first.take().__enter__().note(1)  # leaves a file of ours behind; the descriptor is closed
    finally:
        os.umask(umask)
    with other_user(open_folder) as other:
        assert other.stdin and other.stdout
        assert other.stdout.readline() == f"GPU-a {ours}\n"
        with pytest.raises(DeviceTaken, match="the watcher of theirs"):
            first.take().__enter__()
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == f"GPU-b {ours}\n"
        theirs = DeviceLock(folders, "GPU-b", label="gpu:1", run="ours")
        with pytest.raises(DeviceTaken, match="the watcher of theirs"):
            theirs.take().__enter__()
    assert (ours / "GPU-b.lock").stat().st_uid == 65534
    with theirs.take():
        assert first.holder() is None


@pytest.fixture
def bases(open_folder: Path) -> list[Path]:
    """A folder that root alone may write, as newer systems keep `/run/lock`, and two for all."""
    folders = [open_folder / name for name in ("run-lock", "shm", "tmp")]
    for folder, mode in zip(folders, (0o755, 0o1777, 0o1777), strict=True):
        folder.mkdir()
        folder.chmod(mode)
    return folders


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to lock as another user")
def test_a_user_who_came_first_and_root_never_have_one_device_both(bases: list[Path]):
    root = DeviceLock(LockFolders(None, bases), "GPU-a", label="gpu:0", run="ours")
    with other_user(*bases) as other:
        assert other.stdin and other.stdout
        usable = [base / "checkpoint-watcher" for base in bases[1:]]
        assert other.stdout.readline() == f"GPU-a {usable[0]} {usable[1]}\n"
        with pytest.raises(DeviceTaken, match="the watcher of theirs"):
            root.take().__enter__()
        assert (holder := root.holder()) and (holder.run, holder.worker) == ("theirs", 99)
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline().startswith("GPU-b")
        with root.take():
            assert root.holder()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to lock as another user")
@pytest.mark.parametrize("root_folder", [True, False])
def test_root_who_came_first_and_a_user_never_have_one_device_both(
    bases: list[Path], root_folder: bool
):
    root = DeviceLock(LockFolders(None, bases), "GPU-a", label="gpu:0", run="ours")
    with root.take():
        if not root_folder:  # somebody tidied up, or a service sees another one
            shutil.rmtree(bases[0] / "checkpoint-watcher")
        with other_user(*bases) as other:
            assert other.stdout
            assert other.stdout.readline().startswith("waiting for GPU-a: the watcher of ours")
            assert root.is_wanted()


def test_whoever_has_one_of_the_folders_alone_meets_the_others_there(tmp_path: Path):
    bases = [tmp_path / name for name in ("a", "b", "c")]
    for base in bases:
        base.mkdir()
    some = [
        DeviceLock(LockFolders(None, seen), "GPU-a", label="gpu:0", run=f"run {number}")
        for number, seen in enumerate((bases, bases[1:], bases[2:], [bases[0], bases[2]]))
    ]
    for first in some:
        with first.take():
            for second in some:
                if second is first:
                    continue
                with pytest.raises(DeviceTaken, match=r"the watcher of run \d"):
                    second.take().__enter__()
                assert first.is_wanted()
                second.withdraw()
                assert not first.is_wanted()


def test_the_folders_are_all_that_may_be_written_and_no_links(tmp_path: Path):
    file, linked = tmp_path / "file", tmp_path / "linked"
    free, other = tmp_path / "free", tmp_path / "other"
    file.touch()
    for folder in (linked, free, other):
        folder.mkdir()
    (linked / "checkpoint-watcher").symlink_to(tmp_path)
    bases = [file, tmp_path / "missing", linked, free, other]
    made = [free / "checkpoint-watcher", other / "checkpoint-watcher"]
    assert LockFolders(None, bases).usable() == made
    assert LockFolders(None, bases[:3]).usable() == []
    assert LockFolders(str(tmp_path), bases).usable() == [tmp_path]
    gone = DeviceLock(LockFolders(None, bases[:3]), "GPU-a", label="gpu:0", run="ours")
    with pytest.raises(WorkerError, match="there is no folder for it any more"):
        gone.take().__enter__()
    assert not gone.is_wanted() and gone.holder() is None
