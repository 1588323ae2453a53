"""What the launcher opens for the trainer before it starts it: the lock of model_dir, a log."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from watcher.errors import AlreadyRunning, ModelDirError
from watcher.launch.say import OURS

_END_BYTES = 16 << 10
_WORDS = 200


def lock_folder(folder: Path, say: Callable[[str], None]) -> int | None:
    """Make model_dir if need be and lock it, for the trainer that inherits the descriptor.

    The lock ends with the last process that holds it, so it outlives a killed launcher as long as
    its trainer lives.

    Returns:
        The descriptor, None where the file system has no such locks.

    Raises:
        AlreadyRunning: somebody holds it.
        ModelDirError: the folder cannot be made or opened.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ModelDirError(
            f"cannot make or open model_dir {folder}: {error.strerror}",
            hint="it is the folder given to the trainer as --model_dir",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise AlreadyRunning(
            f"a trainer that `checkpoint-watcher train` started is at work in {folder}",
            hint=f"two would overwrite each other's checkpoints; `fuser -v {folder}` names it",
        ) from error
    except OSError as error:
        os.close(descriptor)
        say(f"cannot lock {folder} ({error.strerror}): a second trainer would not be noticed")
        return None
    return descriptor


def open_log(path: str) -> IO[bytes]:
    """Open a file to append to; raises ModelDirError when that cannot be done."""
    try:
        return Path(path).open("ab")
    except OSError as error:
        raise ModelDirError(
            f"cannot open trainer_log ({path}): {error.strerror}",
            hint="it is a file that the trainer's output is appended to",
        ) from error


def last_words(path: str) -> str:
    """Return the last line of a log that is not the launcher's own, shortened; "" without one."""
    try:
        with Path(path).open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _END_BYTES, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    told = [line.strip() for line in lines if line.strip() and OURS not in line]
    return told[-1][:_WORDS] if told else ""
