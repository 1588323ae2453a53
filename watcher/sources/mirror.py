"""A small object of a bucket as a file here: `EARLY_STOP`, for the launcher beside the trainer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from watcher.config.bucket import Place, parse_place
from watcher.config.source import SourceSettings
from watcher.errors import ConfigError
from watcher.files.atomic_io import replace_file
from watcher.sources.object_store import ObjectError, ObjectFolder, ObjectGone, StoredObject

_MOST_BYTES = 1 << 20
# How long a start waits for a server that is busy, or cannot be reached.
_FIRST_LOOK_SECONDS = 60.0
_AGAIN_SECONDS = 1.0


class Mirror:
    """The thread that keeps one file as its object is: there with its content, or not there."""

    def __init__(
        self, url: str, settings: SourceSettings, path: Path, say: Callable[[str], None]
    ) -> None:
        """Look at nothing yet.

        Args:
            url: The object's.
            settings: How to reach the bucket, and how often to look.
            path: The file, which nobody else makes; its folder is made where there is none.
            say: Is told what cannot be read, once, and when it can again.

        Raises:
            ConfigError: the URL names no object, or obstore is not installed.
        """
        try:
            place = parse_place(url)
        except ValueError as error:
            raise ConfigError(f"sentinel ({url}) is invalid: {error}") from error
        above, _, self._name = place.prefix.rpartition("/")
        if not self._name:
            raise ConfigError(
                f"sentinel ({url}) is a whole bucket",
                hint="give the object: what `run --publish URL` writes is URL/EARLY_STOP",
            )
        self._url = url
        self._folder = ObjectFolder(Place(place.scheme, place.bucket, above), settings)
        self._seconds = settings.poll_seconds
        self._path, self._say = path, say
        self._seen: StoredObject | None = None
        self._known = False  # whether it was seen yet what is there
        self._problem: str | None = None
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        """Look until it is known what was there before, a minute at most; go on in a thread.

        Raises:
            ConfigError: the bucket cannot be read, and no trying again helps.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)  # of the start before
        deadline = time.monotonic() + _FIRST_LOOK_SECONDS
        self.look(starting=True)
        while not self._known and time.monotonic() < deadline:
            time.sleep(_AGAIN_SECONDS)
            self.look(starting=True)
        threading.Thread(target=self._work, name="mirror", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def look(self, *, starting: bool = False) -> None:
        """Make the file be as the object is now; what cannot be read leaves it as it is.

        Args:
            starting: What is there now was there before.

        Raises:
            ConfigError: at a start, what no trying again helps with.
        """
        try:
            if starting:
                # Asked for one object, a server does not say that there is no such bucket.
                self._folder.list()
            found = self._folder.find(self._name)
            if self._known or starting:
                self._take(found)
            elif found:
                # Of an old run it would end this one, and nothing there tells whose it is.
                self._say(f"{self._url} is ignored: it may have been there before")
            self._seen, self._known, problem = found, True, None
        except ObjectGone:
            return  # the next look sees what is there now
        except (ObjectError, OSError) as error:
            if starting and isinstance(error, ObjectError) and error.lasting:
                what = f"sentinel ({self._url}) cannot be read: {error.what}"
                raise ConfigError(what, hint=error.remedy or None) from error
            problem = str(error)
        if problem and problem != self._problem:
            self._say(f"the sentinel cannot be read, it is tried again: {problem}")
        elif self._problem and not problem:
            self._say("the sentinel can be read again")
        self._problem = problem

    def _take(self, found: StoredObject | None) -> None:
        if found is None:
            self._path.unlink(missing_ok=True)
        elif found != self._seen and found.size_bytes <= _MOST_BYTES:
            replace_file(self._path, self._folder.read(found), mode=0o644)

    def _work(self) -> None:
        while not self._ended.wait(self._seconds):
            self.look()
