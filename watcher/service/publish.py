"""Publishing: the objects below a URL show `best/` and `EARLY_STOP`, a copy for other machines.

A projection of a projection: a thread compares the local folder with what it has uploaded, and
closes the difference, so a restart, a cut line and a new best are the same case. The order is that
of `best/` itself: data, index, `best.json`, `checkpoint`, and later what fell out. So what
`checkpoint` names there is whole at any instant: a name that comes back with other content is
deleted first, and before that what may name it.

The folder belongs to the run whose uuid its `checkpoint-watcher.json` holds, which is made only
where there is none. An object counts as ours while its ETag is the one that it got from us, as
`published.json` remembers. Any other is neither written over nor deleted, whatever its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Self

import msgspec
import structlog

from watcher.config.bucket import Place
from watcher.config.run import RunSettings
from watcher.config.source import SourceSettings
from watcher.files.atomic_io import read_regular, replace_file
from watcher.sources.object_store import ObjectError, ObjectFolder, StoredObject

_log = structlog.get_logger(__name__)

FILE_NAME = "published.json"
SENTINEL_NAME = "EARLY_STOP"
_LOOK_SECONDS = 1.0
_ENDING_SECONDS = 60.0
_FIRST_RETRY_SECONDS, _MOST_SECONDS = 2.0, 60.0
_BOARD, _STATE = "best.json", "checkpoint"
_CLAIM = "checkpoint-watcher.json"
# Replaced in one go: none of them is of use only beside another.
_REPLACED = {_BOARD, _STATE, SENTINEL_NAME}
# A look a second: best/ is never in between for so long, but for a full disk.
_CHANGES_TOLD = 30


class _Entry(msgspec.Struct):
    """All that counts here of a row of `best.json`."""

    checkpoint: str
    sha256: str


class _Board(msgspec.Struct):
    """All that counts here of `best.json`, whatever else a version writes."""

    checkpoints: list[_Entry]


class _Claim(msgspec.Struct, kw_only=True):
    """What says whose a folder is."""

    schema: int = 1
    run_uuid: str


class _Put(msgspec.Struct):
    """An object of ours: which content, and the ETag it got; none before it is all there."""

    content: str
    etag: str | None = None


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
        self._claim = msgspec.json.encode(_Claim(run_uuid=run_uuid))
        self._run_uuid = run_uuid
        self._claimed: str | None = None  # the claim's ETag, once it is known as ours
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
        there = self._list()
        self._show_sentinel(there)
        with self._opened() as wanted:
            if wanted:
                self._require_ours(wanted.keys(), there)
                self._make_way(wanted, there)
            for name, (content, data) in wanted.items():
                if name in there and self._put.get(name) == _Put(content, there[name].tag):
                    continue
                there = self._upload(name, content, data, there)
                self._show_sentinel(there)
        # Without a best.json nothing is known of what is to be there: somebody deleted it.
        left = self._put.keys() - wanted.keys() - {SENTINEL_NAME} if wanted else set()
        present = time.monotonic()
        self._left = {name: self._left.get(name, present) for name in left}
        due = present - self._evict_seconds
        self._remove([name for name in sorted(left) if self._left[name] <= due], there)

    def _show_sentinel(self, there: dict[str, StoredObject]) -> None:
        """Put or delete the sentinel before all else: somebody waits for that."""
        stop = _read(self._run.sentinel_path)
        if stop is None:
            self._remove({SENTINEL_NAME} & self._put.keys(), there)
            return
        known = self._put.get(SENTINEL_NAME)
        if SENTINEL_NAME in there and known == _Put(_digest(stop), there[SENTINEL_NAME].tag):
            return
        self._require_ours({SENTINEL_NAME}, there)
        self._upload(SENTINEL_NAME, _digest(stop), stop, there)

    def _make_way(
        self, wanted: Mapping[str, tuple[str, object]], there: dict[str, StoredObject]
    ) -> None:
        """Delete what is another checkpoint under a name that is wanted, once nothing names it."""
        stale = {
            name
            for name in (wanted.keys() & there.keys()) - _REPLACED
            if self._put[name].content != wanted[name][0]
        }
        if not stale:
            return
        # The index before its data: alone, those are no checkpoint.
        indexes = {name for name in stale if name.endswith(".index")}
        order = [_STATE, _BOARD, *sorted(indexes), *sorted(stale - indexes)]
        self._remove([name for name in order if name in self._put], there)
        for name in order:
            there.pop(name, None)

    def _upload(
        self,
        name: str,
        content: str,
        data: bytes | BinaryIO,
        there: Mapping[str, StoredObject],
    ) -> dict[str, StoredObject]:
        """Put an object, and return what is there then.

        Its ETag is taken from a list, as the next look has it: not all servers give one and the
        same in every reply.
        """
        self._refuse_foreign([name], there)
        self._note(name, _Put(content))
        self._folder.put(name, data)
        after = self._list()
        if name in after:
            self._note(name, _Put(content, after[name].tag))
        return after

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
            board, state = _read(best / _BOARD), _read(best / _STATE)
            if board is None or state is None:
                yield {}
                return
            files: dict[str, tuple[str, bytes | BinaryIO]] = {}
            try:
                entries = msgspec.json.decode(board, type=_Board).checkpoints
                for entry in entries:
                    for path in _files_of(best, entry.checkpoint):
                        file = stack.enter_context(path.open("rb"))
                        size = path.stat().st_size
                        files[path.name] = f"{entry.sha256}:{size}", file
            except (msgspec.DecodeError, FileNotFoundError) as error:
                raise _Changed(f"{best} does not hold what its {_BOARD} says: {error}") from error
            # They are replaced one after the other, and a crash may lie between.
            if not _named_in(state) <= {entry.checkpoint for entry in entries}:
                raise _Changed(f"{best / _STATE} and {_BOARD} do not name the same checkpoints")
            if _read(best / _BOARD) != board or _read(best / _STATE) != state:
                raise _Changed(f"{best} changes all the time")
            files |= {_BOARD: (_digest(board), board), _STATE: (_digest(state), state)}
            yield files

    # -- whose objects are there

    def _list(self) -> dict[str, StoredObject]:
        return {one.name: one for one in self._folder.list()[0]}

    def _require_ours(self, names: Collection[str], there: dict[str, StoredObject]) -> None:
        """Claim the folder where nobody has.

        Raises:
            ObjectError: it, or an object of one of these names, is somebody else's.
        """
        self._refuse_other_run(there)
        self._refuse_foreign(names, there)
        if _CLAIM not in there:
            self._make_claim()
            there.update(self._list())
            self._refuse_other_run(there)
            self._refuse_foreign(names, there)

    def _refuse_foreign(self, names: Iterable[str], there: Mapping[str, StoredObject]) -> None:
        for name in sorted(names):
            if name in there and not self._is_ours(there[name]):
                raise ObjectError(
                    f"{self._place}/{name} was not put there by this run, and is left as it is",
                    "give --publish a folder of its own; or, if nobody needs what is there, delete"
                    f" {_STATE} and {_BOARD}, and then that object",
                    lasting=True,
                )

    def _refuse_other_run(self, there: Mapping[str, StoredObject]) -> None:
        claim = there.get(_CLAIM)
        if claim is None or claim.tag == self._claimed:
            return
        if self._owner(claim) != self._run_uuid:
            raise ObjectError(
                f"{self._place} belongs to another run, as its {_CLAIM} says",
                "give --publish a folder of its own; or, if that run is over and nobody needs what"
                f" it left there, delete {_STATE} and {_BOARD}, and then the folder",
                lasting=True,
            )
        self._claimed = claim.tag

    def _make_claim(self) -> None:
        try:
            self._folder.put(_CLAIM, self._claim, new=True)
        except ObjectError:
            # Of two that make it at once one is refused; which, is told by what is there then.
            if self._folder.find(_CLAIM) is None:
                raise

    def _owner(self, claim: StoredObject) -> str | None:
        try:
            return msgspec.json.decode(self._folder.read(claim), type=_Claim).run_uuid
        except msgspec.DecodeError:
            return None

    def _is_ours(self, one: StoredObject) -> bool:
        """Tell whether we put this very object; one whose upload a crash cut off counts as that."""
        put = self._put.get(one.name)
        return put is not None and put.etag in (None, one.tag)

    def _remove(self, names: Iterable[str], there: Mapping[str, StoredObject]) -> None:
        """Delete objects of ours in this order; of one that somebody replaced nothing is kept."""
        for name in list(names):
            if name in there and self._is_ours(there[name]):
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


def _named_in(state: bytes) -> set[str]:
    """Return the names in a `checkpoint` file of ours, which are in quotes and have none."""
    return set(re.findall(r'"([^"]*)"', state.decode(errors="replace")))


def _read(path: Path) -> bytes | None:
    try:
        return read_regular(path)
    except FileNotFoundError:
        return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
