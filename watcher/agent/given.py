"""Given: folders here that hold what the watcher's machine has under the same names.

What comes is offered by its sha256 first; only what the cache lacks is asked for. A folder is whole
before anybody is told of it.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from watcher.agent.cache import Cache, CacheError, Part
from watcher.evaluation import frames
from watcher.files.slices import Work


@dataclass(slots=True)
class _Folder:
    """What was offered; `waits` until another folder is let go, whose files leave no room."""

    offer: frames.Offer
    held: list[int] = field(default_factory=list)
    missing: dict[str, Part] = field(default_factory=dict)
    whole: bool = False
    waits: bool = False

    def let_go(self) -> None:
        for descriptor in self.held:
            os.close(descriptor)
        self.held.clear()


class Given:
    """All folders of one agent. Their files are links into the cache, held there."""

    def __init__(self, cache: Cache, base: Path, send: Callable[[frames.Frame], None]) -> None:
        self._cache, self._base, self._send = cache, base, send
        self._folders: dict[str, _Folder] = {}
        # One after the other: what one brings the next may need as well.
        self._coming: deque[_Folder] = deque()
        self._looking: Work[None] | None = None
        base.mkdir(mode=0o700, exist_ok=True)

    @property
    def busy(self) -> bool:
        """True when `go_on` has something to do at once."""
        return self._looking is not None or self._next is not None

    @property
    def _next(self) -> _Folder | None:
        folder = self._coming[0] if self._coming else None
        return None if folder is None or folder.missing or folder.waits else folder

    def path(self, name: str) -> str:
        """Return where a folder of that name lies, or will."""
        return str(self._base / name)

    def is_whole(self, name: str) -> bool:
        """True when all that was offered for a folder is there."""
        return name in self._folders and self._folders[name].whole

    def offered(self, offer: frames.Offer) -> None:
        """Take note of what is to come; raises CacheError for an offer that is none."""
        if offer.folder in self._folders:
            raise CacheError(f"{offer.folder} was offered before")
        folder = self._folders[offer.folder] = _Folder(offer)
        self._coming.append(folder)

    def go_on(self) -> None:
        """Look for what is here already, for a moment."""
        if self._looking is None and (folder := self._next):
            self._looking = self._look(folder)
        if self._looking is not None:
            try:
                next(self._looking)
            except StopIteration:
                self._looking = None

    def _look(self, folder: _Folder) -> Work[None]:
        sizes = {one.sha256: one.size for one in folder.offer.files}
        missing = {}
        for sha256, size in sizes.items():
            held = yield from self._cache.holding(sha256, size)
            if held is None:
                missing[sha256] = size
            else:
                folder.held.append(held)
        try:
            folder.missing = self._cache.begin(missing) if missing else {}
        except CacheError:
            if not self._in_use():
                raise
            # What is evaluated now must not end for it; later there may be room.
            folder.waits = True
            folder.let_go()
            return
        if missing:
            self._send(frames.Want(folder=folder.offer.folder, sha256=list(missing)))
        else:
            self._finish(folder)

    def _in_use(self) -> bool:
        """True when a folder is in use that will be let go."""
        return any(one.whole for name, one in self._folders.items() if name != frames.SNAPSHOT)

    def take(self, chunk: frames.Chunk, body: bytes) -> None:
        """Take a piece of a file that was asked for.

        Raises:
            CacheError: it was not asked for, or cannot be kept.
        """
        folder = self._coming[0] if self._coming else None
        if folder is None or chunk.sha256 not in folder.missing:
            raise CacheError("a file came that was not asked for")
        part = folder.missing[chunk.sha256]
        part.write(body)
        if chunk.last:
            folder.held.append(part.finish())
            del folder.missing[chunk.sha256]
            if not folder.missing:
                self._finish(folder)

    def _finish(self, folder: _Folder) -> None:
        self._coming.popleft()
        path = self._base / folder.offer.folder
        path.mkdir(mode=0o700)
        for file in folder.offer.files:
            (path / file.name).symlink_to(self._cache.folder / file.sha256)
        folder.whole = True
        self._send(frames.Whole(folder=folder.offer.folder))

    def drop(self, name: str) -> None:
        """Let a folder go; what was in it may be removed from the cache now."""
        folder = self._folders.pop(name, None)
        if folder and folder.whole:
            shutil.rmtree(self._base / name, ignore_errors=True)
            folder.let_go()
            for one in self._coming:
                one.waits = False

    def close(self) -> None:
        """Let all go, and remove what is unfinished."""
        for folder in self._coming:
            for part in folder.missing.values():
                part.drop()
        for name in list(self._folders):
            self.drop(name)
