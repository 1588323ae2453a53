"""What the launcher itself tells, on the stderr that it shares with the trainer."""

from __future__ import annotations

import os
import select
import time

from watcher.database_file import iso

_PATIENCE_SECONDS = 1.0


def say(text: str) -> None:
    """Write one line to stderr, or lose it: a reader that is gone or does not read ends nothing."""
    line = f"{iso(time.time())} [launcher ] {text}\n".encode(errors="replace")
    try:
        if select.select([], [2], [], _PATIENCE_SECONDS)[1]:
            os.write(2, line[: select.PIPE_BUF])
    except (OSError, ValueError):
        pass
