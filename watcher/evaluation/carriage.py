"""Carriage: files between this machine and an agent on another, over the same line.

Home offers a fixed set of files by their sha256, and answers for no others. What a worker there
leaves is fetched by home alone, into a folder of its own choosing, and is taken only where its
content is what the result said.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import msgspec

from watcher.evaluation import frames, messages
from watcher.evaluation.frames import CHUNK_BYTES, Chunk, encode
from watcher.files.slices import Work

_READ_BYTES = 4 << 20
# Pictures of an evaluation are tens of MB; a host that leaves more than this gets none of it taken.
_MOST_FETCHED_BYTES = 1 << 30
_MOST_FETCHED = 2000
# Whoever shows pictures takes them away; while it cannot, they are not to fill this disk.
_MOST_KEPT = 4
_NAME = re.compile(r"[^./\x00][^/\x00]{0,254}")


class Untold(Exception):
    """Raised when the other side asks for what was not offered, or sends what was not asked for."""


class Offers:
    """What may be asked for now.

    Attributes:
        total: Bytes of the files that were asked for, and `sent` of those handed to the line.
    """

    def __init__(self) -> None:
        self.total = self.sent = 0
        self._offered: dict[str, dict[str, tuple[Path | bytes, int]]] = {}

    @property
    def busy(self) -> bool:
        """True while something that was asked for is not sent."""
        return self.sent < self.total

    def offering(self, folder: str, files: Mapping[str, Path | bytes]) -> Work[frames.Offer]:
        """Read the files once, a few MB at a time, and return what to offer of them.

        Args:
            folder: The name they are offered under.
            files: Name to file, or to content.

        Raises:
            OSError: one cannot be read, or they are more than one folder may have.
        """
        if len(files) > frames.MOST_FILES:
            raise OSError(f"{len(files)} files are more than the {frames.MOST_FILES} of a folder")
        offered, kept = [], {}
        for name, source in files.items():
            digest, size = hashlib.sha256(), 0
            for data in _pieces(source, _READ_BYTES):
                digest.update(data)
                size += len(data)
                yield
            sha256 = digest.hexdigest()
            kept[sha256] = source, size
            offered.append(frames.Offered(name, sha256, size))
        self._offered[folder] = kept
        return frames.Offer(folder=folder, files=offered)

    def wanted(self, want: frames.Want) -> Iterator[bytes]:
        """Return the frames of what is asked for, each made when it is to be sent.

        Raises:
            Untold: something of it was not offered, or was asked for before.
        """
        offered = self._offered.get(want.folder, {})
        if not all(one in offered for one in want.sha256) or len(set(want.sha256)) < len(
            want.sha256
        ):
            raise Untold("asked for a file that was not offered")
        # Each once: a host cannot have a line filled by asking again and again.
        asked = [(one, *offered.pop(one)) for one in want.sha256]
        self.total += sum(size for _, _, size in asked)
        return self._sending(asked)

    def _sending(self, asked: Sequence[tuple[str, Path | bytes, int]]) -> Iterator[bytes]:
        for sha256, source, size in asked:
            done = 0
            try:
                for data in _pieces(source, CHUNK_BYTES):
                    done += len(data)
                    self.sent += len(data)
                    yield encode(Chunk(sha256=sha256), data)
            except OSError:
                pass  # the other side notices that it is not whole
            self.sent += size - done
            yield encode(Chunk(sha256=sha256, last=True))

    def drop(self, folder: str) -> None:
        """Offer a folder no longer."""
        self._offered.pop(folder, None)


def _pieces(source: Path | bytes, size: int) -> Iterator[bytes]:
    if isinstance(source, bytes):
        for start in range(0, len(source), size):
            yield source[start : start + size]
        return
    with source.open("rb") as file:
        while data := file.read(size):
            yield data


class Fetching:
    """The files of one result, on their way here.

    Attributes:
        message: The result, with those that came.
    """

    def __init__(self, message: messages.Result, there: str, into: Path) -> None:
        """Choose what to ask for.

        Args:
            message: As it came.
            there: The folder that a worker there may leave files in.
            into: This machine's folder for that.
        """
        self._into, self._bytes = into, 0
        self._kept: list[messages.Artefact] = [one for one in message.artefacts if one.uri]
        self._waiting = deque(
            one
            for one in message.artefacts[:_MOST_FETCHED]
            if one.path
            and PurePosixPath(one.path).is_relative_to(there)
            and _NAME.fullmatch(PurePosixPath(one.path).name)
        )
        self.message = msgspec.structs.replace(message, artefacts=self._kept)
        self._folders: dict[str, Path] = {}
        self._file: int | None = None
        self._digest = hashlib.sha256()
        self._target = Path()

    @property
    def folders(self) -> list[Path]:
        """The folders here that files came into."""
        return list(self._folders.values())

    @property
    def done(self) -> bool:
        """True when nothing more is to come."""
        return not self._waiting

    def awaits(self, sha256: str) -> bool:
        """True for the file that was asked for last and has not come."""
        return not self.done and sha256 == self._waiting[0].sha256

    def ask(self) -> frames.Fetch:
        """Return what to ask for next."""
        one = self._waiting[0]
        return frames.Fetch(path=str(one.path), sha256=one.sha256)

    def take(self, chunk: Chunk, body: bytes) -> bool:
        """Take a piece of the file that was asked for; True when that one is over.

        Raises:
            Untold: it is another file.
            OSError: it cannot be written here, or all of them are far too long.
        """
        if not self.awaits(chunk.sha256):
            raise Untold("sent a file that was not asked for")
        if self._file is None:
            self._open()
        assert self._file is not None
        self._bytes += len(body)
        if self._bytes > _MOST_FETCHED_BYTES:
            raise OSError(f"they are more than {_MOST_FETCHED_BYTES >> 20} MiB")
        self._digest.update(body)
        while body:
            body = body[os.write(self._file, body) :]
        if chunk.last:
            self._end(whole=self._digest.hexdigest() == chunk.sha256)
        return chunk.last

    def gone(self, sha256: str) -> None:
        """Go on without a file; raises Untold for another than was asked for."""
        if not self.awaits(sha256):
            raise Untold("told of a file that was not asked for")
        self._end(whole=False)

    def _open(self) -> None:
        # A folder there is one here; its files keep their names, by which pictures are told apart.
        path = PurePosixPath(str(self._waiting[0].path))
        folder = self._folders.get(str(path.parent))
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="fetched-", dir=self._into))
            self._folders[str(path.parent)] = folder
        self._target = folder / path.name
        self._digest = hashlib.sha256()
        self._file = os.open(
            self._target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )

    def _end(self, *, whole: bool) -> None:
        one = self._waiting.popleft()
        file, self._file = self._file, None
        if file is not None:
            os.close(file)
            if whole:
                self._kept.append(msgspec.structs.replace(one, path=str(self._target)))
            else:
                self._target.unlink()

    def close(self) -> None:
        """Stop in the middle; what is not whole goes."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._end(whole=False)


class Kept:
    """What was fetched of the last few results of a device; a worker here keeps as many."""

    def __init__(self) -> None:
        self._results: deque[list[Path]] = deque()

    def add(self, folders: list[Path]) -> None:
        """Take note of where the files of one more result lie, and remove those of older ones."""
        if folders:
            self._results.append(folders)
        while len(self._results) > _MOST_KEPT:
            for folder in self._results.popleft():
                shutil.rmtree(folder, ignore_errors=True)


def renamed(content: bytes, name: str, folders: Mapping[str, str]) -> bytes:
    """Return a configuration with the folders of its data as they are called on another host.

    The label map comes from home, and how it is named there is part of some models.

    Args:
        content: Of a file.
        name: Of that file: `pipeline.config`, or a YAML file; others stay as they are.
        folders: What is called what there.
    """
    if not folders or not name.endswith((".config", ".yaml")):
        return content
    # The longest first; a path begins where no path goes on, and a folder ends where one ends.
    names = sorted((one.rstrip("/") for one in folders), key=len, reverse=True)
    path = re.compile(
        rb"(?<![\w./~-])("
        + b"|".join(re.escape(one.encode()) for one in names)
        + rb")(?=[/\"'\s,\]]|$)"
    )
    theirs = {
        one.rstrip("/").encode(): there.rstrip("/").encode() for one, there in folders.items()
    }
    lines = content.splitlines(keepends=True)
    return b"".join(
        line if b"label_map_path" in line else path.sub(lambda found: theirs[found[1]], line)
        for line in lines
    )
