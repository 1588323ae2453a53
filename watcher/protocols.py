"""What varies from one training set-up to another, as interfaces; one implementation each today.

An evaluation is of a kind, `evaluation.od_api.ObjectDetection`, and its workers run somewhere,
`evaluation.worker.Worker` on this machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec


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

    def kill(self) -> None:
        """End the worker and whatever it started, at once."""

    def stop(self, timeout_seconds: float) -> None:
        """Ask the worker to end, wait that long, then kill what is left."""
