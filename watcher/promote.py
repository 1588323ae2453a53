"""Promote: make `best/` show the board, such that at any instant what it names is whole.

The order is what keeps the promise: take and verify new files, make them durable, replace
`best.json` and `checkpoint` by rename, and only then remove what fell out. A crash between any
two steps leaves files that are not named yet or not named any more; the next call closes that.
Files that nobody promoted are reported and left alone.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from watcher import bundle
from watcher.data import Leader
from watcher.errors import CorruptCheckpoint, PinError
from watcher.files import fsync_file, fsync_folder, replace_file, write_new_file
from watcher.pin import take_file

STATE_FILE = "checkpoint"
BOARD_FILE = "best.json"
BOARD_SCHEMA = 1

_OURS = re.compile(r"(ckpt-[0-9]+(?:-[0-9a-f]{8})?)\.(?:index|data-[0-9]{5}-of-[0-9]{5})")
_WORKING = ".new"


@dataclass(frozen=True, slots=True)
class BoardText:
    """What `best.json` says beside the leaders: the run's identity and how it ranks."""

    run: str
    run_uuid: str
    metric: str
    mode: str


@dataclass(frozen=True, slots=True)
class Projection:
    """What a call of `project` found and did.

    Attributes:
        paths: Checkpoint id to its prefix inside `best/`.
        evicted: Names whose files are gone from `best/`.
        unknown: Names of files in `best/` that were not put there by us.
    """

    paths: dict[int, str]
    evicted: tuple[str, ...]
    unknown: tuple[str, ...]


def foreign_names(best_dir: Path, placed: Collection[str]) -> set[str]:
    """Return the checkpoint names of files in `best_dir` that we did not put there."""
    if not best_dir.is_dir():
        return set()
    matches = (_OURS.fullmatch(file.name) for file in best_dir.iterdir())
    return {match[1] for match in matches if match} - set(placed)


def project(
    best_dir: Path,
    leaders: Sequence[Leader],
    placed: Collection[str],
    text: BoardText,
    metrics: Mapping[int, Mapping[str, float | None]],
) -> Projection:
    """Make `best_dir` hold exactly the leaders, and its two state files name them.

    Args:
        best_dir: Created when missing.
        leaders: The board in order; each row has a pin, or already lies in `best_dir`.
        placed: Names that are ours in `best_dir`, those of the leaders among them.
        text: What else `best.json` says.
        metrics: Evaluation id to its overall metrics.

    Returns:
        Where each leader lies, and which foreign files were met.

    Raises:
        PinError: a leader could not be put in place; what `best_dir` named before still stands.
        OSError: a state file could not be written; likewise.
    """
    if not leaders and not best_dir.is_dir():
        return Projection(paths={}, evicted=(), unknown=())
    best_dir.mkdir(mode=0o755, exist_ok=True)
    for leader in leaders:
        _put(best_dir, leader)
    board = _board(best_dir, leaders, text, metrics)
    state = _state(leaders)
    if _differs(best_dir / BOARD_FILE, board) or _differs(best_dir / STATE_FILE, state):
        fsync_folder(best_dir)
        _write_states(best_dir, board, state if leaders else None)
    kept = {leader.name for leader in leaders}
    evicted = set(placed) - kept
    _evict(best_dir, evicted)
    return Projection(
        paths={leader.row.checkpoint_id: str(best_dir / leader.name) for leader in leaders},
        evicted=tuple(sorted(evicted)),
        unknown=_unknown(best_dir, kept),
    )


def _put(best_dir: Path, leader: Leader) -> None:
    target = best_dir / leader.name
    if _whole(target, leader.row.sha256):
        return
    if leader.row.pin is None:
        raise PinError(
            f"{leader.name} belongs into {best_dir} but its pin is gone",
            hint="its score stays in the history; the files cannot be brought back",
        )
    source = leader.row.pin
    working = best_dir / _WORKING
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(mode=0o700)
    try:
        _take_verified(source, working / leader.name, leader.row.sha256)
        # The index comes last: without it nobody takes the shards for a checkpoint.
        for file in sorted(working.iterdir(), key=lambda file: file.suffix == ".index"):
            fsync_file(file)
            file.rename(best_dir / file.name)
    except (OSError, CorruptCheckpoint) as error:
        raise PinError(
            f"cannot promote {leader.name} into {best_dir}: {error}",
            hint=f"check free space and permissions of {best_dir}",
        ) from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _take_verified(source: Path, target: Path, sha256: str) -> None:
    index = bundle.read_index(source)
    shards = bundle.parse_index(index).num_shards
    for shard in range(shards):
        take_file(
            source.with_name(bundle.shard_name(source.name, shard, shards)),
            target.with_name(bundle.shard_name(target.name, shard, shards)),
        )
    write_new_file(bundle.index_path(target), index, mode=0o644)
    if bundle.verify(target).sha256 != sha256:
        raise CorruptCheckpoint(f"the pin of {target.name} is not the checkpoint that was scored")


def _whole(prefix: Path, sha256: str) -> bool:
    # Checked by lengths and the index's digest alone: this runs at every look, and the bytes
    # were verified when they came here.
    try:
        index = bundle.read_index(prefix)
        if hashlib.sha256(index).hexdigest() != sha256:
            return False
        sizes = bundle.shard_sizes(bundle.parse_index(index))
        names = (bundle.shard_name(prefix.name, n, len(sizes)) for n in range(len(sizes)))
        found = [prefix.with_name(name).lstat() for name in names]
    except (OSError, CorruptCheckpoint):
        return False
    return all(
        stat.S_ISREG(status.st_mode) and status.st_size == size
        for status, size in zip(found, sizes, strict=True)
    )


def _board(
    best_dir: Path,
    leaders: Sequence[Leader],
    text: BoardText,
    metrics: Mapping[int, Mapping[str, float | None]],
) -> bytes:
    content: dict[str, Any] = {
        "schema": BOARD_SCHEMA,
        "run": text.run,
        "run_uuid": text.run_uuid,
        "metric": text.metric,
        "mode": text.mode,
        "checkpoints": [
            {
                "rank": leader.rank,
                "checkpoint": leader.name,
                "saved_as": leader.row.name,
                "global_step": leader.row.global_step,
                "score": leader.row.score,
                "sha256": leader.row.sha256,
                "evaluated_at": leader.row.evaluated_at,
                "metrics": metrics.get(leader.row.evaluation_id, {}),
            }
            for leader in leaders
        ],
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def _state(leaders: Sequence[Leader]) -> bytes:
    # tensorflow/python/training/checkpoint_state.proto in text form. Names pass the strict
    # pattern of discover, so nothing in them needs escaping.
    if not leaders:
        return b""
    lines = [f'model_checkpoint_path: "{leaders[0].name}"']
    # CheckpointManager keeps this list with the newest last; the best is ours.
    lines += [f'all_model_checkpoint_paths: "{leader.name}"' for leader in reversed(leaders)]
    return "\n".join(lines).encode() + b"\n"


def _write_states(best_dir: Path, board: bytes, state: bytes | None) -> None:
    replace_file(best_dir / BOARD_FILE, board, mode=0o644)
    if state is None:
        (best_dir / STATE_FILE).unlink(missing_ok=True)
    else:
        replace_file(best_dir / STATE_FILE, state, mode=0o644)


def _differs(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() != content
    except FileNotFoundError:
        return content != b""


def _evict(best_dir: Path, names: set[str]) -> None:
    if not names:
        return
    # The index last: as long as it stands, it tells what the shards beside it were.
    for file in sorted(best_dir.iterdir(), key=lambda file: file.suffix == ".index"):
        match = _OURS.fullmatch(file.name)
        if match and match[1] in names:
            file.unlink(missing_ok=True)


def _unknown(best_dir: Path, kept: set[str]) -> tuple[str, ...]:
    foreign = []
    for file in best_dir.iterdir():
        match = _OURS.fullmatch(file.name)
        if file.name in (STATE_FILE, BOARD_FILE, _WORKING) or (match and match[1] in kept):
            continue
        foreign.append(file.name)
    return tuple(sorted(foreign))
