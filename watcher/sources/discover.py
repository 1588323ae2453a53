"""Discover: list the checkpoints that lie in model_dir right now. Reads names and sizes only."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from watcher.checkpoints.naming import INDEX_NAME, SHARD_NAME
from watcher.errors import ModelDirError
from watcher.types import FoundCheckpoint


def scan(model_dir: Path) -> list[FoundCheckpoint]:
    """List the checkpoints in model_dir, lowest save counter first.

    Only regular files with a checkpoint's name count: symlinks, FIFOs, folders such as
    `ckpt-3_temp` and every other file are passed over. The `checkpoint` state file is not read,
    it may name anything.

    Args:
        model_dir: The trainer's folder.

    Returns:
        A row for each `.index` file, complete or not.

    Raises:
        ModelDirError: the folder is missing or cannot be listed.
    """
    indexes: dict[str, tuple[int, tuple[int, ...]]] = {}
    shards: dict[str, list[tuple[int, ...]]] = {}
    try:
        with os.scandir(model_dir) as entries:
            for entry in entries:
                _note(entry, indexes, shards)
    except OSError as error:
        raise ModelDirError(
            f"cannot list model_dir {model_dir}: {error.strerror}",
            hint="it is the folder given to model_main_tf2 as --model_dir",
        ) from error
    found = [
        FoundCheckpoint(
            name=name,
            save_counter=counter,
            prefix=model_dir / name,
            signature=(index, *sorted(shards.get(name, []))),
        )
        for name, (counter, index) in indexes.items()
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.save_counter)


def _note(
    entry: os.DirEntry[str],
    indexes: dict[str, tuple[int, tuple[int, ...]]],
    shards: dict[str, list[tuple[int, ...]]],
) -> None:
    # Most files of a model_dir are none of ours: ten thousand event files cost no regex each.
    if not entry.name.startswith("ckpt-"):
        return
    index = INDEX_NAME.fullmatch(entry.name)
    shard = None if index else SHARD_NAME.fullmatch(entry.name)
    if not index and not shard:
        return
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # rotated away between the listing and the look
        return
    if not stat.S_ISREG(status.st_mode):
        return
    signature = (status.st_ino, status.st_size, status.st_mtime_ns)
    if index:
        indexes[index[1]] = (int(index[2]), signature)
    elif shard:
        shards.setdefault(shard[1], []).append(signature)
