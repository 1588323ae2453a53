"""Space: whether the disk has room for what will be kept and what may wait. Pure but for `look`."""

from __future__ import annotations

import msgspec

from watcher.doctor.finding import Finding, Severity, sizes


class Demand(msgspec.Struct, frozen=True):
    """What a run may come to hold.

    Attributes:
        checkpoint_bytes: Size of the largest checkpoint, None before the first.
        kept: Places on all boards and in kept/; None when there is no limit.
        held: Checkpoints that lie there or wait already.
        waiting: Checkpoints that wait for their evaluation.
        max_waiting_bytes: What may wait at most, None for no limit.
        present: Checkpoints of the trainer in MODEL_DIR.
        expected: Checkpoints of the whole training, None when unknown.
        trainer_keeps: Checkpoints that the trainer leaves, None when it deletes none.
    """

    checkpoint_bytes: int | None
    kept: int | None
    held: int = 0
    waiting: int = 0
    max_waiting_bytes: int | None = None
    present: int = 0
    expected: int | None = None
    trainer_keeps: int | None = 7


def room(demand: Demand, free: int) -> list[Finding]:
    """Compare what is free with what the trainer's own, best/ and the queue may come to."""
    size = demand.checkpoint_bytes
    if not size:
        text = f"{sizes(free)} are free; how large a checkpoint is shows with the first one"
        return [Finding("disk space", "note", text)]
    # The trainer writes one more before it deletes the oldest.
    own = demand.expected if demand.trainer_keeps is None else demand.trainer_keeps + 1
    trainers = max(0, (own or 0) - demand.present)
    kept = demand.kept if demand.kept is not None else demand.expected
    if kept is None:
        text = f"every checkpoint ({sizes(size)}) is kept, {sizes(free)} are free: room for"
        room_for = f"{text} {free // size} more"
        return [Finding("disk space", "note", room_for)]
    queue = max(2, demand.waiting) * size
    if demand.max_waiting_bytes is not None:
        queue = max(2 * size, min(queue, demand.max_waiting_bytes))
    needed = max(0, kept - demand.held) * size + trainers * size + queue
    theirs = demand.trainer_keeps if demand.trainer_keeps is not None else demand.expected or "own"
    parts = (
        f"{sizes(free)} are free; the trainer's {theirs}, {kept} kept and"
        f" {max(2, demand.waiting)} waiting checkpoints of {sizes(size)} may still take"
        f" {sizes(needed)}"
    )
    if free >= needed:
        return [Finding("disk space", "ok", parts)]
    remedy = "free some, lower --top-k, set --max-pinned-bytes, or put MODEL_DIR elsewhere"
    severity: Severity = "error" if free < 2 * size else "warning"
    return [Finding("disk space", severity, parts, remedy)]
