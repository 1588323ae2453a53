"""Tells whether the trainer is in the middle of a save, from what lies in model_dir.

A save begins with the folder `ckpt-N_temp`, goes on with the data files, then with the index that
is written in place, and ends when the state file `checkpoint` names it, if the trainer writes one;
see `Naming` for the names. What a killed trainer left looks the same and never changes, so what was
there before this trainer, and what did not change for a while, is no save in progress.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from watcher.errors import CorruptCheckpoint, IncompleteCheckpoint, ModelDirError
from watcher.protocols import CheckpointSource

# A name, and what changes when the thing is worked on.
Mark = tuple[object, ...]

_STATE_FILE = "checkpoint"
_UNNAMED = "not in the state file yet"
# From the last byte of an index to the state file that names it; a slow server included.
_TO_BE_NAMED_SECONDS = 10.0
_STATE_TEMPORARY = re.compile(r"checkpoint\.tmp[0-9a-f]+")
# A trainer saves in the order of its steps, and of many an index would take long to read.
_NEWEST = 8


class Checkpoints:
    """What lies in model_dir. An index that was whole is not read again before it changes."""

    def __init__(
        self, source: CheckpointSource, model_dir: Path, beside: Sequence[str] = ()
    ) -> None:
        """Look at nothing yet.

        Args:
            source: Where the checkpoints come from.
            model_dir: The trainer's folder.
            beside: Folders in it that the trainer saves into by itself.
        """
        self._source = source
        self._beside = [model_dir / name for name in beside]
        self._model_dir = model_dir
        self._whole: dict[str, Mark] = {}

    def complete(self) -> dict[str, Mark]:
        """Return the checkpoints whose index is whole, with what changes when one is saved anew.

        Raises:
            OSError: the folder cannot be listed.
        """
        if not self._model_dir.exists():
            self._whole = {}
            return {}
        try:
            found = self._source.scan()
        except ModelDirError as error:
            raise OSError(error.message) from error
        self._whole = {
            entry.name: entry.signature
            for entry in found
            if self._whole.get(entry.name) == entry.signature or self._has_end(entry.name)
        }
        return dict(self._whole)

    @property
    def whole(self) -> Mapping[str, Mark]:
        """What was complete when this last looked, for whatever."""
        return self._whole

    def _has_end(self, name: str) -> bool:
        try:
            self._source.format.model_variables(self._source.read_index(name))
        except (IncompleteCheckpoint, OSError):
            return False
        except CorruptCheckpoint:
            pass  # damaged, but nobody is writing it
        return True

    def is_trained(self, name: str) -> bool:
        """Return whether a checkpoint holds more than what a trainer saves before its first step.

        True where it cannot be read, or is gone by now.
        """
        written = self._source.format
        try:
            return bool(written.model_variables(self._source.read_index(name))) and (
                written.global_step(self._model_dir / name) != 0
            )
        except (IncompleteCheckpoint, CorruptCheckpoint, OSError):
            return True

    def steps(self, names: Iterable[str]) -> list[int | None]:
        """Return how far the newest of some checkpoints have come, by their numbers.

        Returns:
            The global step of each that is trained and can be read, None where it holds no step.
        """
        number = self._source.format.number
        newest = sorted(names, key=lambda name: number(name) or 0)[-_NEWEST:]
        found = []
        for name in newest:
            with suppress(IncompleteCheckpoint, CorruptCheckpoint, OSError):
                step = self._source.format.global_step(self._model_dir / name)
                found += [step] if self.is_trained(name) else []
        return found

    def state(self) -> Mark:
        """Return what changes when the trainer writes its state file."""
        return _mark(self._model_dir / _STATE_FILE)

    def unfinished(self) -> frozenset[Mark]:
        """Return a mark for each thing that a save in progress would show.

        None when there is no such folder: nothing is being saved into it.

        Raises:
            OSError: the folder cannot be listed.
        """
        if not self._model_dir.exists():
            self._whole = {}
            return frozenset()
        marks: set[Mark] = set()
        shards: dict[str, list[str]] = {}
        naming = self._source.format
        with os.scandir(self._model_dir) as entries:
            for entry in entries:
                if naming.is_temporary(entry.name):
                    marks.add(_folder_mark(Path(entry.path)))
                elif _STATE_TEMPORARY.fullmatch(entry.name):
                    marks.add(_mark(Path(entry.path)))
                elif (file := naming.file(entry.name)) and not file[1]:
                    shards.setdefault(file[0], []).append(entry.path)
        whole = self.complete()
        listed = _listed(self._model_dir / _STATE_FILE)
        for name, paths in shards.items():
            if name not in whole:
                paths = [*sorted(paths), str(self._model_dir / f"{name}.index")]
                marks.add((name, *(_mark(Path(path)) for path in paths)))
            elif listed is not None and name not in listed:
                marks.add((_UNNAMED, name, whole[name]))
        return frozenset(marks | self._unfinished_beside())

    def _unfinished_beside(self) -> set[Mark]:
        """Return the marks of what the trainer saves elsewhere; there only whole saves are left."""
        return {
            (folder.name, *_folder_mark(temporary))
            for folder in self._beside
            for temporary in folder.glob("*_temp")
        }


class SaveWatch:
    """What may be a save in progress of one trainer; made before that is started."""

    def __init__(self, checkpoints: Checkpoints, patience_seconds: float) -> None:
        """Take what lies there now as left over from an earlier trainer.

        Args:
            checkpoints: Of the folder that the trainer saves into.
            patience_seconds: What stays unfinished and unchanged for so long was given up.
        """
        self._checkpoints = checkpoints
        self.patience_seconds = patience_seconds
        self._state = checkpoints.state()
        self._names = False
        try:
            self._left_over = checkpoints.unfinished()
        except OSError:  # then what is left over is waited for, in vain and not for ever
            self._left_over = frozenset()
        self._since: dict[Mark, float] = {}
        self._unnamed_since: float | None = None

    def in_progress(self, now: float) -> bool:
        """Return whether a save is under way; `now` is a steady time.

        Raises:
            OSError: the folder cannot be listed.
        """
        return bool(self.waited_for(now))

    def waited_for(self, now: float) -> list[str]:
        """Return what of a save in progress there is to wait for, in words.

        Raises:
            OSError: the folder cannot be listed.
        """
        marks = self._checkpoints.unfinished() - self._left_over
        self._since = {mark: self._since.get(mark, now) for mark in marks}
        young = [mark for mark, at in self._since.items() if now - at < self.patience_seconds]
        unnamed = [mark for mark in young if mark[0] == _UNNAMED]
        if unnamed and not self._may_be_named(now):
            young = [mark for mark in young if mark[0] != _UNNAMED]
        return sorted(map(_in_words, young))

    def _may_be_named(self, now: float) -> bool:
        """Tell whether the state file may yet name what is whole: does this trainer write it?

        One that saves by `tf.train.Checkpoint.write` never does, and would seem to save for ever.
        """
        if (state := self._checkpoints.state()) != self._state:
            self._state, self._names, self._unnamed_since = state, True, None
        if self._unnamed_since is None:
            self._unnamed_since = now
        patience = self.patience_seconds if self._names else _TO_BE_NAMED_SECONDS
        return now - self._unnamed_since < patience


def anew(now: Mapping[str, Mark], before: Mapping[str, Mark]) -> set[str]:
    """Return the names of those that were not there before, or were another save."""
    return {name for name, mark in now.items() if before.get(name) != mark}


def _listed(state_file: Path) -> set[str] | None:
    """Return the names in the trainer's state file, None when it cannot be read."""
    try:
        text = state_file.read_text()
    except FileNotFoundError:
        return set()
    except (OSError, UnicodeDecodeError):
        return None
    paths = re.findall(r'^\w+_path\w*: "([^"]*)"', text, re.MULTILINE)
    return {path.rpartition("/")[2] for path in paths}


def _in_words(mark: Mark) -> str:
    if mark[0] == _UNNAMED:
        return f"{mark[1]}, which the file `{_STATE_FILE}` does not name yet"
    return str(mark[0][0] if isinstance(mark[0], tuple) else mark[0])


def _mark(path: Path) -> Mark:
    try:
        status = path.lstat()
    except OSError:
        return (path.name,)
    return (path.name, status.st_ino, status.st_size, status.st_mtime_ns)


def _folder_mark(folder: Path) -> Mark:
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            return (folder.name,)
        inside = sorted((_mark(path) for path in folder.iterdir()), key=str)
    except OSError:
        inside = []
    return (_mark(folder), *inside)
