"""Frames: what the watcher and its agent on another host tell each other over the launcher's pipes.

A frame is one line, a JSON object with a `type`, and `size` bytes after it. The lines of the
evaluator protocol travel in frames of type `line`, unchanged. What is malformed, too long or of an
unknown type raises LineError, whatever side it came from: the other one may be anything that a
launcher started, and a login shell that prints a greeting is the most common of them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from watcher import __version__

# Raised where one side could not speak with the other as it was before.
AGENT_PROTOCOL = 1
# Room for the names and digests of as many files as one folder may have.
HEADER_BYTES = 4 << 20
MOST_FILES = 10_000
BODY_BYTES = 16 << 20
# How often each side says that it lives. The home side gives up after three that did not come; the
# far one waits longer, since it would lose an evaluation by a pause of the home machine.
BEAT_SECONDS = 3.0
SILENT_SECONDS = 9.0
AGENT_SILENT_SECONDS = 30.0

_EVALUATORS = Path(__file__).resolve().parents[2] / "evaluators"

# Pieces of files are so small that a slow line has a beat between them.
CHUNK_BYTES = 256 << 10

Text = Annotated[str, Meta(max_length=4000)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
# Of one folder: no way out of it, and nothing hidden.
FileName = Annotated[str, Meta(pattern=r"^[^./\x00][^/\x00]{0,254}$")]
FolderName = Annotated[str, Meta(pattern="^[0-9a-z]{1,64}$")]
# The one folder that stays as long as the worker.
SNAPSHOT = "snapshot"


class LineError(Exception):
    """Raised when what arrived is no frame; the message says what it is instead."""


class Frame(Struct, frozen=True, kw_only=True):
    """One message; `size` says how many bytes follow it."""

    size: Annotated[int, Meta(ge=0, le=BODY_BYTES)] = 0


class Open(Frame, frozen=True, tag="open"):
    """From home, first: what to start.

    Attributes:
        device: As `--device` has it after the host: `cpu`, `gpu:N` or a UUID.
        python: The training environment's interpreter there.
        folder: Where relative paths begin there, None for wherever the agent is started.
        lock_dir: Where devices are locked there, None for the usual folders.
        cache: Where files that come over the line are kept there, None for the user's cache.
        cache_bytes: How many may lie there.
        run: What others who want the device are told.
    """

    protocol: int
    watcher: str
    evaluators: str
    device: str
    python: str
    folder: str | None = None
    lock_dir: str | None = None
    run: str = ""
    cache: str | None = None
    cache_bytes: int = 0


class Hello(Frame, frozen=True, tag="hello"):
    """From the agent, first: who it is, and what time it is there in seconds since the epoch."""

    protocol: int
    watcher: Text
    evaluators: Text
    host: Text
    now: float


class Waits(Frame, frozen=True, tag="waits"):
    """Another one there has the device, or the line is not there yet; None: not any more."""

    reason: Text | None = None


class Began(Frame, frozen=True, tag="began"):
    """The device is taken and a worker started on it.

    Attributes:
        device: What the worker knows it by.
        label: What people call it.
        shared: Others compute on it.
        folder: Where the worker may leave files.
        given: Where folders that are offered come to lie.
    """

    device: Text
    label: Text
    shared: bool | None = None
    folder: Text | None = None
    given: Text = ""


class File(Struct, frozen=True):
    """A file by the far host's path, and the sha256 of what has to be in it."""

    path: str
    sha256: Sha256


class Line(Frame, frozen=True, tag="line"):
    """A line of the evaluator protocol, in the bytes that follow.

    Attributes:
        needs: Files that have to be there as they are here.
        folders: Folders that were offered and have to be whole.
    """

    needs: list[File] = []
    folders: list[str] = []


class Offered(Struct, frozen=True):
    """A file that can be asked for, and its name in its folder."""

    name: FileName
    sha256: Sha256
    size: Annotated[int, Meta(ge=0, lt=1 << 60)]


class Offer(Frame, frozen=True, tag="offer"):
    """From home: a folder that is to be there with these files; it answers for no others."""

    folder: FolderName
    files: Annotated[list[Offered], Meta(max_length=MOST_FILES)]


class Want(Frame, frozen=True, tag="want"):
    """From the agent: which files of an offer it has not got."""

    folder: FolderName
    sha256: Annotated[list[Sha256], Meta(max_length=MOST_FILES)]


class Chunk(Frame, frozen=True, tag="chunk"):
    """A piece of a file, in the bytes that follow; `last` after the last one."""

    sha256: Sha256
    last: bool = False


class Whole(Frame, frozen=True, tag="whole"):
    """From the agent: all of an offer is there."""

    folder: FolderName


class Drop(Frame, frozen=True, tag="drop"):
    """From home: a folder is not needed any more."""

    folder: FolderName


class Fetch(Frame, frozen=True, tag="fetch"):
    """From home: send a file that the worker left in the folder for that, and remove it."""

    path: str
    sha256: Sha256


class Gone(Frame, frozen=True, tag="gone"):
    """From the agent: a file that was to be fetched cannot be sent."""

    sha256: Sha256


class Calm(Frame, frozen=True, tag="calm"):
    """From home: let the worker have what others leave of the CPU."""


class Beat(Frame, frozen=True, tag="beat"):
    """The other side lives.

    Attributes:
        resident_bytes: Memory that the worker holds.
        wanted: Another watcher there waits for the device.
    """

    resident_bytes: Annotated[int, Meta(ge=0, lt=1 << 60)] = 0
    wanted: bool = False


class Cannot(Frame, frozen=True, tag="cannot"):
    """From the agent: what an evaluation needs cannot be had there; it ends."""

    reason: Text


class Refused(Frame, frozen=True, tag="refused"):
    """From the agent: it can never work as it is set up, and ends."""

    message: Text
    hint: Text | None = None


class Ended(Frame, frozen=True, tag="ended"):
    """From the agent: the worker ended, or could not be started, and so does the agent."""

    reason: Text
    hint: Text | None = None


class Moved(Struct, frozen=True):
    """Files are on their way, which no worker can tell; this does not go over the line."""


ToAgent = Open | Line | Calm | Beat | Offer | Chunk | Drop | Fetch
ToHome = (
    Hello | Waits | Began | Line | Beat | Want | Whole | Chunk | Gone | Cannot | Refused | Ended
)
AGENT_READS = msgspec.json.Decoder(ToAgent)
HOME_READS = msgspec.json.Decoder(ToHome)


def encode(frame: Frame, body: bytes = b"") -> bytes:
    """Return a frame as it travels."""
    if body:
        frame = msgspec.structs.replace(frame, size=len(body))
    return msgspec.json.encode(frame) + b"\n" + body


class Parser:
    """Takes bytes as they come, and gives the frames in them."""

    def __init__(self, decoder: msgspec.json.Decoder[ToAgent] | msgspec.json.Decoder[ToHome]):
        self._decoder = decoder
        self._buffer = bytearray()
        self._frame: Frame | None = None

    def feed(self, data: bytes) -> Iterator[tuple[Frame, bytes]]:
        """Yield each frame that is whole by now, with the bytes that follow it.

        Raises:
            LineError: what came is no frame; nothing after it can be read.
        """
        self._buffer += data
        while True:
            if self._frame is None:
                end = self._buffer.find(b"\n", 0, HEADER_BYTES)
                if end < 0:
                    if len(self._buffer) >= HEADER_BYTES:
                        raise LineError(f"an endless line: {_shown(self._buffer)}")
                    return
                header = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._frame = self._read(header)
            if len(self._buffer) < self._frame.size:
                return
            body = bytes(self._buffer[: self._frame.size])
            del self._buffer[: self._frame.size]
            frame, self._frame = self._frame, None
            yield frame, body

    def _read(self, header: bytes) -> Frame:
        try:
            return self._decoder.decode(header)
        except (msgspec.DecodeError, RecursionError, UnicodeError, ValueError) as error:
            raise LineError(_shown(header)) from error


def _shown(data: bytes | bytearray) -> str:
    text = "".join(filter(str.isprintable, bytes(data[:200]).decode(errors="replace")))
    return repr(text[:80])


@functools.cache
def evaluators_digest() -> str:
    """Return the sha256 of the evaluators that come with this installation.

    Hosts whose evaluators differ would measure different things under one fingerprint.
    """
    digest = hashlib.sha256(__version__.encode())
    for path in sorted(_EVALUATORS.rglob("*.py")):
        digest.update(f"{path.relative_to(_EVALUATORS)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
