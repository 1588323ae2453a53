"""Writing files where the file system cannot do all that others can."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from faults import need_strace

from watcher.files.atomic_io import fsync_folder

# Writes a file, makes it durable, and copies it where it cannot be linked.
WRITING = """
import sys
from pathlib import Path
from watcher.checkpoints.pin import taking_file
from watcher.files.atomic_io import replace_file
from watcher.files.slices import Progress, finish
folder = Path(sys.argv[1])
(folder / "trainer").write_bytes(b"trained")
replace_file(folder / "written", b"content", mode=0o644)
print(finish(taking_file(folder / "trainer", folder / "copied", Progress())))
"""


def write(folder: Path, *faults: str) -> subprocess.CompletedProcess[str]:
    need_strace()
    inject = [f"--inject={fault}" for fault in ("link,linkat:error=EPERM", *faults)]
    trace = "--trace=link,linkat,fsync,fchmod,utimensat"
    command = ["strace", "-f", "-qq", "-o", "/dev/null", trace, *inject]
    program = [sys.executable, "-c", WRITING, str(folder)]
    return subprocess.run([*command, *program], capture_output=True, text=True, timeout=60)


def test_a_folder_of_a_file_system_that_cannot_sync_folders_is_no_failure():
    fsync_folder(Path("/proc"))
    with pytest.raises(FileNotFoundError):
        fsync_folder(Path("/proc/none"))


@pytest.mark.parametrize("code", ["EINVAL", "EBADF", "EOPNOTSUPP", "ENOSYS"])
def test_what_a_file_system_has_not_is_done_without(tmp_path: Path, code: str):
    done = write(tmp_path, *(f"{call}:error={code}" for call in ("fsync", "fchmod", "utimensat")))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "copy\n"
    assert (tmp_path / "written").read_bytes() == b"content"
    assert (tmp_path / "copied").read_bytes() == b"trained"


def test_modes_and_times_that_are_all_one_are_left_as_they_are(tmp_path: Path):
    done = write(tmp_path, "fchmod,utimensat:error=EPERM")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "written").read_bytes() == b"content"


@pytest.mark.parametrize("call", ["fsync", "fchmod", "utimensat"])
def test_an_error_of_the_disk_stays_one(tmp_path: Path, call: str):
    done = write(tmp_path, f"{call}:error=EIO")
    assert done.returncode == 1
    assert "Input/output error" in done.stderr


def test_what_cannot_be_made_durable_because_the_disk_is_full_is_an_error(tmp_path: Path):
    assert "No space left" in write(tmp_path, "fsync:error=ENOSPC").stderr
    assert not (tmp_path / "written").exists()
