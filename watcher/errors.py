"""Every error the daemon raises on purpose; only the command line prints them."""

from __future__ import annotations


class WatcherError(Exception):
    """Something the operator can act on: a sentence that says what, and a hint what to do next."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(WatcherError):
    """Raised when a setting is missing, unknown, of the wrong type or outside its range."""


class ModelDirError(WatcherError):
    """Raised when model_dir does not exist or cannot be read."""


class StoreError(WatcherError):
    """Raised when the database cannot be opened, written or understood."""


class StoreBusy(StoreError):
    """Raised when another program holds the database's lock; it works again when that lets go."""


class StoreRefused(StoreError):
    """Raised when the database takes no such values: the fault is theirs, and not the disk's."""


class StoreLost(StoreError):
    """Raised when the database was deleted, replaced or damaged: nothing can be recorded in it."""


class AlreadyRunning(WatcherError):
    """Raised when another daemon holds the lock of this model_dir."""


class ListenError(WatcherError):
    """Raised when the address for health and metrics cannot be listened on."""


class WebError(WatcherError):
    """Raised when the web page cannot be served: no Datasette, or it does not start or ended."""


class CorruptCheckpoint(WatcherError):
    """Raised when a checkpoint's bytes are not what its index says; the message is the reason."""


class IncompleteCheckpoint(CorruptCheckpoint):
    """Raised when a checkpoint may only be unfinished: no whole index yet, or a shard not there."""


class PinError(WatcherError):
    """Raised when a checkpoint could neither be linked nor copied into the pins."""


class LeaderLost(PinError):
    """Raised when neither best/ nor the pins hold a promoted checkpoint any more."""

    def __init__(self, checkpoint_id: int, message: str) -> None:
        super().__init__(
            message, hint="its score stays in the history; the files cannot be brought back"
        )
        self.checkpoint_id = checkpoint_id


class WorkLeft(WatcherError):
    """Raised when a run that was to end once all is done ended with something it cannot do."""


class WorkerError(WatcherError):
    """Raised when the evaluation worker could not be started, died, hung or spoke nonsense."""


class WorkerStillThere(WorkerError):
    """Raised when an earlier worker of the same run has not ended yet, so none may be started."""


class DeviceTaken(WorkerStillThere):
    """Raised when another watcher evaluates on the device, so that it is not our turn."""


class HostTrouble(WorkerError):
    """Raised when another host cannot be reached, or has not what an evaluation needs there.

    No checkpoint is at fault, and no start: the host is tried again as long as the run lasts.
    """


class WorkerRefused(WatcherError):
    """Raised when the worker itself reported at start-up that it cannot evaluate this set-up."""

    def __init__(self, code: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code
