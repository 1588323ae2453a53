"""Promote: the two files that name what a board's folder holds, and what else lies there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import msgspec

from watcher.files.atomic_io import fsync_folder, is_half_written, read_regular, replace_file
from watcher.promotion.placing import WORKING, Contents
from watcher.protocols import CheckpointFormat
from watcher.types import Leader

STATE_FILE = "checkpoint"
BOARD_FILE = "best.json"
KEPT_FILE = "kept.json"
BOARD_SCHEMA = 1


class Entry(msgspec.Struct, kw_only=True, frozen=True):
    """One checkpoint as `best.json` tells of it."""

    rank: int
    checkpoint: str
    saved_as: str
    global_step: int
    generation: int = 1
    score: float | None
    sha256: str
    evaluated_at: str
    metrics: dict[str, float | None]
    # In `kept.json`, why it is there.
    kept: str | msgspec.UnsetType = msgspec.UNSET


class BoardFile(msgspec.Struct, kw_only=True, frozen=True):
    """What `best.json` says: the run's identity, how it ranks, and the checkpoints, best first."""

    schema: int = BOARD_SCHEMA
    run: str
    run_uuid: str
    board: str = "best"
    metric: str
    mode: str
    fingerprint: str | None = None
    checkpoints: tuple[Entry, ...]


def read_board(folder: Path, file: str = BOARD_FILE) -> BoardFile | None:
    """Read `best.json`, which all may read; None when there is none, or none of ours."""
    try:
        return msgspec.json.decode(read_regular(folder / file), type=BoardFile)
    except (OSError, msgspec.DecodeError):
        return None


def foreign_names(contents: Contents, placed: Collection[str]) -> set[str]:
    """Return the checkpoint names of files in a folder that we did not put there."""
    return contents.checkpoints.keys() - set(placed)


def write_board(
    folder: Path,
    file: str,
    board: BoardFile,
    leaders: Sequence[Leader],
    metrics: Mapping[int, Mapping[str, float | None]],
    reasons: Mapping[int, str] = MappingProxyType({}),
) -> None:
    """Make the two files name the leaders and nothing else.

    Args:
        folder: Holds each leader, whole.
        file: Name of the JSON file.
        board: What else that says; its own checkpoints do not count.
        leaders: The board in order.
        metrics: Evaluation id to its overall metrics.
        reasons: Checkpoint id to why it is kept, where that is not its score.

    Raises:
        OSError: a file could not be written; what was named before still stands.
    """
    entries = tuple(_entry(leader, metrics, reasons) for leader in leaders)
    board = msgspec.structs.replace(board, checkpoints=entries)
    content = msgspec.json.format(msgspec.json.encode(board), indent=2) + b"\n"
    state, board_file, state_file = _state(leaders), folder / file, folder / STATE_FILE
    if not (_differs(board_file, content) or _differs(state_file, state)):
        return
    fsync_folder(folder)
    replace_file(board_file, content, mode=0o644)
    if leaders:
        replace_file(state_file, state, mode=0o644)
    else:
        state_file.unlink(missing_ok=True)


def _entry(
    leader: Leader,
    metrics: Mapping[int, Mapping[str, float | None]],
    reasons: Mapping[int, str],
) -> Entry:
    row = leader.row
    return Entry(
        rank=leader.rank,
        checkpoint=leader.name,
        saved_as=row.name,
        global_step=row.global_step,
        generation=row.generation,
        score=row.score,
        sha256=row.sha256,
        evaluated_at=row.evaluated_at,
        metrics=dict(metrics.get(row.evaluation_id, {})),
        kept=reasons.get(row.checkpoint_id, msgspec.UNSET),
    )


def _state(leaders: Sequence[Leader]) -> bytes:
    # tensorflow/python/training/checkpoint_state.proto in text form. Names pass the strict
    # pattern of discover, so nothing in them needs escaping.
    if not leaders:
        return b""
    lines = [f'model_checkpoint_path: "{leaders[0].name}"']
    # CheckpointManager keeps this list with the newest last; the best is ours.
    lines += [f'all_model_checkpoint_paths: "{leader.name}"' for leader in reversed(leaders)]
    return "\n".join(lines).encode() + b"\n"


def _differs(path: Path, content: bytes) -> bool:
    try:
        return read_regular(path) != content
    except FileNotFoundError:
        return content != b""
    except OSError:
        return True  # whatever lies there, it is not what should


def evict(folder: Path, names: Collection[str], format: CheckpointFormat) -> None:
    """Delete the checkpoints of these names."""
    if not names:
        return
    # The index last: as long as it stands, it tells what the shards beside it were.
    for file in sorted(folder.iterdir(), key=lambda file: file.suffix == ".index"):
        if format.placed_file(file.name) in names:
            file.unlink(missing_ok=True)


def unknown_files(
    contents: Contents, board_file: str, placed: Collection[str], format: CheckpointFormat
) -> list[str]:
    """Return the names of files that are neither placed by us nor ours otherwise."""
    foreign = []
    for name in contents.files:
        if name in (STATE_FILE, board_file, WORKING) or format.placed_file(name) in placed:
            continue
        if any(is_half_written(name, final) for final in (STATE_FILE, board_file)):
            continue
        foreign.append(name)
    return sorted(foreign)
