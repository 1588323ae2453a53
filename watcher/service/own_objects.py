"""Own objects: what of a folder in a bucket is this run's, so that nothing else is ever touched.

The folder belongs to the run whose uuid its `checkpoint-watcher.json` holds, which is made only
where there is none. An object counts as ours while its ETag is the one that it got from us, as
`published.json` in the state folder remembers. Any other is neither written over nor deleted,
whatever its name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

from watcher.config.bucket import Place
from watcher.config.run import SENTINEL_NAME as SENTINEL_NAME
from watcher.config.source import SourceSettings
from watcher.files.atomic_io import read_regular, replace_file
from watcher.sources.object_store import ObjectError, ObjectFolder, StoredObject

BOARD_NAME, STATE_NAME = "best.json", "checkpoint"
_CLAIM = "checkpoint-watcher.json"


class _Claim(msgspec.Struct, kw_only=True):
    """What says whose a folder is."""

    schema: int = 1
    run_uuid: str


class Entry(msgspec.Struct):
    """All that counts here of a row of `best.json`."""

    checkpoint: str
    sha256: str


class Board(msgspec.Struct):
    """All that counts here of `best.json`, whatever else a version writes."""

    run_uuid: str
    checkpoints: list[Entry]


class _Stop(msgspec.Struct):
    """All that counts here of `EARLY_STOP`."""

    run: str


class _Put(msgspec.Struct):
    """An object of ours.

    Attributes:
        content: What is in it: the digest of a small one, sha256:size of a checkpoint's file.
        etag: What a list says of it; None for none of ours.
        coming: What is being put in its place.
    """

    content: str
    etag: str | None = None
    coming: str | None = None


class OwnObjects:
    """The objects of one folder that this run put there."""

    def __init__(self, place: Place, run_uuid: str, source: SourceSettings, file: Path) -> None:
        """Look at nothing yet but at `file`, which remembers them.

        Raises:
            ConfigError: obstore is not installed.
        """
        self._place, self._run_uuid, self._file = place, run_uuid, file
        self._folder = ObjectFolder(place, source)
        self._claimed: str | None = None  # the claim's ETag, once it is known as ours
        self._every = self._recorded()
        self._put = self._every.setdefault(str(place), {})

    @property
    def names(self) -> set[str]:
        """Names of what is ours, as far as is known."""
        return set(self._put)

    def content(self, name: str) -> str | None:
        """Return what is in an object of ours."""
        return self._put[name].content if name in self._put else None

    def look(self) -> dict[str, StoredObject]:
        """Return all that is there, ours or not, by name; raises ObjectError."""
        there = self._list()
        if not self._put:
            self._know_again(there)
        for name, put in list(self._put.items()):
            if put.coming is not None:
                self._settle(put, put.coming, there.get(name), name)
        return there

    def require(self, names: Collection[str], there: dict[str, StoredObject]) -> None:
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

    def is_there(self, name: str, content: str, there: Mapping[str, StoredObject]) -> bool:
        """Tell whether this content is there, put by us."""
        return name in there and self._put.get(name) == _Put(content, there[name].tag)

    def put(
        self,
        name: str,
        content: str,
        data: bytes | BinaryIO,
        there: Mapping[str, StoredObject],
    ) -> dict[str, StoredObject]:
        """Put an object, and return what is there then; raises ObjectError.

        Its ETag is taken from a list, as the next look has it: not all servers give one and the
        same in every reply.
        """
        self._refuse_foreign([name], there)
        before = self._put.get(name, _Put(""))
        # Remembered before it is there, so that a crash leaves nothing that is nobody's.
        self._note(name, _Put(before.content, before.etag, content))
        self._folder.put(name, data)
        after = self._list()
        if name in after:
            self._note(name, _Put(content, after[name].tag))
        return after

    def remove(self, names: Iterable[str], there: dict[str, StoredObject]) -> None:
        """Delete objects of ours in this order; one that somebody replaced is forgotten alone."""
        for name in [name for name in names if name in self._put]:
            if name in there and self._is_ours(there[name]):
                self._folder.delete(name)
                del there[name]
            del self._put[name]
            self._write()

    def _list(self) -> dict[str, StoredObject]:
        return {one.name: one for one in self._folder.list()[0]}

    def _is_ours(self, one: StoredObject) -> bool:
        put = self._put.get(one.name)
        return put is not None and put.etag == one.tag

    def _refuse_foreign(self, names: Iterable[str], there: Mapping[str, StoredObject]) -> None:
        for name in sorted(names):
            if name in there and not self._is_ours(there[name]):
                raise ObjectError(
                    f"{self._place}/{name} was not put there by this run, and is left as it is",
                    "give --publish a folder of its own; or, if nobody needs what is there, delete"
                    f" {STATE_NAME} and {BOARD_NAME}, and then that object; if this run put it"
                    f" there before its state folder came back from a backup, delete {self._file}",
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
                f" it left there, delete {STATE_NAME} and {BOARD_NAME}, and then the folder",
                lasting=True,
            )
        self._claimed = claim.tag

    def _make_claim(self) -> None:
        claim = msgspec.json.encode(_Claim(run_uuid=self._run_uuid))
        try:
            self._folder.put(_CLAIM, claim, new=True)
        except ObjectError:
            # Of two that make it at once one is refused; which, is told by what is there then.
            if self._folder.find(_CLAIM) is None:
                raise

    def _owner(self, claim: StoredObject) -> str | None:
        try:
            return msgspec.json.decode(self._folder.read(claim), type=_Claim).run_uuid
        except msgspec.DecodeError:
            return None

    def _settle(self, put: _Put, coming: str, one: StoredObject | None, name: str) -> None:
        """Find out what became of an upload that a crash, or a broken line, left open."""
        if one and one.tag != put.etag and self._holds(one, coming):
            self._note(name, _Put(coming, one.tag))
        elif put.etag is not None:
            self._note(name, _Put(put.content, put.etag))
        else:
            del self._put[name]
            self._write()

    def _holds(self, one: StoredObject, content: str) -> bool:
        """Tell whether an object has a content; of a checkpoint's file its size says so."""
        _, of_file, size = content.rpartition(":")
        if of_file:
            return one.size_bytes == int(size)
        return digest(self._folder.read(one)) == content

    def _know_again(self, there: Mapping[str, StoredObject]) -> None:
        """Take for ours what our best.json there names, where what we remembered was lost."""
        if not {_CLAIM, BOARD_NAME} <= there.keys() or self._owner(there[_CLAIM]) != self._run_uuid:
            return
        small = {
            name: self._folder.read(there[name])
            for name in (BOARD_NAME, STATE_NAME, SENTINEL_NAME)
            if name in there
        }
        try:
            board = msgspec.json.decode(small[BOARD_NAME], type=Board)
            stop = small.get(SENTINEL_NAME)
            stops = stop is None or msgspec.json.decode(stop, type=_Stop).run == self._run_uuid
        except msgspec.DecodeError:
            return
        names = {entry.checkpoint for entry in board.checkpoints}
        named = named_in(small.get(STATE_NAME, b"")) <= names
        if not stops or not named or board.run_uuid != self._run_uuid:
            return
        for name, content in small.items():
            self._put[name] = _Put(digest(content), there[name].tag)
        for entry in board.checkpoints:
            starts = f"{entry.checkpoint}.index", f"{entry.checkpoint}.data-"
            for name in (name for name in there if name.startswith(starts)):
                held = f"{entry.sha256}:{there[name].size_bytes}"
                self._put[name] = _Put(held, there[name].tag)
        self._write()

    def _note(self, name: str, put: _Put) -> None:
        self._put[name] = put
        self._write()

    def _write(self) -> None:
        replace_file(self._file, msgspec.json.encode(self._every))

    def _recorded(self) -> dict[str, dict[str, _Put]]:
        try:
            content = read_regular(self._file)
            return msgspec.json.decode(content, type=dict[str, dict[str, _Put]])
        except (OSError, msgspec.DecodeError):
            return {}


def named_in(state: bytes) -> set[str]:
    """Return the names in a `checkpoint` file of ours, which are in quotes and have none."""
    return set(re.findall(r'"([^"]*)"', state.decode(errors="replace")))


def digest(content: bytes) -> str:
    """Return what stands for the content of a small object."""
    return hashlib.sha256(content).hexdigest()
