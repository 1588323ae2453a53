"""What varies from one training set-up to another, as interfaces.

A checkpoint comes from a source, `sources.local.LocalFolder` or `sources.bucket.Bucket`, and is
written in a format, `checkpoints.bundle_format.OD_API`; `sources.choice` says which. An evaluation
is of a kind, `evaluation.od_api.ObjectDetection`, and its workers run somewhere,
`evaluation.worker.Worker` on this machine, `evaluation.far.FarWorker` on another. The stages are
handed these and know no other way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from watcher.files.slices import Job, Progress, Work
from watcher.types import FoundCheckpoint, Pin, Verified


class CheckpointFormat(Protocol):
    """How a trainer names its checkpoints, what is in them, and how it goes on counting."""

    @property
    def stem(self) -> str:
        """What comes before the number in each name."""

    @property
    def counts_saves(self) -> bool:
        """True when the number in a name goes up by one with each save: one that is left out was
        saved and rotated away. False when it is the global step, which tells nothing of that.
        """

    def number(self, name: str) -> int | None:
        """Return the number in a checkpoint's name, None where it is no such name."""

    def name(self, number: int) -> str:
        """Return the name of a checkpoint."""

    def names(self, numbers: range) -> str:
        """Return what several that follow each other are called together."""

    def file(self, name: str) -> tuple[str, bool] | None:
        """Return whose a file is by its name, and whether it is the index; None for any other."""

    def is_temporary(self, name: str) -> bool:
        """Tell whether a trainer saves into a folder of this name before files get their names."""

    def is_placed(self, name: str) -> bool:
        """Tell whether a checkpoint may have this name in a board's folder: `ckpt-3-0a1b2c3d`."""

    def placed_file(self, name: str) -> str | None:
        """Return whose a file in a board's folder is by its name, None for any other."""

    def global_step(self, prefix: Path) -> int | None:
        """Read the global step alone; None when the checkpoint does not say.

        Raises:
            CorruptCheckpoint, OSError: it cannot be read.
        """

    def model_variables(self, index: bytes) -> Sequence[str]:
        """List the variables of the model in an index; there are none when it was saved untrained.

        Raises:
            CorruptCheckpoint: the index is damaged, or not finished yet.
        """

    def verifying(self, prefix: Path, index: bytes, progress: Progress) -> Work[Pin]:
        """Check every byte of a private copy, a few MB at a time; returns it as a pin.

        Raises:
            FileNotFoundError: it was deleted, before or meanwhile.
            IncompleteCheckpoint: it may be unfinished.
            CorruptCheckpoint: its bytes are not what its index says.
            OSError: it cannot be read.
        """


class Watching(Protocol):
    """What tells of new checkpoints. Each telling is a hint, and may be lost.

    Attributes:
        degraded: Why none can be relied on at the moment, None when they can.
    """

    degraded: str | None

    def ensure(self) -> bool:
        """Begin, or go on; True when it was in force since the last call."""

    def doubt(self, reason: str) -> None:
        """Take note that something was not told of."""

    def take_news(self) -> list[str]:
        """Return what happened since the last call, in order."""

    def take_announced(self) -> list[str]:
        """Return names of checkpoints that were there since the last call, as far as told."""

    def close(self) -> None:
        """End."""


class CheckpointSource(Protocol):
    """Where a trainer's checkpoints come from. Nothing is ever changed there.

    As a string it is what people call it. What a `signature` is made of is its own affair, an inode
    here, an ETag there: it is another when the files are.
    """

    @property
    def format(self) -> CheckpointFormat:
        """What the trainer writes."""

    def require(self, *, may_be_empty: bool) -> None:
        """Refuse what nothing will be found in before somebody does something about it.

        Args:
            may_be_empty: It may come into being later.

        Raises:
            ModelDirError: it cannot be reached at all.
        """

    @property
    def delay_seconds(self) -> float:
        """How long something may be there before `scan` tells of it."""

    @property
    def complete(self) -> bool:
        """False while there may be checkpoints that `scan` does not tell of yet."""

    def refresh(self) -> bool:
        """Have `scan` return what is there from now on; False while that takes, call again then."""

    def scan(self) -> list[FoundCheckpoint]:
        """List what is there now, whole or not, lowest number first.

        Raises:
            ModelDirError: it cannot be listed.
        """

    def still_there(self, name: str) -> bool:
        """Tell whether a checkpoint of this name is there."""

    def read_index(self, name: str) -> bytes:
        """Read the index of this name as it is now, whole or not.

        Raises:
            FileNotFoundError, CorruptCheckpoint, OSError: there is none, or none that can be read.
        """

    def unreadable(self, found: FoundCheckpoint) -> str | None:
        """Return what of a checkpoint may not be read and why, None when all of it may."""

    def identify(self, found: FoundCheckpoint) -> str:
        """Return the sha256 (hex) of its index as it is now.

        Raises:
            CorruptCheckpoint, OSError: it cannot be read.
        """

    def take(
        self, found: FoundCheckpoint, into: Path, verified: Verified | None, progress: Progress
    ) -> Work[Pin]:
        """Take a verified private copy, a few MB at a time; see `checkpoints.pin.pinning`.

        Raises:
            FileNotFoundError, IncompleteCheckpoint, CorruptCheckpoint: as `verifying`.
            PinError: it can be read, but not be kept.
        """

    def take_again(
        self, found: FoundCheckpoint, sha256: str, into: Path, verified: Verified | None
    ) -> Job[Pin] | None:
        """Begin to take a checkpoint that had a pin before, by the digest of its index.

        Returns:
            What is begun: rotation takes nothing of it any more. None where that is not there, or
            another by now, or damaged.

        Raises:
            OSError: it cannot be read now.
            PinError: it can be read, but not be kept now.
        """

    def settle(
        self, prefix: Path, into: Path, verified: Verified | None, progress: Progress
    ) -> Work[Pin]:
        """Verify what an earlier `take` left half-made, and give it its final place.

        Args:
            prefix: Where it is; its folder is the caller's to remove when this fails.
            into: Where pins are.
            verified: Gets the pin, so that a link to it needs no verification of its own.
            progress: Is kept up to date.

        Raises:
            FileNotFoundError, IncompleteCheckpoint, CorruptCheckpoint, OSError: as `verifying`.
        """

    def why_copies(self, into: Path) -> str | None:
        """Return why what is taken takes space of its own, None when nothing speaks for that."""

    def passed_over(self) -> list[tuple[str, str]]:
        """Return what looks like checkpoints and is none of ours: a word for the kind, and why."""

    def watch(self, wake: Callable[[], None]) -> Watching:
        """Return what calls `wake` when something new may be there, once it is made to begin."""


class Evaluator(Protocol):
    """A kind of evaluation: what its workers are started with, and told beyond the common."""

    @property
    def kind(self) -> str:
        """Its name in the evaluator protocol."""

    @property
    def command(self) -> Sequence[str]:
        """The program of a worker and its arguments."""

    @property
    def options(self) -> dict[str, Any]:
        """What `start` says to this kind alone."""


class Turn(Protocol):
    """A device that watchers evaluate on in turn."""

    def is_wanted(self) -> bool:
        """Return whether another watcher waits for it."""

    def withdraw(self) -> None:
        """Wait for it no longer."""


class Carrier(Protocol):
    """Where a worker runs: one worker, from its start to its end.

    Messages are those of `evaluation.messages`. Nothing here blocks for long but `stop`.
    """

    def send(self, message: msgspec.Struct) -> None:
        """Send one message.

        Raises:
            WorkerError: the worker is gone or does not read.
        """

    def receive(self) -> Iterator[msgspec.Struct]:
        """Yield the messages that have arrived, possibly none; what came before an error first.

        Raises:
            WorkerError: it ended, or sent something that is not a message.
        """

    def filenos(self) -> Sequence[int]:
        """File descriptors of which one becomes readable when the worker answers or dies."""

    def resident_bytes(self) -> int:
        """Return the memory the worker holds now, 0 where that cannot be told."""

    def step_back(self) -> None:
        """Let the worker have what others leave of the CPU, from now on."""

    def kill(self) -> None:
        """End the worker and whatever it started, at once."""

    def stop(self, timeout_seconds: float) -> None:
        """Ask the worker to end, wait that long, then kill what is left."""
