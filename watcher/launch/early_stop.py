"""An early stop: whether it is asked for, and what it waits for before the trainer is ended."""

from __future__ import annotations

import signal
from collections.abc import Callable

from watcher.launch.folder_lock import Heirs
from watcher.launch.group import Group
from watcher.launch.saves import Checkpoints, Mark, SaveWatch, anew
from watcher.launch.say import Teller
from watcher.launch.sentinel import Sentinel

LOOK_SECONDS = 0.5
CLOSE_LOOK_SECONDS = 0.05
# For the next checkpoint, which may take an hour, where a look is a server's work.
_FAR_LOOK_SECONDS = 1.0
# A trainer that hangs in the kernel does not hold still, and is not to train on for that.
_HOLDS = 10
# A save that takes no longer needs no words.
_TOLD_SECONDS = 5.0


class EarlyStop:
    """What comes of the sentinel in the life of one trainer; made before that is started."""

    def __init__(
        self,
        sentinel: Sentinel,
        checkpoints: Checkpoints,
        saves: SaveWatch,
        say: Teller,
        *,
        at_checkpoint: bool,
        is_far: bool,
        steady: Callable[[], float],
    ) -> None:
        """Look at nothing yet.

        Args:
            sentinel: Of the run.
            checkpoints: Of the folder that the trainer saves into.
            saves: Tells of its saves in progress.
            say: Tells the user.
            at_checkpoint: The next checkpoint is waited for.
            is_far: Each look asks a server for what is in MODEL_DIR.
            steady: A clock that nobody sets.
        """
        self._sentinel = sentinel
        self._checkpoints = checkpoints
        self._saves = saves
        self._say = say
        self._at_checkpoint = at_checkpoint
        self._is_far = is_far
        self._steady = steady
        self._asked: dict[str, Mark] | None = None  # what was complete when it was
        self._is_close = False  # a save has begun, or nothing but its end is waited for
        self._holds = 0
        self._waits_since: float | None = None
        self._told = False

    @property
    def look_seconds(self) -> float:
        """How long to wait until the next look."""
        if self._asked is None:
            return LOOK_SECONDS
        if self._is_close:
            return CLOSE_LOOK_SECONDS
        return _FAR_LOOK_SECONDS if self._is_far else LOOK_SECONDS

    def is_sent(self, trainer: Group, heirs: Heirs) -> bool:
        """Look; send SIGTERM if the trainer is to end, unless there is something to wait for.

        Args:
            trainer: As it was started.
            heirs: All of its processes, those too that are in another group by now.

        Returns:
            Whether it was sent.

        Raises:
            OSError: MODEL_DIR cannot be listed.
        """
        self._asked = self._obeyed(self._asked)
        return self._asked is not None and self._may_end(trainer, heirs, self._asked)

    def _obeyed(self, asked: dict[str, Mark] | None) -> dict[str, Mark] | None:
        """Return what was complete when this run's sentinel appeared, None while it is away."""
        verdict = self._sentinel.look()
        if verdict.kind == "stale":
            self._say.once(f"{self._sentinel.path} is ignored: {verdict.message}")
        if verdict.kind != "valid":
            if asked is not None:
                self._say("the early stop was withdrawn: the training goes on")
            return None
        if asked is None:
            asked = self._checkpoints.complete()
            until = "at its next checkpoint" if self._at_checkpoint else "now"
            self._say(f"early stop, the trainer ends {until}: {verdict.message}")
        return asked

    def _may_end(self, trainer: Group, heirs: Heirs, asked: dict[str, Mark]) -> bool:
        saving = self._saves.waited_for(self._steady())
        is_new = not self._at_checkpoint or bool(anew(self._checkpoints.whole, asked))
        self._is_close = is_new or bool(saving)
        if not is_new:
            return False
        if saving:
            self._tell_of_waiting(saving)
            return False
        self._waits_since = None
        # A save may begin between a look and the signal, so the last look is at a trainer that
        # does not move.
        with trainer.held() as stopped, heirs.held() as all_stopped:
            self._holds += 1
            at_rest = (stopped and all_stopped) or self._holds >= _HOLDS
            if self._saves.in_progress(self._steady()) or not at_rest:
                return False
            trainer.send(signal.SIGTERM)
            return True

    def _tell_of_waiting(self, saving: list[str]) -> None:
        now = self._steady()
        self._waits_since = now if self._waits_since is None else self._waits_since
        long = now - self._waits_since >= min(_TOLD_SECONDS, self._saves.patience_seconds / 2)
        if long and not self._told:
            self._told = True
            self._say(f"the early stop waits for a save in progress: {'; '.join(saving)}")
