"""A small object of a bucket as a file here: `EARLY_STOP`, for the launcher beside the trainer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from watcher.config.bucket import Place, parse_place
from watcher.config.source import SourceSettings
from watcher.errors import ConfigError
from watcher.files.atomic_io import replace_file
from watcher.sources.object_store import ObjectError, ObjectFolder, ObjectGone, StoredObject

_MOST_BYTES = 1 << 20


class Mirror:
    """The thread that keeps one file as its object is: there with its content, or not there."""

    def __init__(
        self, url: str, settings: SourceSettings, path: Path, say: Callable[[str], None]
    ) -> None:
        """Look at nothing yet.

        Args:
            url: The object's.
            settings: How to reach the bucket, and how often to look.
            path: The file, of nobody else.
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
        self._folder = ObjectFolder(Place(place.scheme, place.bucket, above), settings)
        self._seconds = settings.poll_seconds
        self._path, self._say = path, say
        self._seen: StoredObject | None = None
        self._problem: str | None = None
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        """Look once, so that what was there before is known as that, and go on in a thread."""
        self._path.unlink(missing_ok=True)  # of the start before
        self.look()
        threading.Thread(target=self._work, name="mirror", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def look(self) -> None:
        """Make the file be as the object is now; what cannot be read leaves it as it is."""
        try:
            found = self._folder.find(self._name)
            if found is None:
                self._path.unlink(missing_ok=True)
            elif found != self._seen and found.size_bytes <= _MOST_BYTES:
                replace_file(self._path, self._folder.read(found), mode=0o644)
            self._seen, problem = found, None
        except ObjectGone:
            return  # the next look sees what is there now
        except (ObjectError, OSError) as error:
            problem = str(error)
        if problem and problem != self._problem:
            self._say(f"the sentinel cannot be read, it is tried again: {problem}")
        elif self._problem and not problem:
            self._say("the sentinel can be read again")
        self._problem = problem

    def _work(self) -> None:
        while not self._ended.wait(self._seconds):
            self.look()
