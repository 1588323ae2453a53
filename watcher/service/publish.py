"""Publishing: the objects below a URL show `best/` and `EARLY_STOP`, a copy for other machines.

A projection of a projection: a thread compares the local folder with what it has uploaded, and
closes the difference, so a restart, a cut line and a new best are the same case. The order is that
of `best/` itself: data, index, `best.json`, `checkpoint`, and later what fell out. So what
`checkpoint` names there is whole at any instant. Objects that it did not put are never deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import msgspec
import structlog

from watcher.config.bucket import Place
from watcher.config.run import RunSettings
from watcher.config.source import SourceSettings
from watcher.files.atomic_io import read_regular, replace_file
from watcher.sources.object_store import ObjectError, ObjectFolder

_log = structlog.get_logger(__name__)

FILE_NAME = "published.json"
SENTINEL_NAME = "EARLY_STOP"
_LOOK_SECONDS = 1.0
_ENDING_SECONDS = 60.0
_FIRST_RETRY_SECONDS, _MOST_SECONDS = 2.0, 60.0
_BOARD, _STATE = "best.json", "checkpoint"


class _Entry(msgspec.Struct):
    """All that counts here of a row of `best.json`."""

    checkpoint: str
    sha256: str


class _Board(msgspec.Struct):
    """All that counts here of `best.json`, whatever else a version writes."""

    run_uuid: str
    checkpoints: list[_Entry]


class _Put(msgspec.Struct):
    """An object of ours: which content, and the ETag it got; none before it is all there."""

    content: str
    etag: str | None = None


class _Changed(Exception):
    """Raised when `best/` became another while it was looked at; the next look is at that."""


@dataclass
class _Wanted:
    """What is to be there: names to contents, in the order of their upload."""

    files: dict[str, tuple[str, bytes | BinaryIO]]
    run_uuid: str | None


class Publication:
    """The thread that publishes one run.

    Attributes:
        problem: Why the last try failed, None when it did not.
    """

    def __init__(
        self, place: Place, run: RunSettings, source: SourceSettings, evict_seconds: float
    ) -> None:
        """Start nothing yet; raises ConfigError where obstore is not installed."""
        self._place, self._run, self._evict_seconds = place, run, evict_seconds
        self._folder = ObjectFolder(place, source)
        self._file = run.state_path / FILE_NAME
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="publish", daemon=True)
        self._put: dict[str, _Put] = {}
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
        self._put = self._recorded()
        done, failures = None, 0
        while True:
            ending, mark, delay = self._ending.is_set(), self._mark(), _LOOK_SECONDS
            if mark != done or time.monotonic() >= self._evict_at():
                try:
                    self.update()
                    self._tell(None)
                    done, failures = mark, 0
                except _Changed:
                    failures += ending  # nobody changes it any more
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
        with self._opened() as wanted:
            if SENTINEL_NAME not in wanted.files:
                self._remove({SENTINEL_NAME} & self._put.keys())
            there = {one.name: one for one in self._folder.list()[0]}
            self._refuse_other(wanted, set(there))
            for name, (content, data) in wanted.files.items():
                now = there.get(name)
                if now and self._put.get(name) == _Put(content, now.tag):
                    continue
                self._note(name, _Put(content))
                self._folder.put(name, data)
                if found := self._folder.find(name):
                    self._note(name, _Put(content, found.tag))
        # Without a best.json nothing is known of what is to be there: somebody deleted it.
        left = self._put.keys() - wanted.files.keys() if wanted.run_uuid else set()
        present = time.monotonic()
        self._left = {name: self._left.get(name, present) for name in left}
        due = present - self._evict_seconds
        self._remove({name for name, since in self._left.items() if since <= due})

    def _evict_at(self) -> float:
        """Return when to remove what fell out: who has read its name has until then to open it."""
        return min(self._left.values(), default=math.inf) + self._evict_seconds

    @contextlib.contextmanager
    def _opened(self) -> Iterator[_Wanted]:
        """Hold open what is to be there, as of one moment: none of it is evicted meanwhile."""
        best = self._run.best_path
        with ExitStack() as stack:
            board = _read(best / _BOARD)
            state, stop = _read(best / _STATE), _read(self._run.sentinel_path)
            files: dict[str, tuple[str, bytes | BinaryIO]] = {}
            if stop is not None:  # somebody waits for that
                files[SENTINEL_NAME] = _digest(stop), stop
            try:
                told = msgspec.json.decode(board, type=_Board) if board and state else None
                for entry in told.checkpoints if told else ():
                    for path in _files_of(best, entry.checkpoint):
                        file = stack.enter_context(path.open("rb"))
                        size = path.stat().st_size
                        files[path.name] = f"{entry.sha256}:{size}", file
            except (msgspec.DecodeError, FileNotFoundError) as error:
                raise _Changed from error
            if _read(best / _BOARD) != board or _read(best / _STATE) != state:
                raise _Changed
            if told and board and state:
                files |= {_BOARD: (_digest(board), board), _STATE: (_digest(state), state)}
            yield _Wanted(files, told.run_uuid if told else None)

    def _refuse_other(self, wanted: _Wanted, there: set[str]) -> None:
        """Raise ObjectError where another run publishes: each would remove the other's."""
        if _BOARD not in there or _BOARD in self._put or wanted.run_uuid is None:
            return
        found = self._folder.find(_BOARD)
        try:
            other = found and msgspec.json.decode(self._folder.read(found), type=_Board).run_uuid
        except msgspec.DecodeError:
            other = "another program's"
        if other and other != wanted.run_uuid:
            raise ObjectError(
                f"{self._place} holds the best.json of another run",
                "give --publish a folder of its own, or delete that object",
                lasting=True,
            )

    def _remove(self, names: Iterable[str]) -> None:
        for name in sorted(names):
            self._folder.delete(name)
            del self._put[name]
            self._left.pop(name, None)
            self._write()

    def _note(self, name: str, put: _Put) -> None:
        """Remember what is ours before it is there, so that a crash leaves nothing behind."""
        self._put[name] = put
        self._write()

    def _write(self) -> None:
        replace_file(self._file, msgspec.json.encode({str(self._place): self._put}))

    def _recorded(self) -> dict[str, _Put]:
        try:
            content = read_regular(self._file)
            every = msgspec.json.decode(content, type=dict[str, dict[str, _Put]])
        except (OSError, msgspec.DecodeError):
            return {}
        return every.get(str(self._place), {})

    def _mark(self) -> Mapping[str, object]:
        """Return what is another when there may be something to publish; asks no server."""
        best = self._run.best_path
        found: dict[str, object] = {}
        for path in (best / _BOARD, best / _STATE, self._run.sentinel_path):
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


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
