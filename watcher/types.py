"""The values that travel between the stages. Data only: no behaviour, no input or output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

Files = tuple[tuple[int, ...], ...]
# What was verified byte by byte: digest of the index; device, inode, size and time of each shard.
# In a board's folder those of the index come first: while it is the same, it is not even read.
Verified = set[tuple[str, Files]]


class FoundCheckpoint(msgspec.Struct, frozen=True):
    """A checkpoint name seen in model_dir; nothing about its bytes is known yet.

    Attributes:
        name: File name of the checkpoint prefix, `ckpt-12`.
        save_counter: The number in the name. Whether it counts saves is the format's to say.
        prefix: Full path without suffix.
        signature: Changes whenever the index or a shard was replaced or rewritten: inode, size
            and modification time (ns) of the index, then of each shard.
    """

    name: str
    save_counter: int
    prefix: Path
    signature: Files

    @property
    def written_at(self) -> float:
        """When the index was written last, in seconds since the epoch by the file's own clock."""
        return self.signature[0][2] / 1e9

    @property
    def saved_at(self) -> float | None:
        """When the last shard was written, likewise; None where there are no files.

        It is the trainer's time in a pin too, whose index is ours.
        """
        files = self.signature[1:] or self.signature
        return max(file[2] for file in files) / 1e9 if files else None


class Pin(msgspec.Struct, frozen=True):
    """A verified private copy of a checkpoint that rotation cannot reach.

    Attributes:
        prefix: Checkpoint prefix inside `pins/`.
        method: How the data came there: `link`, `reflink` or `copy`.
        sha256: Hex digest of the `.index` file, the identity of the content.
        global_step: Training steps done, None when the checkpoint does not say.
        size_bytes: Index and shards together.
        model_variables: Number of variables of the model; 0 means untrained.
    """

    prefix: Path
    method: str
    sha256: str
    global_step: int | None
    size_bytes: int
    model_variables: int


class Queued(msgspec.Struct, frozen=True):
    """A pinned checkpoint that waits, as a queue policy sees it; a larger id was found later.

    `save` is which of its trainer's saves it is, from 1.
    """

    checkpoint_id: int
    name: str
    save: int
    global_step: int
    size_bytes: int


class Lease(msgspec.Struct, frozen=True):
    """The right to record one outcome of one checkpoint, until it expires or is taken back.

    Attributes:
        checkpoint_id: Or that of something aside, `watcher/evaluation/aside.py`.
    """

    checkpoint_id: int
    token: str
    name: str
    global_step: int
    prefix: Path
    attempt: int


class Evaluation(msgspec.Struct, frozen=True):
    """What the worker measured on one checkpoint.

    Attributes:
        metrics: Overall metrics by the OD API's names; None where the value was not finite.
        category_metrics: (metric name, category name, value).
        timings: Seconds by phase.
        machine: The parts of the machine by name, None where they are not known.
    """

    fingerprint: str
    images: int
    metrics: dict[str, float | None]
    category_metrics: tuple[tuple[str, str, float | None], ...] = ()
    timings: dict[str, float] = msgspec.field(default_factory=dict)
    device: str = ""
    versions: dict[str, str] = msgspec.field(default_factory=dict)
    details: dict[str, Any] = msgspec.field(default_factory=dict)
    machine: dict[str, str] | None = None

    @property
    def values(self) -> dict[tuple[str, str], float | None]:
        """Every recorded value by (metric, category), the category '' for an overall metric."""
        overall = {(name, ""): value for name, value in self.metrics.items()}
        return overall | {(name, of): value for name, of, value in self.category_metrics}


class Replicated(msgspec.Struct, frozen=True):
    """One metric of an evaluation on eval sets drawn anew from its own.

    Attributes:
        category: '' for an overall metric.
        objects: How many there are to find.
        low: Lower end of the interval, and `high` the upper one.
        values: Little-endian float32, one a replicate; None where they are not kept.
    """

    name: str
    category: str
    objects: int
    low: float
    high: float
    values: bytes | None


class Replicates(msgspec.Struct, frozen=True):
    """All of an evaluation.

    Attributes:
        scheme: How they are drawn: those of one scheme and as many images have the same draws.
        level: Of the intervals.
        influences: Little-endian float32, one an image; None where it is not told.
        image_names: What the images are called; None where it is not told.
    """

    scheme: str
    images: int
    count: int
    level: float
    metrics: tuple[Replicated, ...] = ()
    influences: bytes | None = None
    image_names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ScoredCheckpoint:
    """One row of the ledger as ranking and stopping see it.

    Attributes:
        score: The primary metric of this checkpoint, None when it is not a finite number.
        evaluated_at: ISO 8601, UTC.
        pin: Checkpoint prefix of its pin, None when the files were released.
        values: Recorded values that tie-breaks and vetoes read: (metric, category) to value, the
            category '' for an overall metric.
        not_finite: It failed because its weights or metrics are not finite; it has no score.
        generation: Which of the trainer's lives in this MODEL_DIR it is of, the first is 1.
    """

    checkpoint_id: int
    evaluation_id: int
    name: str
    global_step: int
    sha256: str
    score: float | None
    evaluated_at: str
    pin: Path | None = None
    values: Mapping[tuple[str, str], float | None] = field(default_factory=dict, compare=False)
    not_finite: bool = False
    generation: int = 1


class Leader(msgspec.Struct, frozen=True):
    """A checkpoint with a place on the board: its rank (1 is best) and its name in `best/`."""

    rank: int
    row: ScoredCheckpoint
    name: str
