"""Snapshot: the files that an evaluation is set up from, as they were when the run began.

A worker is started many times in a run, and what the user edits meanwhile is for the next one. So
pipeline.config and metric plugins are copied at the start, and every worker reads the copies. Label
maps, which only a worker finds in pipeline.config, it copies there itself
(`evaluators/snapshot.py`). A difference is told; the next start takes the files as they are then.

Once a worker is ready with them they are copied a second time, into `accepted/`: a later start
tells what changed since then, however many starts were refused between.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any

import structlog

from watcher.config.evaluator import OdApiSettings
from watcher.errors import ConfigError, StoreError
from watcher.evaluation.messages import SnapshotFiles
from watcher.files.atomic_io import read_regular, replace_file

_log = structlog.get_logger(__name__)

FOLDER_NAME = "snapshot"
_ACCEPTED = "accepted"
_PIPELINE = "pipeline.config"
# What an earlier start left; whatever else lies there is none of ours.
_OURS = re.compile(r"pipeline\.config|plugin-\d+\.py|\.?(keypoint_)?label_map\.pbtxt(\..*)?")
_GONE = "gone"
_LABEL_MAP = "label map"


@dataclass(frozen=True, slots=True)
class Taken:
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

    def options(self, evaluator: OdApiSettings) -> dict[str, Any]:
        """Return a worker's options that name files: they name the copies."""
        copies = {one.original: str(one.copy) for one in self._taken.values()}
        plugins = (text.rpartition(":") for text in evaluator.metric_plugin)
        return {
            "pipeline_config": copies[evaluator.pipeline_config],
            "metric_plugins": [
                copies.get(f, _whole(f)) + colon + name for f, colon, name in plugins
            ],
        }

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


def _whole(file: str) -> str:
    """Return the path of a file as the worker can use it, which is started elsewhere."""
    return str(Path(file).absolute()) if file else file


def take_snapshot(evaluator: OdApiSettings, state_dir: Path, working_path: Path) -> Snapshot:
    """Copy pipeline.config and the metric plugins into the state folder, in place of earlier ones.

    Raises:
        ConfigError: pipeline_config cannot be read.
        StoreError: the state folder cannot be written.
    """
    folder = state_dir / FOLDER_NAME
    try:
        contents = {_PIPELINE: read_regular(Path(evaluator.pipeline_config))}
    except OSError as error:
        raise ConfigError(
            f"pipeline_config ({evaluator.pipeline_config}) cannot be read: {error.strerror}",
            hint="the user that runs the watcher must be able to read it",
        ) from error
    taken = [Taken("pipeline_config", evaluator.pipeline_config, folder / _PIPELINE)]
    files = dict.fromkeys(text.rpartition(":")[0] for text in evaluator.metric_plugin)
    for number, file in enumerate(file for file in files if file):
        name = f"plugin-{number}.py"
        try:
            contents[name] = read_regular(Path(file))
        except OSError:
            continue  # the worker refuses it, and says how it is to be written
        taken.append(Taken("metric_plugin", file, folder / name))
    _fill(folder, contents)
    _tell_changed([one for one in taken if _differs(folder / _ACCEPTED / one.copy.name, contents)])
    return Snapshot(taken, working_path, folder)


def _differs(accepted: Path, contents: Mapping[str, bytes]) -> bool:
    try:
        return read_regular(accepted) != contents[accepted.name]
    except OSError:  # no start came up yet, or none with this file
        return False


def _tell_changed(taken: Sequence[Taken]) -> None:
    for one in taken:
        _log.info("changed since the last start, taken as it is now", file=one.original)


def unchanged_since(state_dir: Path, pipeline_config: str) -> datetime | None:
    """Return since when starts of this run came up with pipeline.config as it is now.

    None when the last one that came up had another content, or none did.
    """
    copy = state_dir / FOLDER_NAME / _ACCEPTED / _PIPELINE
    try:
        if read_regular(copy) != read_regular(Path(pipeline_config)):
            return None
        return datetime.fromtimestamp(copy.stat().st_mtime, UTC)
    except OSError:
        return None


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
            hint="pipeline.config is copied there: check free space and permissions",
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
