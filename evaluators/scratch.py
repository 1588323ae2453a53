"""A folder for this process alone, removed after it however it ends.

A worker is ended by SIGKILL or `os._exit`, which run no cleanup, and an eval set can take
gigabytes. So each process locks its folder, and the next one removes those nobody holds.
"""

import fcntl
import os
import pathlib
import shutil
import tempfile

PREFIX = "checkpoint-watcher-eval-set-"
LOCK = "lock"


class Scratch:
    """A new folder under the system's temporary folder; those left by dead processes are removed.

    Attributes:
        path: the folder.
    """

    def __init__(self):
        _remove_abandoned()
        self.path = pathlib.Path(tempfile.mkdtemp(prefix=PREFIX))
        self._handle = (self.path / "unlocked").open("w")
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        # It gets its name only once it is locked: no other process can see it free.
        (self.path / "unlocked").rename(self.path / LOCK)


def _remove_abandoned():
    for folder in pathlib.Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        try:
            if folder.lstat().st_uid != os.getuid():
                continue
            with (folder / LOCK).open("r+") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(str(folder), ignore_errors=True)
        except OSError:  # held by a living process, or gone meanwhile
            continue
