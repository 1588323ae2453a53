"""Guard: ends a worker's process group when its agent is gone, `python guard.py`.

An agent that is killed ends nothing, and one that is stopped holds on to the device. This process
has a pipe from it. At each beat a line comes, a JSON object: `group`, the process group to end, 0
for none; `folder`, what to remove then, or null. The end of the pipe, or silence, ends the group;
a line with `done` before says that there is nothing to end. It is started by its path and imports
nothing of ours, to be as small as a Python can be.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from typing import Any

SILENT_SECONDS = 10.0
# So many in a row: a machine that was suspended looks silent once.
SILENCES = 3
ENDING_SECONDS = 5.0


def read(descriptor: int) -> Iterator[dict[str, Any] | None]:
    """Yields what each line says, None for a silence, until the end."""
    buffer = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], SILENT_SECONDS)
        if not ready:
            yield None
            continue
        data = os.read(descriptor, 65536)
        if not data:
            return
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


def end(group: int, folder: str | None) -> None:
    """Ends a process group, and removes a folder once nobody in it is left."""
    deadline = time.monotonic() + ENDING_SECONDS
    with contextlib.suppress(OSError):
        while group and time.monotonic() < deadline:
            os.killpg(group, signal.SIGKILL)
            time.sleep(0.05)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Watches until the agent ends."""
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    agent, silences = os.getppid(), 0
    known: dict[str, Any] = {}
    for said in read(0):
        silences = 0 if said else silences + 1
        known = said or known
        if silences == SILENCES:
            if os.getppid() == agent:
                os.kill(agent, signal.SIGKILL)
            break
    if not known.get("done"):
        end(known.get("group", 0), known.get("folder"))


if __name__ == "__main__":
    main()
