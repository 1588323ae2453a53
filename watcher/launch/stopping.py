"""Ends a trainer: its process group, and then what has left that."""

from __future__ import annotations

import signal
from collections.abc import Callable

from watcher.launch.early_stop import CLOSE_LOOK_SECONDS, LOOK_SECONDS
from watcher.launch.folder_lock import FolderLock, Heirs
from watcher.launch.group import Group
from watcher.launch.saves import SaveWatch
from watcher.launch.say import Teller

# A wrapper that was ended may have passed the signal on, and what it started be ending by itself.
_BY_ITSELF_SECONDS = 2.0
# What SIGKILL does not end within this is not ours to end, or hangs in the kernel.
_KILLED_SECONDS = 10.0


class Stopping:
    """How a trainer is ended, at an early stop and before it is started again."""

    def __init__(
        self,
        grace_seconds: float,
        turn: Callable[[float], None],
        say: Teller,
        is_hurried: Callable[[], bool],
        steady: Callable[[], float],
    ) -> None:
        """End nothing yet.

        Args:
            grace_seconds: Between SIGTERM and SIGKILL.
            turn: Waits so many seconds at most and does meanwhile what there is to do.
            say: Tells the user.
            is_hurried: Tells whether somebody wants the end now.
            steady: A clock that nobody sets.
        """
        self._grace_seconds = grace_seconds
        self._turn = turn
        self._say = say
        self._is_hurried = is_hurried
        self._steady = steady

    def end(self, trainer: Group) -> None:
        """Wait for the whole group to end after SIGTERM, as long as it has; then SIGKILL."""
        if trainer.poll() is not None:
            trainer.send(signal.SIGTERM)
        deadline = self._steady() + self._grace_seconds
        while not trainer.is_empty():
            if self._steady() >= deadline:
                self._say.once("the trainer did not end in time and is killed")
                trainer.send(signal.SIGKILL)
                deadline = self._steady() + LOOK_SECONDS
            self._turn(CLOSE_LOOK_SECONDS)

    def end_heirs(self, heirs: Heirs, lock: FolderLock, saves: SaveWatch) -> bool:
        """End what has left the group, never in the middle of a save.

        Args:
            heirs: Those who inherited the lock.
            lock: Which they inherited; it is ours alone again where none of them is left.
            saves: Tells of saves in progress.

        Returns:
            Whether nobody of the trainer's is left, known by the lock.
        """
        if not self._has_gone(heirs, _BY_ITSELF_SECONDS):
            who = ", ".join(map(str, heirs.members()))
            outside = f"outside of its process group ({who})"
            self._say(f"the trainer goes on {outside} and is ended there")
            while not heirs.is_empty() and not self._is_sent(heirs, saves):
                self._turn(CLOSE_LOOK_SECONDS)
            if not self._has_gone(heirs, self._grace_seconds):
                self._say.once("the trainer did not end in time and is killed")
                heirs.send(signal.SIGKILL)
                self._has_gone(heirs, _KILLED_SECONDS)
        # The last threads of a process may hold it for a while after it seems to have ended.
        seconds = max(self._grace_seconds, _BY_ITSELF_SECONDS)
        return self._comes(lambda: not lock.is_held_elsewhere(), seconds)

    def _is_sent(self, heirs: Heirs, saves: SaveWatch) -> bool:
        """Send SIGTERM unless a save is in progress, or cannot be told of and nobody hurries."""
        try:
            if self._is_hurried():
                heirs.send(signal.SIGTERM)
                return True
            if saves.in_progress(self._steady()):
                return False
            with heirs.held():
                if saves.in_progress(self._steady()):
                    return False
                heirs.send(signal.SIGTERM)
        except OSError as error:
            self._say.once(f"cannot look for a save in progress: {error}")
            return False
        return True

    def _has_gone(self, heirs: Heirs, seconds: float) -> bool:
        return self._comes(heirs.is_empty, seconds)

    def _comes(self, condition: Callable[[], bool], seconds: float) -> bool:
        deadline = self._steady() + seconds
        while not (came := condition()) and self._steady() < deadline:
            self._turn(CLOSE_LOOK_SECONDS)
        return came
