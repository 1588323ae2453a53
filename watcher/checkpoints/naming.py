"""Naming: which names a trainer's checkpoints and their files have. Reads no file.

Apart from `bundle_format`, which reads them: commands that only need names answer sooner without
it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

# 18 digits fit an int64, and a stricter pattern than the file system's keeps odd names out of every
# later stage.
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_FILE = re.compile(r"([1-9][0-9]{0,17})(\.index|\.data-[0-9]{5}-of-[0-9]{5})")
# In a board's folder there may be a later one of the same name, and averages: `ckpt-9-average2`.
_PLACED = re.compile(r"[1-9][0-9]{0,17}(?:-average[1-9][0-9]{0,17})?(?:-[0-9a-f]{8})?")
_PLACED_FILE = re.compile(rf"({_PLACED.pattern})(\.index|\.data-[0-9]{{5}}-of-[0-9]{{5}})")
_TEMPORARY = re.compile(r"[1-9][0-9]{0,17}_temp")


class Naming(msgspec.Struct, frozen=True):
    """How a trainer names its checkpoints, and how it counts them.

    Attributes:
        stem: What comes before the number.
        counts_saves: The number goes up by one with each save, so that one which nobody saw shows;
            False where it is the global step.
    """

    stem: str
    counts_saves: bool = True

    def name(self, number: int) -> str:
        """Return the name of a checkpoint: `ckpt-12`."""
        return f"{self.stem}{number}"

    def names(self, numbers: range) -> str:
        """Return the name of several that follow each other: `ckpt-3..ckpt-7`."""
        first, last = self.name(numbers[0]), self.name(numbers[-1])
        return first if len(numbers) == 1 else f"{first}..{last}"

    def number(self, name: str) -> int | None:
        """Return the number in a checkpoint's name, None where it is no such name."""
        match = self._match(_NUMBER, name)
        return int(match[0]) if match else None

    def file(self, name: str) -> tuple[str, bool] | None:
        """Return whose a file is by its name, and whether it is the index; None for any other."""
        match = self._match(_FILE, name)
        return (self.stem + match[1], match[2] == ".index") if match else None

    def is_temporary(self, name: str) -> bool:
        """Tell whether a folder is one that the trainer saves into, before it gives the files their
        names.
        """
        return self._match(_TEMPORARY, name) is not None

    def is_placed(self, name: str) -> bool:
        """Tell whether a checkpoint may have this name in a board's folder: `ckpt-3-0a1b2c3d`."""
        return self._match(_PLACED, name) is not None

    def placed_file(self, name: str) -> str | None:
        """Return whose a file in a board's folder is by its name, None for any other."""
        match = self._match(_PLACED_FILE, name)
        return self.stem + match[1] if match else None

    def _match(self, pattern: re.Pattern[str], name: str) -> re.Match[str] | None:
        # Most files of a model_dir are none of ours: ten thousand event files cost no regex each.
        return pattern.fullmatch(name, len(self.stem)) if name.startswith(self.stem) else None


# tf.train.CheckpointManager under its default name: what people type, whatever the trainer is.
USUAL_STEM = "ckpt-"


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
