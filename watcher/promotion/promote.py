"""Promote: the two files that name what a board's folder holds, and what else lies there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from watcher.files.atomic_io import fsync_folder, is_half_written, read_regular, replace_file
from watcher.promotion.placing import OURS, WORKING, Contents
from watcher.types import Leader

STATE_FILE = "checkpoint"
BOARD_FILE = "best.json"
BOARD_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class BoardText:
    """What `best.json` says beside the leaders: the run's identity and how it ranks.

    Attributes:
        file: Name of the JSON file.
    """

    run: str
    run_uuid: str
    board: str
    metric: str
    mode: str
    fingerprint: str | None
    file: str = BOARD_FILE


def foreign_names(contents: Contents, placed: Collection[str]) -> set[str]:
    """Return the checkpoint names of files in a folder that we did not put there."""
    return contents.checkpoints.keys() - set(placed)


def write_board(
    best_dir: Path,
    leaders: Sequence[Leader],
    text: BoardText,
    metrics: Mapping[int, Mapping[str, float | None]],
) -> None:
    """Make `best.json` and `checkpoint` name the leaders and nothing else.

    Args:
        best_dir: Holds each leader, whole.
        leaders: The board in order.
        text: What else `best.json` says.
        metrics: Evaluation id to its overall metrics.

    Raises:
        OSError: a file could not be written; what was named before still stands.
    """
    board, state = _board(leaders, text, metrics), _state(leaders)
    board_file, state_file = best_dir / text.file, best_dir / STATE_FILE
    if not (_differs(board_file, board) or _differs(state_file, state)):
        return
    fsync_folder(best_dir)
    replace_file(board_file, board, mode=0o644)
    if leaders:
        replace_file(state_file, state, mode=0o644)
    else:
        state_file.unlink(missing_ok=True)


def _board(
    leaders: Sequence[Leader],
    text: BoardText,
    metrics: Mapping[int, Mapping[str, float | None]],
) -> bytes:
    content: dict[str, Any] = {
        "schema": BOARD_SCHEMA,
        "run": text.run,
        "run_uuid": text.run_uuid,
        "board": text.board,
        "metric": text.metric,
        "mode": text.mode,
        "fingerprint": text.fingerprint,
        "checkpoints": [
            {
                "rank": leader.rank,
                "checkpoint": leader.name,
                "saved_as": leader.row.name,
                "global_step": leader.row.global_step,
                "generation": leader.row.generation,
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


def _differs(path: Path, content: bytes) -> bool:
    try:
        return read_regular(path) != content
    except FileNotFoundError:
        return content != b""
    except OSError:
        return True  # whatever lies there, it is not what should


def evict(best_dir: Path, names: Collection[str]) -> None:
    """Delete the checkpoints of these names."""
    if not names:
        return
    # The index last: as long as it stands, it tells what the shards beside it were.
    for file in sorted(best_dir.iterdir(), key=lambda file: file.suffix == ".index"):
        match = OURS.fullmatch(file.name)
        if match and match[1] in names:
            file.unlink(missing_ok=True)


def unknown_files(contents: Contents, board_file: str, placed: Collection[str]) -> list[str]:
    """Return the names of files that are neither placed by us nor ours otherwise."""
    foreign = []
    for name in contents.files:
        match = OURS.fullmatch(name)
        if name in (STATE_FILE, board_file, WORKING) or (match and match[1] in placed):
            continue
        if any(is_half_written(name, final) for final in (STATE_FILE, board_file)):
            continue
        foreign.append(name)
    return sorted(foreign)
