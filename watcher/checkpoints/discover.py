"""Discover: list the checkpoints that lie in model_dir right now. Reads names and sizes only."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from watcher.data import FoundCheckpoint
from watcher.errors import ModelDirError

# The OD API saves through tf.train.CheckpointManager under its default name. 18 digits fit an
# int64, and a stricter pattern than the file system's keeps odd names out of every later stage.
_INDEX_NAME = re.compile(r"(ckpt-([1-9][0-9]{0,17}))\.index")
_SHARD_NAME = re.compile(r"(ckpt-[1-9][0-9]{0,17})\.data-[0-9]{5}-of-[0-9]{5}")


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


def missing(prefixes: Iterable[Path]) -> set[Path]:
    """Return those of which the index or a shard is not there. Reads names only.

    What cannot be looked at for another reason is taken to be there.
    """
    gone: set[Path] = set()
    folders: dict[Path, list[Path]] = {}
    for prefix in prefixes:
        folders.setdefault(prefix.parent, []).append(prefix)
    for folder, inside in folders.items():
        try:
            present = {path.name for path in folder.iterdir()}
        except (FileNotFoundError, NotADirectoryError):
            present = set()
        except OSError:
            continue
        gone |= {prefix for prefix in inside if not _complete(prefix.name, present)}
    return gone


def _complete(name: str, present: Collection[str]) -> bool:
    """Tell whether the index is there, and `00000-of-00002` and so on all of them."""
    begin = f"{name}.data-"
    places = [file.removeprefix(begin) for file in present if file.startswith(begin)]
    _, _, count = min(places, default="").partition("-of-")
    return f"{name}.index" in present and count.isdecimal() and len(places) >= int(count)


def _note(
    entry: os.DirEntry[str],
    indexes: dict[str, tuple[int, tuple[int, ...]]],
    shards: dict[str, list[tuple[int, ...]]],
) -> None:
    # Most files of a model_dir are none of ours: ten thousand event files cost no regex each.
    if not entry.name.startswith("ckpt-"):
        return
    index = _INDEX_NAME.fullmatch(entry.name)
    shard = None if index else _SHARD_NAME.fullmatch(entry.name)
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
