"""Promote: make `best/` show the board, such that at any instant what it names is whole.

The order is what keeps the promise: take and verify new files and make them durable (`placing`),
replace `best.json` and `checkpoint` by rename, and only later remove what fell out: somebody may
just have read its name. A crash between any two steps leaves files that are not named yet or not
named any more; the next call closes that. Files that nobody promoted are reported and left alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from watcher.checkpoints.naming import OD_API_NAMES
from watcher.checkpoints.pin import Verified
from watcher.files.atomic_io import fsync_folder, is_half_written, read_regular, replace_file
from watcher.promotion.placing import WORKING, Contents, Placing, look_into
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


@dataclass(frozen=True, slots=True)
class Projection:
    """What a call of `project` found and did.

    Attributes:
        paths: Checkpoint id to its prefix inside `best/`.
        leaving: Names that are not on the board, whose files are still there.
        evicted: Names whose files are gone from `best/`.
        unknown: Names of files in `best/` that were not put there by us.
        before: What lay in `best/` before anything was done.
    """

    paths: dict[int, str]
    leaving: tuple[str, ...]
    evicted: tuple[str, ...]
    unknown: tuple[str, ...]
    before: Contents


def foreign_names(contents: Contents, placed: Collection[str]) -> set[str]:
    """Return the checkpoint names of files in a folder that we did not put there."""
    return contents.checkpoints.keys() - set(placed)


def project(
    best_dir: Path,
    leaders: Sequence[Leader],
    placed: Collection[str],
    text: BoardText,
    metrics: Mapping[int, Mapping[str, float | None]],
    *,
    evict: Collection[str],
    verified: Verified,
    placing: Placing | None = None,
    until: float = math.inf,
) -> Projection:
    """Make `best_dir` hold the leaders, and its two state files name them and nothing else.

    Args:
        best_dir: Created when missing.
        leaders: The board in order; each row has a pin, or already lies in `best_dir`.
        placed: Names that are ours in `best_dir`, those of the leaders among them.
        text: What else `best.json` says.
        metrics: Evaluation id to its overall metrics.
        evict: Names that left the board so long ago that nobody can be reading them.
        verified: What need not be verified again; added to.
        placing: What the last call left unfinished. Default: nothing, and all is done now.
        until: Steady time at which to break off.

    Returns:
        Where each leader lies, what is still to be evicted, and which foreign files were met.

    Raises:
        Unfinished: a leader is not in place yet; what `best_dir` named before still stands. Call
            again, with the same `placing`.
        LeaderLost: a leader is damaged here and in the pins; the others still stand.
        PinError: a leader could not be put in place; what `best_dir` named before still stands.
        OSError: a state file could not be written; likewise.
    """
    if not leaders and not best_dir.is_dir():
        return Projection(
            paths={}, leaving=(), evicted=tuple(placed), unknown=(), before=Contents()
        )
    best_dir.mkdir(mode=0o755, exist_ok=True)
    contents = look_into(best_dir)
    (placing or Placing(verified)).put(best_dir, leaders, contents, until)
    board = _board(best_dir, leaders, text, metrics)
    state = _state(leaders)
    if _differs(best_dir / text.file, board) or _differs(best_dir / STATE_FILE, state):
        fsync_folder(best_dir)
        _write_states(best_dir, text.file, board, state if leaders else None)
    left = set(placed) - {leader.name for leader in leaders}
    _evict(best_dir, left.intersection(evict))
    return Projection(
        paths={leader.row.checkpoint_id: str(best_dir / leader.name) for leader in leaders},
        leaving=tuple(sorted(left.difference(evict))),
        evicted=tuple(sorted(left.intersection(evict))),
        unknown=_unknown(contents, text.file, set(placed)),
        before=contents,
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


def _write_states(best_dir: Path, file: str, board: bytes, state: bytes | None) -> None:
    replace_file(best_dir / file, board, mode=0o644)
    if state is None:
        (best_dir / STATE_FILE).unlink(missing_ok=True)
    else:
        replace_file(best_dir / STATE_FILE, state, mode=0o644)


def _differs(path: Path, content: bytes) -> bool:
    try:
        return read_regular(path) != content
    except FileNotFoundError:
        return content != b""
    except OSError:
        return True  # whatever lies there, it is not what should


def _evict(best_dir: Path, names: set[str]) -> None:
    if not names:
        return
    # The index last: as long as it stands, it tells what the shards beside it were.
    for file in sorted(best_dir.iterdir(), key=lambda file: file.suffix == ".index"):
        if OD_API_NAMES.placed_file(file.name) in names:
            file.unlink(missing_ok=True)


def _unknown(contents: Contents, board_file: str, ours: set[str]) -> tuple[str, ...]:
    foreign = []
    for name in contents.files:
        if name in (STATE_FILE, board_file, WORKING) or OD_API_NAMES.placed_file(name) in ours:
            continue
        if any(is_half_written(name, final) for final in (STATE_FILE, board_file)):
            continue
        foreign.append(name)
    return tuple(sorted(foreign))
