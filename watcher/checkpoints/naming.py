"""Naming: which file names a checkpoint's are, and whether all of one are there."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

# The OD API saves through tf.train.CheckpointManager under its default name. 18 digits fit an
# int64, and a stricter pattern than the file system's keeps odd names out of every later stage.
INDEX_NAME = re.compile(r"(ckpt-([1-9][0-9]{0,17}))\.index")
SHARD_NAME = re.compile(r"(ckpt-[1-9][0-9]{0,17})\.data-[0-9]{5}-of-[0-9]{5}")


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
