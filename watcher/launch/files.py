"""The log that the launcher opens for the trainer before it starts it, and what that ends with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from watcher.errors import ModelDirError
from watcher.launch.say import OURS

_END_BYTES = 16 << 10
_WORDS = 200


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
