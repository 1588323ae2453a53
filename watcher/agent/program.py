"""Agent: what a watcher on another host has started here, `checkpoint-watcher agent`.

Its standard input and output are the line to the watcher, in frames (`evaluation/frames.py`). It
takes the lock of the device, starts the worker with the training environment's interpreter, and
passes lines on both ways until either side ends. The worker and all that it started end with the
line; `guard.py` sees to that where the agent itself is killed or stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

from watcher import __version__
from watcher.agent import guard
from watcher.agent.cache import Cache, CacheError
from watcher.agent.given import Given
from watcher.agent.place import Seat
from watcher.errors import ConfigError, DeviceTaken, WorkerError
from watcher.evaluation import frames
from watcher.evaluation.device import Choice
from watcher.evaluation.device_lock import DeviceLock
from watcher.evaluation.frames import AGENT_SILENT_SECONDS, BEAT_SECONDS
from watcher.evaluation.line import Broken, FrameLine
from watcher.evaluation.od_api import WORKER_FILE
from watcher.evaluation.worker import Worker, device_environment
from watcher.files.scratch import Scratch
from watcher.files.scratch import base as scratch_base

# A file system on a network shows a new file some seconds after it was written.
_FILES_SECONDS = 15.0
_FILES_AGAIN_SECONDS = 0.5
_FLUSH_SECONDS = 2.0


class _Said(msgspec.Struct):
    """What the agent reads of a line that it passes on."""

    type: str = ""
    id: str = ""


_ANSWERS = {"result", "failed"}


class Over(Exception):
    """Raised when the agent is to end; what there is to say of it is on the line already."""


class Guard:
    """The process that outlives this one for a moment, should this one be killed."""

    def __init__(self, folder: str | None) -> None:
        self._said: dict[str, object] = {"group": 0, "folder": folder}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdin
        self._pipe = self._process.stdin.fileno()
        os.set_blocking(self._pipe, False)
        self.tell()

    def tell(self, **said: object) -> None:
        """Say that the agent lives, and what it has come to."""
        self._said |= said
        with contextlib.suppress(OSError):
            os.write(self._pipe, json.dumps(self._said).encode() + b"\n")

    def close(self) -> None:
        """Let it end: the worker is gone."""
        self.tell(done=True)
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            assert self._process.stdin
            self._process.stdin.close()
            self._process.wait(_FLUSH_SECONDS)


class Agent:
    """One worker for one watcher, from the first frame to the end of the line."""

    def __init__(self, line: FrameLine, scratch: Scratch, guard: Guard) -> None:
        self._line, self._scratch, self._guard = line, scratch, guard
        self._seat: Seat | None = None
        self._told_wait: str | None = None
        self._look_at = 0.0
        self._wanted = False
        self.worker: Worker | None = None
        # What waits for files, with when that is given up; what comes after it waits, too.
        self._held: list[tuple[frames.Line, bytes, float]] = []
        # Ids of what the worker evaluates, which must not end for what another one lacks.
        self._evaluated: set[str] = set()
        self._given: Given | None = None

    def run(self) -> None:
        """Work until the line ends, the worker ends or something is refused."""
        hello = frames.Hello(
            protocol=frames.AGENT_PROTOCOL,
            watcher=__version__,
            evaluators=frames.evaluators_digest(),
            host=socket.gethostname(),
            now=time.time(),
        )
        self._line.send(hello)
        with contextlib.suppress(Over, Broken):
            while True:
                self._turn()
        deadline = time.monotonic() + _FLUSH_SECONDS
        with contextlib.suppress(Broken, OSError):
            while self._line.has_output and time.monotonic() < deadline:
                select.select([], [self._line.writing], [], 0.1)
                self._line.write()

    def close(self) -> None:
        """End the worker and what it started."""
        if self.worker:
            self.worker.kill()
        if self._seat:
            self._seat.withdraw()
        if self._given:
            self._given.close()

    def _turn(self) -> None:
        line, now = self._line, time.monotonic()
        ready = self._wait(now)
        now = time.monotonic()
        try:
            if line.reading in ready:
                for frame, body in line.read(now):
                    self._take(frame, body, now)
            if self._given and self._given.busy:
                self._given.go_on()
        except CacheError as error:
            self._end(frames.Cannot(reason=error.message[:4000]))
        if now - line.heard > AGENT_SILENT_SECONDS:
            raise Over
        if self.worker is None and self._seat:
            self._begin(self._seat, now)
        self._pass_held(now)
        if self.worker and not line.is_full:
            self._relay(self.worker)
        self._beat(now)
        line.write()

    def _wait(self, now: float) -> dict[int, int]:
        line, seconds = self._line, min(1.0, self._line.beat_in(now) + 0.01)
        poll = select.poll()
        poll.register(line.reading, select.POLLIN)
        if line.has_output:
            poll.register(line.writing, select.POLLOUT)
        if self.worker and not line.is_full:
            for descriptor in self.worker.filenos():
                poll.register(descriptor, select.POLLIN)
        if self._given and self._given.busy:
            seconds = 0.0
        elif self._held:
            seconds = min(seconds, _FILES_AGAIN_SECONDS)
        elif self._seat and self.worker is None:
            seconds = min(seconds, self._seat.look_again_in)
        return dict(poll.poll(1000 * seconds))

    def _beat(self, now: float) -> None:
        if self._line.beat_in(now):
            return
        self._guard.tell()
        if self.worker and self._seat and self._seat.lock:
            self._wanted = self._seat.lock.is_wanted()
        held = self.worker.resident_bytes() if self.worker else 0
        self._line.beat(now, BEAT_SECONDS, frames.Beat(resident_bytes=held, wanted=self._wanted))

    # -- what the watcher says

    def _take(self, frame: frames.Frame, body: bytes, now: float) -> None:
        match frame:
            case frames.Open() if self._seat is None:
                self._seat = Seat(frame)
            case frames.Line() if self.worker:
                self._held.append((frame, body, now + _FILES_SECONDS))
            case frames.Calm() if self.worker:
                self.worker.step_back()
            case frames.Offer() if self._given:
                self._given.offered(frame)
            case frames.Chunk() if self._given:
                self._given.take(frame, body)
            case frames.Drop() if self._given:
                self._given.drop(frame.folder)
            case frames.Fetch() if self.worker:
                self._line.bulk.append(self._sending(frame))
            case frames.Beat():
                pass
            case _:
                self._end(frames.Ended(reason=f"{type(frame).__name__} was not to be said"))

    def _end(self, last: frames.Refused | frames.Ended | frames.Cannot) -> None:
        self._line.send(last)
        raise Over

    # -- from the device to a worker

    def _begin(self, seat: Seat, now: float) -> None:
        match seat.choice:
            case ConfigError() as error:
                self._end(frames.Refused(message=error.message, hint=error.hint))
            case WorkerError() as error:
                self._end(frames.Cannot(reason=error.message[:4000]))
        if (choice := seat.due(now)) is None:
            return
        try:
            self._start(seat.wanted, choice, seat.lock)
        except DeviceTaken as error:
            if error.message != self._told_wait:
                self._told_wait = error.message
                self._line.send(frames.Waits(reason=error.message[:4000]))
            seat.is_taken(now)
        except WorkerError as error:
            self._end(frames.Ended(reason=error.message[:4000], hint=error.hint))

    def _start(self, wanted: frames.Open, choice: Choice, lock: DeviceLock | None) -> None:
        given = self._prepare(wanted)
        folder = Path(wanted.folder) if wanted.folder else None
        if folder and not folder.is_dir():
            raise WorkerError(f"working_directory ({folder}) is not a folder there")
        self.worker = Worker(
            [wanted.python, str(WORKER_FILE)],
            device_environment(choice.device),
            None,
            lock,
            self._scratch,
            folder,
        )
        self._guard.tell(group=self.worker.pid)
        self._line.send(
            frames.Began(
                device=choice.device,
                label=choice.label,
                shared=choice.shared,
                folder=self._scratch.artefacts(),
                given=given,
            )
        )

    def _prepare(self, wanted: frames.Open) -> str:
        """Make the cache, and return where folders of files that come are to lie."""
        if self._scratch.folder is None:
            raise WorkerError("there is no folder there for temporary files")
        base = Path(self._scratch.folder, "given")
        if self._given:
            return str(base)
        folder = Path(wanted.cache) if wanted.cache else _usual_cache()
        try:
            cache = Cache(folder, wanted.cache_bytes)
            cache.tidy()
        except CacheError as error:
            self._end(frames.Cannot(reason=error.message[:4000]))
        self._given = Given(cache, base, self._line.send)
        return str(base)

    def _sending(self, fetch: frames.Fetch) -> Iterator[bytes]:
        """Yield the frames of a file that the worker left, and remove it; of no other file."""
        folder = self._scratch.artefacts()
        try:
            path = Path(fetch.path).resolve()
            if folder is None or not path.is_relative_to(Path(folder).resolve()):
                raise OSError
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError
                while data := file.read(frames.CHUNK_BYTES):
                    yield frames.encode(frames.Chunk(sha256=fetch.sha256), data)
            path.unlink()
        except (OSError, ValueError, RuntimeError):
            yield frames.encode(frames.Gone(sha256=fetch.sha256))
            return
        yield frames.encode(frames.Chunk(sha256=fetch.sha256, last=True))

    # -- the worker's lines

    def _relay(self, worker: Worker) -> None:
        try:
            for line in worker.receive_lines():
                said = _said(line)
                if said.type in _ANSWERS:
                    self._evaluated.discard(said.id)
                self._line.send(frames.Line(), line)
        except WorkerError as error:
            self._end(frames.Ended(reason=error.message[:4000], hint=error.hint))

    def _pass_held(self, now: float) -> None:
        """Pass on what waits, as soon as its files are there; in its order."""
        while self._held and self.worker and now >= self._look_at:
            frame, body, until = self._held[0]
            if self._given and not all(map(self._given.is_whole, frame.folders)):
                # As long as that takes: home watches over it.
                self._held[0] = frame, body, now + _FILES_SECONDS
                return
            if wrong := _wrong(frame):
                if now < until or self._evaluated:
                    self._look_at = now + _FILES_AGAIN_SECONDS
                    return
                self._end(frames.Cannot(reason=wrong[:4000]))
            self._held.pop(0)
            if (said := _said(body)).type == "evaluate":
                self._evaluated.add(said.id)
            try:
                self.worker.send_line(body + b"\n")
            except WorkerError as error:
                self._end(frames.Ended(reason=error.message[:4000]))


def _said(line: bytes) -> _Said:
    try:
        return msgspec.json.decode(line, type=_Said)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return _Said()  # whoever reads it says what it is


def _usual_cache() -> Path:
    home = os.path.expanduser("~")  # noqa: PTH111 - Path's raises where a user has no home
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path(home, ".cache"))
    if base.is_absolute():
        return base / "checkpoint-watcher"
    return scratch_base() / f"checkpoint-watcher-{os.geteuid()}"


def _wrong(frame: frames.Line) -> str | None:
    """Say which file is not there as the watcher has it, None where all are."""
    for file in frame.needs:
        try:
            found = hashlib.sha256(Path(file.path).read_bytes()).hexdigest()
        except OSError as error:
            return f"{file.path} cannot be read there: {error.strerror}"
        if found != file.sha256:
            return f"{file.path} there is another file than here"
    return None


def main() -> int:
    """Run the agent on standard input and output; returns its exit code."""
    reading, writing = os.dup(0), os.dup(1)
    # What libraries print must not come between the frames, nor what they read be taken from them.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if os.isatty(reading):
        print(
            "checkpoint-watcher agent is started by a watcher on another host,"
            " and speaks with that on its input and output",
            file=sys.stderr,
        )
        return 2
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    with Scratch() as scratch:
        guarding = Guard(scratch.folder)
        line = FrameLine(reading, writing, frames.AGENT_READS, time.monotonic())
        agent = Agent(line, scratch, guarding)
        try:
            agent.run()
        finally:
            agent.close()
            guarding.close()
    return 0
