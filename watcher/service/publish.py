"""Publishing: the objects below a URL show `best/` and `EARLY_STOP`, a copy for other machines.

A projection of a projection: a thread compares the local folder with what it has uploaded, and
closes the difference, so a restart, a cut line and a new best are the same case. The order is that
of `best/` itself: data, index, `best.json`, `checkpoint`, and later what fell out. So what
`checkpoint` names there is whole at any instant: a name that comes back with other content is
deleted first, and before that what may name it. What is not ours there is left alone.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Self

import msgspec
import structlog

from watcher.config.bucket import Place
from watcher.config.run import RunSettings
from watcher.config.source import SourceSettings
from watcher.files.atomic_io import read_regular
from watcher.service.own_objects import (
    BOARD_NAME,
    SENTINEL_NAME,
    STATE_NAME,
    Board,
    OwnObjects,
    digest,
    named_in,
)
from watcher.sources.object_store import StoredObject

_log = structlog.get_logger(__name__)

FILE_NAME = "published.json"
_LOOK_SECONDS = 1.0
_ENDING_SECONDS = 60.0
_FIRST_RETRY_SECONDS, _MOST_SECONDS = 2.0, 60.0
# Replaced in one go: none of them is of use only beside another.
_REPLACED = {BOARD_NAME, STATE_NAME, SENTINEL_NAME}
# A look a second: best/ is never in between for so long, but for a full disk.
_CHANGES_TOLD = 30


class _Changed(Exception):
    """Raised when `best/` is in between two states; the next look is at the later one."""


class Publication:
    """The thread that publishes one run.

    Attributes:
        problem: Why the last try failed, None when it did not.
    """

    def __init__(
        self,
        place: Place,
        run: RunSettings,
        run_uuid: str,
        source: SourceSettings,
        evict_seconds: float,
    ) -> None:
        """Start nothing yet; raises ConfigError where obstore is not installed."""
        self._place, self._run, self._evict_seconds = place, run, evict_seconds
        self._own = OwnObjects(place, run_uuid, source, run.state_path / FILE_NAME)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="publish", daemon=True)
        self._left: dict[str, float] = {}  # since when a name is not wanted any more
        self.problem: str | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End, once what lies here now is there, or cannot be there soon."""
        self._ending.set()
        self._thread.join(_ENDING_SECONDS)
        if self._thread.is_alive() or self.problem:
            _log.warning("not all of best/ is published; the next start goes on with it")

    # -- in the thread

    def _work(self) -> None:
        done, failures, changes = None, 0, 0
        while True:
            ending, mark, delay = self._ending.is_set(), self._mark(), _LOOK_SECONDS
            if mark != done or time.monotonic() >= self._evict_at():
                try:
                    self.update()
                    self._tell(None)
                    done, failures, changes = mark, 0, 0
                except _Changed as change:
                    failures += ending  # nobody changes it any more
                    changes += 1
                    if ending or changes >= _CHANGES_TOLD:
                        self._tell(str(change))
                except Exception as error:  # of whatever kind: the thread goes on
                    self._tell(str(error) or repr(error))
                    failures += 1
                    delay = min(_FIRST_RETRY_SECONDS * 2 ** min(failures - 1, 10), _MOST_SECONDS)
            if ending and (failures or mark == done):
                return
            self._ending.wait(delay)

    def update(self) -> None:
        """Make the objects show what lies here now, however long that takes.

        Raises:
            ObjectError, OSError: not all could be done; call again.
        """
        there = self._own.look()
        self._show_sentinel(there)
        with self._opened() as wanted:
            if wanted:
                self._own.require(wanted.keys(), there)
                self._make_way(wanted, there)
            for name, (content, data) in wanted.items():
                if not self._own.is_there(name, content, there):
                    there = self._own.put(name, content, data, there)
                    self._show_sentinel(there)
        # Without a best.json nothing is known of what is to be there: somebody deleted it.
        left = self._own.names - wanted.keys() - {SENTINEL_NAME} if wanted else set()
        present = time.monotonic()
        self._left = {name: self._left.get(name, present) for name in left}
        due = present - self._evict_seconds
        gone = [name for name in _to_remove(left) if self._left[name] <= due]
        self._own.remove(gone, there)
        self._left = {name: since for name, since in self._left.items() if since > due}

    def _show_sentinel(self, there: dict[str, StoredObject]) -> None:
        """Put or delete the sentinel before all else: somebody waits for that."""
        stop = _read(self._run.sentinel_path)
        if stop is None:
            self._own.remove([SENTINEL_NAME], there)
        elif not self._own.is_there(SENTINEL_NAME, digest(stop), there):
            self._own.require([SENTINEL_NAME], there)
            there.update(self._own.put(SENTINEL_NAME, digest(stop), stop, there))

    def _make_way(
        self, wanted: Mapping[str, tuple[str, object]], there: dict[str, StoredObject]
    ) -> None:
        """Delete what is another checkpoint under a name that is wanted, once nothing names it."""
        stale = {
            name
            for name in (wanted.keys() & there.keys()) - _REPLACED
            if self._own.content(name) != wanted[name][0]
        }
        if stale:
            self._own.remove([STATE_NAME, BOARD_NAME, *_to_remove(stale)], there)

    def _evict_at(self) -> float:
        """Return when to remove what fell out: who has read its name has until then to open it."""
        return min(self._left.values(), default=math.inf) + self._evict_seconds

    @contextlib.contextmanager
    def _opened(self) -> Iterator[dict[str, tuple[str, bytes | BinaryIO]]]:
        """Hold open what is to be there, as of one moment: none of it is evicted meanwhile.

        Yields names to contents in the order of their upload; none where there is no board.
        """
        best = self._run.best_path
        with ExitStack() as stack:
            board, state = _read(best / BOARD_NAME), _read(best / STATE_NAME)
            if board is None or state is None:
                yield {}
                return
            files: dict[str, tuple[str, bytes | BinaryIO]] = {}
            try:
                entries = msgspec.json.decode(board, type=Board).checkpoints
                for entry in entries:
                    for path in _files_of(best, entry.checkpoint):
                        file = stack.enter_context(path.open("rb"))
                        size = path.stat().st_size
                        files[path.name] = f"{entry.sha256}:{size}", file
            except (msgspec.DecodeError, FileNotFoundError) as error:
                raise _Changed(
                    f"{best} does not hold what its {BOARD_NAME} says: {error}"
                ) from error
            # They are replaced one after the other, and a crash may lie between.
            if not named_in(state) <= {entry.checkpoint for entry in entries}:
                raise _Changed(
                    f"{best / STATE_NAME} and {BOARD_NAME} do not name the same checkpoints"
                )
            if _read(best / BOARD_NAME) != board or _read(best / STATE_NAME) != state:
                raise _Changed(f"{best} changes all the time")
            files |= {BOARD_NAME: (digest(board), board), STATE_NAME: (digest(state), state)}
            yield files

    def _mark(self) -> Mapping[str, object]:
        """Return what is another when there may be something to publish; asks no server."""
        best = self._run.best_path
        found: dict[str, object] = {}
        for path in (best / BOARD_NAME, best / STATE_NAME, self._run.sentinel_path):
            with contextlib.suppress(OSError):
                status = path.stat()
                found[path.name] = status.st_ino, status.st_mtime_ns, status.st_size
        return found

    def _tell(self, problem: str | None) -> None:
        if problem and problem != self.problem:
            _log.warning("cannot publish now, trying again", reason=problem)
        elif self.problem and not problem:
            _log.info("published again", to=str(self._place))
        self.problem = problem


def _to_remove(names: Iterable[str]) -> list[str]:
    """Return the index of each before its data: alone, those are no checkpoint."""
    return sorted(names, key=lambda name: (not name.endswith(".index"), name))


def _files_of(best: Path, name: str) -> list[Path]:
    """Return the data, then the index of a checkpoint.

    Raises:
        FileNotFoundError: there is no index, or no data.
    """
    data, index = sorted(best.glob(f"{name}.data-*")), best / f"{name}.index"
    if not data or not index.exists():
        raise FileNotFoundError(name)
    return [*data, index]


def _read(path: Path) -> bytes | None:
    try:
        return read_regular(path)
    except FileNotFoundError:
        return None
