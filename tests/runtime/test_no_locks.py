"""A file system without locks, as Lustre and NFS may be mounted, gives one error that says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import need_strace
from watching import Watcher

WITHOUT = ["strace", "-f", "-qq", "-o", os.devnull, "-etrace=flock"]
SCRIPT = """
import sys
from pathlib import Path
from watcher.errors import WorkerError
from watcher.evaluation.device_lock import DeviceLock, LockFolders
from watcher.evaluation.worker import Worker
folder = Path(sys.argv[2])
try:
    if sys.argv[1] == "device":
        DeviceLock(LockFolders(str(folder)), "GPU-a0", label="gpu:0", run="r").take().__enter__()
    else:
        Worker(["true"], {}, folder / "worker.log")
except WorkerError as error:
    print(error.message, error.hint, sep="\\n")
"""


def refused(error: str) -> list[str]:
    need_strace()
    return [*WITHOUT, f"-einject=flock:error={error}"]


@pytest.mark.parametrize("error", ["ENOSYS", "ENOLCK"])
def test_the_watcher_says_where_locks_are_missing_and_where_to_put_them(
    watcher: Watcher, error: str
):
    watcher.prefix = refused(error)
    assert watcher.run() == 1
    said, hint = watcher.log.read_text().splitlines()[-2:]
    lock = watcher.database.parent / "lock"
    reason = {"ENOSYS": "Function not implemented", "ENOLCK": "No locks available"}[error]
    assert said == f"error: cannot lock {lock}: {reason}"
    assert hint.startswith(f"hint: {lock.parent} is on a file system without locks")
    assert "--state-dir" in hint


@pytest.mark.parametrize(
    ("what", "name", "flag"),
    [("device", "GPU-a0.next", "--device-lock-dir"), ("worker", "worker.lock", "--state-dir")],
)
def test_a_workers_locks_name_the_folder_and_the_flag(
    tmp_path: Path, what: str, name: str, flag: str
):
    command = [*refused("ENOSYS"), sys.executable, "-c", SCRIPT, what, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    message, hint = said.splitlines()
    assert message.endswith(f"{tmp_path / name}: Function not implemented")
    assert hint.startswith(f"{tmp_path} is on a file system without locks") and flag in hint
