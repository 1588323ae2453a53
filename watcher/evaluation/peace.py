"""Peace: how an evaluation gives way to a trainer on the same CPU."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NICEST = 19
# Seconds to rest for each second of passes beside a trainer, and under `--peace max`.
REST, MOST_REST = 1.0, 2.0
# So many times as long may an evaluation that gives way be without progress.
SLOWER = 5
# How often to look for a trainer while there is none.
_TRAINER_SECONDS = 30.0
# linux/ioprio.h: a process group, and the class of those who get the disk when nobody else asks.
_IOPRIO_WHO_PGRP, _IDLE = 2, 3 << 13
# ioprio_set has no function in the C library.
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}


@dataclass(slots=True)
class Peace:
    """Whether the workers of a device leave the CPU to others.

    Attributes:
        wanted: Says whether they are to; asked now and then.
        rest: How many seconds one rests then for each second of passes.
    """

    wanted: Callable[[], bool] = lambda: False
    rest: float = 0.0
    _asked_at: float = -math.inf

    def asks(self, now: float) -> bool:
        """True when a worker that has not stepped back is to do so now."""
        if now < self._asked_at + _TRAINER_SECONDS:
            return False
        asks = self.wanted()
        # The next worker is asked for anew, at once.
        self._asked_at = -math.inf if asks else now
        return asks


def step_back(group: int) -> None:
    """Let a process group have what others leave of the CPU and of the disk, all its threads.

    Linux weighs sessions first where it groups by them (autogroup), and there niceness counts among
    the processes of one only: so the session becomes as nice, which the group leads.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PGRP, group, NICEST)
    with contextlib.suppress(OSError):
        Path(f"/proc/{group}/autogroup").write_text(str(NICEST))
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PGRP, group, _IDLE)
