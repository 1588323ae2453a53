"""Snapshot: the files that an evaluation is set up from, as they were when the run began.

A worker is started many times in a run, and what the user edits meanwhile is for the next one. So
pipeline.config or params.yaml, metric plugins and the like are copied at the start, and every
worker reads the copies. Label maps, which only a worker finds in pipeline.config, it copies there
itself (`evaluators/snapshot.py`). A difference is told; the next start takes the files as
they are then.

Once a worker is ready with them they are copied a second time, into `accepted/`: a later start
tells what changed since then, however many starts were refused between.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread

import msgspec
import structlog

from watcher.config.evaluator import EvaluatorBase, InputFile
from watcher.errors import ConfigError, StoreError
from watcher.evaluation.messages import SnapshotFiles
from watcher.files.atomic_io import read_regular, replace_file

_log = structlog.get_logger(__name__)

FOLDER_NAME = "snapshot"
_ACCEPTED = "accepted"
# What an earlier start left; whatever else lies there is none of ours.
_OURS = re.compile(
    r"pipeline\.config|(plugin|import)-\d+\.py|(params|override)-\d+\.yaml"
    r"|\.?(keypoint_)?label_map\.pbtxt(\..*)?"
)
_GONE = "gone"
_LABEL_MAP = "label map"


class Taken(msgspec.Struct, frozen=True):
    """A copy of a file of the user's.

    Attributes:
        what: What to call it in front of people.
        original: The path as the user gave it.
        folder: Where that begins if it is relative; nothing for the current folder.
    """

    what: str
    original: str
    copy: Path
    folder: Path = Path()

    @property
    def path(self) -> Path:
        """Where the user's file is."""
        return self.folder / self.original


class Snapshot:
    """The copies of one run; of none, it does nothing."""

    def __init__(
        self,
        taken: Sequence[Taken] = (),
        working_path: Path = Path(),
        folder: Path | None = None,
    ) -> None:
        """Take no copy yet; the paths in pipeline.config begin at `working_path`."""
        self._working_path = working_path
        self._folder = folder
        self._taken = {one.original: one for one in taken}
        # Of each original: what its file was at the last look, and what there is to say of it.
        self._seen: dict[str, tuple[object, str | None]] = {}
        self._looking: Thread | None = None

    def files(self) -> SnapshotFiles:
        """Return where a worker finds the copies, and puts what it copies itself."""
        originals = {str(one.copy): one.original for one in self._taken.values()}
        return SnapshotFiles(str(self._folder), originals)

    def copy_of(self, path: str) -> str | None:
        """Return the copy of a file, by the path as it was given; None where there is none."""
        taken = self._taken.get(path)
        return str(taken.copy) if taken else None

    def add(self, taken: Mapping[str, str]) -> None:
        """Look after what a worker copied too: the user's path to its copy."""
        for original, copy in taken.items():
            self._taken.setdefault(
                original, Taken(_LABEL_MAP, original, Path(copy), self._working_path)
            )

    def accept(self) -> None:
        """Keep the copies as those of the last start that came up; tell which label map differs.

        Raises:
            StoreError: the state folder cannot be written.
        """
        if self._folder is None:
            return
        copies = [one for one in self._taken.values() if one.copy.parent == self._folder]
        try:
            contents = {one.copy.name: read_regular(one.copy) for one in copies}
        except OSError:  # one is gone, and with it what the next start could be compared with
            return
        changed = _fill(self._folder / _ACCEPTED, contents)
        _tell_changed(
            [one for one in copies if one.what == _LABEL_MAP and one.copy.name in changed]
        )

    def look(self) -> None:
        """Compare the user's files with the copies, soon; see `differences`."""
        # In a thread: a mount that hangs must not hold up the loop.
        if self._looking is None or not self._looking.is_alive():
            files = list(self._taken.values())
            self._looking = Thread(
                target=self._compare, args=(files,), name="snapshot", daemon=True
            )
            self._looking.start()

    def differences(self) -> list[str]:
        """Return a sentence about each file that was another one at the last look."""
        return [text for _, text in list(self._seen.values()) if text]

    def _compare(self, files: Sequence[Taken]) -> None:
        for one in files:
            try:
                present = _signature(one.path)
                if self._seen.get(one.original, (None,))[0] != present:
                    self._seen[one.original] = present, _difference(one, present)
            except OSError:  # it cannot be read now, so nothing is known of it
                continue


def take_snapshot(
    evaluator: EvaluatorBase, model_dir: Path, state_dir: Path, working_path: Path
) -> Snapshot:
    """Copy what an evaluation is set up from into the state folder, in place of earlier copies.

    Raises:
        ConfigError: a file without which nothing can be evaluated cannot be read.
        StoreError: the state folder cannot be written.
    """
    folder = state_dir / FOLDER_NAME
    contents: dict[str, bytes] = {}
    taken = []
    for one in evaluator.inputs(model_dir):
        try:
            contents[one.copy] = read_regular(Path(one.path))
        except OSError as error:
            if not one.required:
                continue  # the worker refuses it, and says how it is to be written
            raise _unreadable(one, error) from error
        taken.append(Taken(one.setting, one.path, folder / one.copy))
    _fill(folder, contents)
    _tell_changed([one for one in taken if _differs(folder / _ACCEPTED / one.copy.name, contents)])
    return Snapshot(taken, working_path, folder)


def require_readable(inputs: Iterable[InputFile]) -> None:
    """Raise ConfigError where a file without which nothing can be evaluated cannot be read."""
    for one in inputs:
        try:
            if one.required:
                read_regular(Path(one.path))
        except OSError as error:
            raise _unreadable(one, error) from error


def _unreadable(one: InputFile, error: OSError) -> ConfigError:
    return ConfigError(
        f"{one.setting} ({one.path}) cannot be read: {error.strerror}",
        hint="the user that runs the watcher must be able to read it",
    )


def _differs(accepted: Path, contents: Mapping[str, bytes]) -> bool:
    try:
        return read_regular(accepted) != contents[accepted.name]
    except OSError:  # no start came up yet, or none with this file
        return False


def _tell_changed(taken: Sequence[Taken]) -> None:
    for one in taken:
        _log.info("changed since the last start, taken as it is now", file=one.original)


def unchanged_since(evaluator: EvaluatorBase, model_dir: Path, state_dir: Path) -> datetime | None:
    """Return since when starts of this run came up with the configuration as it is now.

    None when the last one that came up had another content, or none did.
    """
    since = 0.0
    for one in evaluator.inputs(model_dir):
        copy = state_dir / FOLDER_NAME / _ACCEPTED / one.copy
        try:
            if one.required and read_regular(copy) != read_regular(Path(one.path)):
                return None
            since = max(since, copy.stat().st_mtime if one.required else 0.0)
        except OSError:
            return None
    return datetime.fromtimestamp(since, UTC)


def _fill(folder: Path, contents: Mapping[str, bytes]) -> set[str]:
    """Make a folder hold these files, and none of an earlier start; returns those that changed.

    What is the same is not written anew: its time says since when it has been so.
    """
    changed = set()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in folder.iterdir():
            if _OURS.fullmatch(path.name) and path.name not in contents:
                path.unlink()
        for name, content in contents.items():
            path = folder / name
            before = read_regular(path) if path.exists() else None
            if before != content:
                replace_file(path, content)
                changed |= set() if before is None else {name}
    except OSError as error:
        raise StoreError(
            f"cannot write {error.filename or folder}: {error.strerror}",
            hint="the configuration is copied there: check free space and permissions",
        ) from error
    return changed


def _signature(path: Path) -> object:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return _GONE
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _difference(one: Taken, present: object) -> str | None:
    what, then = "is gone", "put it back before the next start"
    if present != _GONE:
        if read_regular(one.path) == read_regular(one.copy):
            return None
        what, then = "was changed", "to take the new one, start the watcher again"
    return (
        f"{one.what} ({one.original}) {what} since this run started: evaluations go on with the one"
        f" it started with; {then}"
    )
