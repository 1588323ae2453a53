"""FarWorker: the carrier of another host, behind whatever starts a program there.

A launcher, ssh say, starts `checkpoint-watcher agent` there and joins its input and output; frames
(`frames.py`) go over those. A thread speaks with the agent, so that neither a slow line nor a
silent host holds up the loop, which takes what has arrived. Nothing that the other side says or
leaves unsaid is more than a HostTrouble of this one device.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import shlex
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import structlog

from watcher import __version__
from watcher.config.devices import DeviceTable
from watcher.decision.queue_policy import parse_size
from watcher.errors import HostTrouble, WatcherError, WorkerError, WorkerRefused
from watcher.evaluation import frames, messages, wire
from watcher.evaluation.answers import one_line
from watcher.evaluation.carriage import Fetching, Offers, Untold, renamed
from watcher.evaluation.frames import BEAT_SECONDS, SILENT_SECONDS, File
from watcher.evaluation.line import Broken, FrameLine
from watcher.evaluation.worker_log import WorkerLog
from watcher.files.slices import Work

_log = structlog.get_logger(__name__)

_ENDING_SECONDS = 2.0
_MOST_BEHIND = 1000
# No more is read from a host while the loop has so much to take.
_MOST_SAID = 10_000
# Beyond that people notice it in logs, and leases of credentials fail.
_CLOCK_SECONDS = 60.0


@dataclass(slots=True)
class FarDevice:
    """A device of another host, and what is known of it beyond one worker's life.

    Attributes:
        table: How it is reached.
        python: The training environment's interpreter there.
        run: What others who want the device are told.
        wanted: Another watcher there waits for it.
        sent_bytes: How much went over its lines, and `fetched_bytes` of files how much came.
        state: `connecting`, `reached` or `unreachable`, and `since` when, in ISO 8601.
        reason: Why it is not reached.
    """

    table: DeviceTable
    python: str
    run: str
    wanted: bool = False
    sent_bytes: int = 0
    fetched_bytes: int = 0
    state: str = "connecting"
    since: str = field(default_factory=lambda: _now())
    reason: str | None = None

    def became(self, state: str, reason: str | None = None) -> None:
        """Take note of whether it is reached."""
        if state != self.state:
            self.state, self.since = state, _now()
        self.reason = reason

    def status(self) -> dict[str, Any]:
        """Return what `status` shows of the host; sizes in MB, to be told anew not too often."""
        return {
            "host": self.host,
            "device": self.table.device,
            "state": self.state,
            "since": self.since,
            "reason": self.reason,
            "sent_mb": self.sent_bytes // 1_000_000,
            "fetched_mb": self.fetched_bytes // 1_000_000,
        }

    @property
    def host(self) -> str:
        """What to call the host."""
        return str(self.table.host)

    def is_wanted(self) -> bool:
        """Return whether another watcher there waits for the device."""
        return self.wanted

    def withdraw(self) -> None:
        """Do nothing: an agent that waits is ended, and with it its claim."""

    def command(self) -> list[str]:
        """Return the command that starts the agent there.

        A launcher with a shell there, as ssh has, gets it as one argument that is quoted for it.
        """
        table = self.table
        if table.has_shell:
            return [*table.launching, f"exec {shlex.join(table.agent)}"]
        return [*table.launching, *table.agent]

    def is_shared(self, path: str) -> bool:
        """Tell whether the other host sees a file of this machine, by what it calls it."""
        return any(Path(path).is_relative_to(folder) for folder in self.table.path_map)

    def theirs(self, path: str) -> str:
        """Return what a path of this machine is there."""
        return _mapped(path, self.table.path_map)

    def ours(self, path: str) -> str:
        """Return what a path there is on this machine."""
        return _mapped(path, {there: here for here, there in self.table.path_map.items()})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _mapped(path: str, folders: Mapping[str, str]) -> str:
    # The longest one that holds it.
    for folder in sorted(folders, key=len, reverse=True):
        base = folder.rstrip("/")
        if path == base or path.startswith(base + "/"):
            return folders[folder].rstrip("/") + path[len(base) :]
    return path


@dataclass(slots=True)
class _Shared:
    """What the loop and the thread hand each other; deques and flags alone."""

    asked: deque[msgspec.Struct] = field(default_factory=deque)
    said: deque[msgspec.Struct] = field(default_factory=deque)
    failure: WatcherError | None = None
    closing: bool = False
    began: bool = False
    resident_bytes: int = 0


class FarWorker:
    """A worker on another host, from the start of its launcher to the end of that."""

    def __init__(self, device: FarDevice, log: Path) -> None:
        """Start the launcher; what it and the worker print goes to `log`.

        Raises:
            HostTrouble: the launcher cannot be started.
        """
        self._device = device
        command = device.command()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise HostTrouble(
                f"{device.host}: cannot start the launcher {command[0]}: {error.strerror}"
            ) from error
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._shared = _Shared()
        self._news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ask = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        log_thread = WorkerLog(self._process.stderr, log)
        self._thread = _Talk(device, self._process, log_thread, self._shared, self._news, self._ask)
        device.wanted = False
        self._thread.start()

    @property
    def pid(self) -> int:
        """Process id of the launcher."""
        return self._process.pid

    def filenos(self) -> tuple[int]:
        """A file descriptor that becomes readable when something arrived."""
        return (self._news,)

    def resident_bytes(self) -> int:
        """Return the memory the worker held there some seconds ago, 0 before that was told."""
        return self._shared.resident_bytes

    def step_back(self) -> None:
        """Let it have what others leave of the CPU there, from now on."""
        self._hand(frames.Calm())

    def send(self, message: msgspec.Struct) -> None:
        """Send one message, as soon as the worker is there; what fails is told by `receive`."""
        self._hand(message)

    def _hand(self, message: msgspec.Struct) -> None:
        self._shared.asked.append(message)
        os.eventfd_write(self._ask, 1)

    def receive(self) -> Iterator[msgspec.Struct]:
        """Yield the messages that have arrived, possibly none; what came before an error first.

        Raises:
            HostTrouble: the host is silent, cannot be reached, or spoke nonsense.
            WorkerError: the worker ended.
            WorkerRefused: the host can never be used as it is set up.
        """
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._news)
        failure = self._shared.failure
        while self._shared.said:
            yield self._shared.said.popleft()
        if failure:
            raise failure

    def kill(self) -> None:
        """End the line at once; the agent there ends the worker and what that started."""
        self._shared.closing = True
        os.eventfd_write(self._ask, 1)
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDING_SECONDS)
        self._thread.join(_ENDING_SECONDS)
        if self._thread.is_alive():
            return  # in a read that hangs, of a file on a network say; it closes nothing of others
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert stream
                stream.close()
        os.close(self._news)
        os.close(self._ask)

    def stop(self, timeout_seconds: float) -> None:
        """Ask the worker to end, wait that long, then end the line."""
        if self._shared.began and self._shared.failure is None:
            self._hand(messages.Stop())
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_seconds)
        self.kill()


class _Lacking(HostTrouble):
    """Raised when a host that is reached has not what an evaluation needs."""


class _Talk(threading.Thread):
    """Speaks with one agent until the line ends."""

    def __init__(
        self,
        device: FarDevice,
        process: subprocess.Popen[bytes],
        log: WorkerLog,
        shared: _Shared,
        news: int,
        ask: int,
    ) -> None:
        super().__init__(name=f"far-{device.host}", daemon=True)
        assert process.stdin and process.stdout
        self._device, self._process, self._shared = device, process, shared
        self._log, self._news, self._ask = log, news, ask
        now = time.monotonic()
        self._line = FrameLine(
            process.stdout.fileno(), process.stdin.fileno(), frames.HOME_READS, now
        )
        self._began: frames.Began | None = None
        self._greeted = False
        self._connect_by = now + device.table.connect_timeout
        self._waits_told = -BEAT_SECONDS
        # What is asked waits until there is a worker, and then its turn.
        self._requests: deque[msgspec.Struct] = deque()
        self._preparing: Work[None] | None = None
        self._offers = Offers()
        self._folders: dict[str, str] = {}
        self._count = 0
        self._moved = self._sent_told = 0
        self._moved_told = 0.0
        # Where files of results come to lie here, and what waits for those of one.
        self._artefacts: Path | None = None
        self._fetching: Fetching | None = None
        self._behind: deque[msgspec.Struct] = deque()

    def run(self) -> None:
        """Speak until the end; why it ended is told to the loop."""
        try:
            self._tell(messages.Phase(f"connecting to {self._device.host}"))
            while not self._shared.closing:
                self._turn()
        except WatcherError as error:
            if isinstance(error, HostTrouble) and not self._shared.closing:
                state = "reached" if isinstance(error, _Lacking) else "unreachable"
                self._device.became(state, error.message)
            self._shared.failure = error
        except Exception as error:  # a fault of ours must be this device's alone, too
            _log.exception("the line to a host ended", host=self._device.host)
            self._shared.failure = HostTrouble(f"{self._device.host}: {error!r}")
        finally:
            if self._fetching:
                self._fetching.close()
            if not self._shared.closing:
                os.eventfd_write(self._news, 1)

    def _tell(self, message: msgspec.Struct) -> None:
        self._shared.said.append(message)
        os.eventfd_write(self._news, 1)

    def _turn(self) -> None:
        line = self._line
        poll = select.poll()
        poll.register(self._ask, select.POLLIN)
        if len(self._shared.said) < _MOST_SAID:
            poll.register(line.reading, select.POLLIN)
        if line.has_output:
            poll.register(line.writing, select.POLLOUT)
        seconds = 0.0 if self._preparing else min(1.0, line.beat_in(time.monotonic()) + 0.01)
        ready = dict(poll.poll(1000 * seconds))
        now = time.monotonic()
        try:
            if line.reading in ready:
                for frame, body in line.read(now):
                    self._take(frame, body)
            self._take_asked()
            self._go_on()
            self._tell_moved(now)
            if self._greeted:
                line.beat(now, BEAT_SECONDS, frames.Beat())
            line.write()
        except Broken as error:
            if not self._shared.closing:
                raise self._trouble(error) from error
        except Untold as error:
            raise HostTrouble(f"{self._device.host} {error}") from error
        self._require_life(now)

    def _require_life(self, now: float) -> None:
        host = self._device.host
        if self._greeted and now - self._line.heard > SILENT_SECONDS:
            raise HostTrouble(f"{host} has said nothing for {SILENT_SECONDS:g} s")
        if self._greeted:
            return
        if now > self._connect_by:
            limit = self._device.table.connect_timeout
            raise HostTrouble(f"{host} cannot be reached: no agent answered within {limit:g} s")
        if now - self._waits_told >= BEAT_SECONDS:
            # The time that a worker may take to start begins when there is somebody to start it.
            self._waits_told = now
            self._tell(frames.Waits())

    def _trouble(self, error: Broken) -> HostTrouble:
        """Return what became of the line, in the words of the launcher where it ended."""
        host, how, code = self._device.host, str(error), None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_ENDING_SECONDS if error.closed else 0)
        last = _line(self._log.last_line())
        if code == 127 and not self._greeted:
            said = f" ({last})" if last else ""
            return HostTrouble(f"{host}: {self._device.table.agent[0]} is not there{said}")
        if code is not None:
            how = f"{Path(self._device.table.launching[0]).name} ended with exit code {code}"
        elif not self._greeted:
            how = f"{how}; its shell must print nothing when a program is started"
        said = f" ({last})" if last else ""
        if self._greeted:
            return HostTrouble(f"the line to {host} broke: {how}{said}")
        return HostTrouble(f"{host} cannot be reached: {how}{said}")

    # -- what the agent says

    def _take(self, frame: frames.Frame, body: bytes) -> None:
        host = self._device.host
        match frame:
            case frames.Hello() if not self._greeted:
                self._greet(frame)
            case frames.Waits(reason=reason) if self._greeted and not self._began:
                self._tell(frames.Waits(reason=reason and _line(reason)))
            case frames.Began() if self._greeted and not self._began:
                self._began, self._shared.began = frame, True
                self._tell(frames.Waits())
            case frames.Line() if self._began:
                self._take_line(body)
            case frames.Want() if self._began:
                self._line.bulk.append(self._offers.wanted(frame))
            case frames.Whole() if self._began:
                pass
            case frames.Chunk() if self._fetching:
                self._take_chunk(self._fetching, frame, body)
            case frames.Gone() if self._fetching:
                self._fetching.gone(frame.sha256)
                self._fetch_next(self._fetching)
            case frames.Beat() if self._greeted:
                self._device.wanted = frame.wanted
                self._shared.resident_bytes = frame.resident_bytes
            case frames.Cannot() if self._greeted:
                raise _Lacking(f"{host} cannot evaluate: {_line(frame.reason)}")
            case frames.Refused() if self._greeted:
                raise WorkerRefused("host", f"{host}: {_line(frame.message)}", hint=_hint(frame))
            case frames.Ended() if self._greeted:
                raise WorkerError(f"on {host}, {_line(frame.reason)}", hint=_hint(frame))
            case _:
                kind = type(frame).__name__.lower()
                raise HostTrouble(f"{host} said {kind} when that was not to be said")

    def _greet(self, hello: frames.Hello) -> None:
        host = self._device.host
        ours = (frames.AGENT_PROTOCOL, __version__, frames.evaluators_digest())
        if (hello.protocol, hello.watcher, hello.evaluators) != ours:
            same = hello.watcher == __version__
            raise WorkerRefused(
                "host",
                f"{host} has checkpoint-watcher {_line(hello.watcher)},"
                f" and here it is {__version__}{', but its files differ' if same else ''}",
                hint="install there what is installed here, so that both measure the same",
            )
        off = hello.now - time.time()
        if abs(off) > _CLOCK_SECONDS:
            _log.warning("the clock of a host is off", host=host, seconds=round(off))
        self._greeted = True
        self._device.became("reached")
        device = self._device
        self._line.send(
            frames.Open(
                protocol=frames.AGENT_PROTOCOL,
                watcher=__version__,
                evaluators=frames.evaluators_digest(),
                device=device.table.device,
                python=device.python,
                folder=device.table.working_directory,
                lock_dir=device.table.device_lock_dir,
                run=device.run,
                cache=device.table.cache,
                cache_bytes=parse_size(str(device.table.cache_limit)),
            )
        )
        self._tell(frames.Waits())
        self._tell(messages.Phase(f"starting on {_line(hello.host)}"))

    def _take_line(self, body: bytes) -> None:
        """Take a worker's message; what comes behind files that are fetched waits for them."""
        assert self._began
        message = self._read(body)
        if isinstance(message, messages.Result | messages.Failed | wire.WrongResult):
            self._drop(message.id)
        if self._fetching:
            self._behind.append(message)
            if len(self._behind) > _MOST_BEHIND:
                raise HostTrouble(f"{self._device.host} sent no picture while it said much else")
        else:
            self._deliver(message)

    def _deliver(self, message: msgspec.Struct) -> None:
        assert self._began
        there, into = self._began.folder, self._artefacts
        if isinstance(message, messages.Result) and message.artefacts and there and into:
            self._fetching = Fetching(message, there, into)
            self._fetch_next(self._fetching)
        else:
            self._tell(_without_paths(message))

    def _take_chunk(self, fetching: Fetching, chunk: frames.Chunk, body: bytes) -> None:
        try:
            if fetching.take(chunk, body):
                self._fetch_next(fetching)
        except OSError as error:
            _log.warning("a picture cannot be kept", host=self._device.host, reason=str(error))
            raise HostTrouble(f"{self._device.host}: files cannot be kept here: {error}") from error
        self._device.fetched_bytes += len(body)

    def _fetch_next(self, fetching: Fetching) -> None:
        if not fetching.done:
            self._line.send(fetching.ask())
            return
        self._fetching = None
        self._tell(fetching.message)
        while self._behind and self._fetching is None:
            self._deliver(self._behind.popleft())

    def _read(self, line: bytes) -> msgspec.Struct:
        """Return a worker's message with its paths as they are here."""
        try:
            message = wire.read_reply(line)
        except WorkerError as error:
            raise WorkerError(f"on {self._device.host}, {error.message}") from error
        replace = msgspec.structs.replace
        match message:
            case messages.Ready():
                self._drop("check")
                # An average is written to the disk of this machine.
                can = message.capabilities
                jobs = tuple(job for job in can.jobs if job == "evaluate")
                # Copies that it took lie there; home's own look after the user's files.
                return replace(message, capabilities=replace(can, jobs=jobs), taken={})
        return message

    # -- what the loop asks

    def _take_asked(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._ask)
        while self._shared.asked:
            request = self._shared.asked.popleft()
            if isinstance(request, frames.Calm | messages.Stop) and not self._began:
                continue
            self._requests.append(request)

    def _go_on(self) -> None:
        """Pass on what is asked, in its order; files are read a few MB a turn."""
        if self._began is None:
            return
        if self._preparing is None and self._requests:
            self._preparing = self._passing(self._requests.popleft())
        try:
            if self._preparing:
                next(self._preparing)
        except StopIteration:
            self._preparing = None
            os.eventfd_write(self._ask, 1)  # there may be another one
        except OSError as error:
            host = self._device.host
            raise HostTrouble(f"a file for {host} cannot be read here: {error}") from error

    def _passing(self, request: msgspec.Struct) -> Work[None]:
        line = frames.Line()
        match request:
            case frames.Calm():
                self._line.send(request)
                return
            case messages.Start():
                request, line = yield from self._start(request)
            case messages.Evaluate():
                prefix, line = yield from self._checkpoint(request.prefix, request.id)
                request = msgspec.structs.replace(request, prefix=prefix)
        self._line.send(line, wire.write_request(request).rstrip(b"\n"))

    def _start(self, request: messages.Start) -> Work[tuple[messages.Start, frames.Line]]:
        """Name what the worker is set up from as it is there, and offer it."""
        assert self._began
        theirs, snapshot, folders = self._device.theirs, request.snapshot, []
        self._artefacts = Path(request.artefacts_dir) if request.artefacts_dir else None
        moved: dict[str, str] = {}
        if snapshot:
            there = f"{self._began.given}/snapshot"
            moved = {snapshot.folder: there}
            files: dict[str, Path | bytes] = {}
            for path in sorted(Path(snapshot.folder).iterdir()):
                if path.is_file() and not path.name.startswith("."):
                    files[path.name] = renamed(
                        path.read_bytes(), path.name, self._device.table.path_map
                    )
            offer = yield from self._offers.offering("snapshot", files)
            self._line.send(offer)
            folders.append("snapshot")
            originals = {_mapped(copy, moved): file for copy, file in snapshot.originals.items()}
            snapshot = messages.SnapshotFiles(there, originals)
        check, line = request.check, frames.Line(folders=folders)
        if check:
            check, more = yield from self._checkpoint(check, "check")
            line = frames.Line(needs=more.needs, folders=[*folders, *more.folders])
        request = msgspec.structs.replace(
            request,
            options=_walk(request.options, lambda text: theirs(_mapped(text, moved))),
            device=self._began.device,
            device_shared=bool(self._began.shared),
            check=check,
            snapshot=snapshot,
            artefacts_dir=self._began.folder,
        )
        return request, line

    def _checkpoint(self, prefix: str, token: str) -> Work[tuple[str, frames.Line]]:
        """Return a checkpoint's prefix there, and what has to be there before it is read."""
        assert self._began
        path = Path(prefix)
        if self._device.is_shared(prefix):
            index = Path(prefix + ".index")
            digest = hashlib.sha256(index.read_bytes()).hexdigest()
            theirs = self._device.theirs
            return theirs(prefix), frames.Line(needs=[File(theirs(str(index)), digest)])
        self._count += 1
        folder = f"c{self._count}"
        files: dict[str, Path | bytes] = {
            file.name: file
            for file in sorted(path.parent.iterdir())
            if file.name == path.name + ".index" or file.name.startswith(path.name + ".data-")
        }
        offer = yield from self._offers.offering(folder, files)
        self._line.send(offer)
        self._folders[token] = folder
        return f"{self._began.given}/{folder}/{path.name}", frames.Line(folders=[folder])

    def _drop(self, token: str) -> None:
        """Let a checkpoint's files go, which were sent for an evaluation that is over."""
        folder = self._folders.pop(token, None)
        if folder:
            self._offers.drop(folder)
            self._line.send(frames.Drop(folder=folder))

    def _tell_moved(self, now: float) -> None:
        """Say now and then that files are read, or go over the line."""
        moved = self._line.sent + self._line.received
        self._device.sent_bytes += self._line.sent - self._sent_told
        self._sent_told = self._line.sent
        reads = self._preparing is not None
        carries = self._offers.busy or self._fetching is not None
        if now - self._moved_told >= 1.0 and (reads or (carries and moved > self._moved)):
            self._moved, self._moved_told = moved, now
            self._tell(frames.Moved())


def _line(text: str) -> str:
    """Return what the other side said in one line that a terminal may be shown."""
    return one_line("".join(one if one.isprintable() else " " for one in text))


def _hint(frame: frames.Refused | frames.Ended) -> str | None:
    return None if frame.hint is None else _line(frame.hint)


def _without_paths(message: msgspec.Struct) -> msgspec.Struct:
    """Return a message without files that lie on the other host."""
    if not isinstance(message, messages.Result) or not message.artefacts:
        return message
    return msgspec.structs.replace(message, artefacts=[one for one in message.artefacts if one.uri])


def _walk(value: Any, change: Any) -> Any:
    """Return options with each text in them changed, also those in lists and by name."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_walk(one, change) for one in value]
    if isinstance(value, dict):
        return {name: _walk(one, change) for name, one in value.items()}
    return value
