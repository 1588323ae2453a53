"""Which device of this host a watcher elsewhere gets, and when."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable

from watcher.errors import ConfigError, WorkerError
from watcher.evaluation.device import Choice, choose
from watcher.evaluation.device_lock import DeviceLock, LockFolders, other_evaluators
from watcher.evaluation.frames import Open
from watcher.evaluation.gpus import list_gpus_for

_LOOKING_SECONDS = 0.1
_TAKEN_SECONDS = 1.0
# A driver may take many seconds to answer, and is asked by everybody who waits.
_FREE_SECONDS = 10.0


class Seat:
    """The device of an agent: looked for, waited for, and had by its worker.

    Attributes:
        wanted: What the watcher asked for.
        choice: The device, or why there is none; None while that is looked for.
        lock: That of a GPU that was asked for.
    """

    def __init__(self, wanted: Open) -> None:
        """Begin to look for it, in a thread."""
        self.choice: Choice | ConfigError | WorkerError | None = None
        self.lock: DeviceLock | None = None
        self.wanted = wanted
        self._ask_at, self._look_at = -math.inf, 0.0
        self._in_thread(self._find)

    @property
    def look_again_in(self) -> float:
        """After how many seconds there may be news, as long as no worker has it."""
        return _LOOKING_SECONDS if self.choice is None else _TAKEN_SECONDS

    def due(self, now: float) -> Choice | None:
        """Return the device if it is time to ask for it; `lock` is its then."""
        choice = self.choice
        if now < self._ask_at or not isinstance(choice, Choice):
            return None
        self._ask_at = now + _TAKEN_SECONDS
        if choice.is_gpu and (self.lock is None or self.lock.device != choice.device):
            self.withdraw()
            folders, run = LockFolders(self.wanted.lock_dir), self.wanted.run
            self.lock = DeviceLock(folders, choice.device, label=choice.label, run=run)
        return choice

    def is_taken(self, now: float) -> None:
        """Look for another one, where any would do.

        Whoever looked at the same moment found the same one, and another may be free by now.
        """
        if self.wanted.device == "auto" and now >= self._look_at:
            self._look_at = now + _FREE_SECONDS
            self._in_thread(self._find_free)

    def withdraw(self) -> None:
        """Wait no longer."""
        if self.lock:
            self.lock.withdraw()

    def _in_thread(self, look: Callable[[], None]) -> None:
        threading.Thread(target=look, daemon=True).start()

    def _find(self) -> None:
        self.choice = find(self.wanted)

    def _find_free(self) -> None:
        found = find(self.wanted, alone=True)
        if isinstance(found, Choice):
            self.choice = found


def find(wanted: Open, *, alone: bool = False) -> Choice | ConfigError | WorkerError:
    """Return the device, or why there is none: for good, or for now.

    Of `auto` it is a free one of those in CUDA_VISIBLE_DEVICES, as what placed the agent sets it,
    and never the CPU: whoever asks for another host's GPU has a CPU at home. A driver may take many
    seconds to answer.

    Args:
        alone: Of `auto` none on which another watcher evaluates, to share it in turn.
    """
    visible, device = os.environ.get("CUDA_VISIBLE_DEVICES"), wanted.device
    if device == "auto" and visible and visible.startswith("MIG-") and "," not in visible:
        device = visible  # instances are not listed, and this one is the agent's own
    try:
        listing = list_gpus_for(device)
        others = other_evaluators(wanted.lock_dir, listing)
        taken = others if alone else ()
        choice = choose(device, listing, visible=visible, taken=taken, evaluators=others)[0]
    except (ConfigError, WorkerError) as error:
        return error
    except OSError as error:
        return WorkerError(f"cannot look for a device: {error}")
    if device == "auto" and not choice.is_gpu:
        return WorkerError(f"auto: {choice.reason}")
    return choice
