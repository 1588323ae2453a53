"""Talk: the thread that speaks with one agent on another host until the line ends.

Nothing that the other side says or leaves unsaid is more than a trouble of that one device.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from watcher import __version__
from watcher.decision.queue_policy import parse_size
from watcher.errors import HostTrouble, WatcherError, WorkerError, WorkerRefused
from watcher.evaluation import frames, messages, wire
from watcher.evaluation.answers import one_line
from watcher.evaluation.carriage import Fetching, Untold
from watcher.evaluation.far_device import FarDevice
from watcher.evaluation.far_requests import Requests
from watcher.evaluation.frames import BEAT_SECONDS, SILENT_SECONDS
from watcher.evaluation.line import Broken, FrameLine
from watcher.evaluation.worker_log import WorkerLog
from watcher.files.slices import Work

_log = structlog.get_logger(__name__)

_ENDING_SECONDS = 2.0
_MOST_BEHIND = 1000
# A score does not wait longer for its pictures while nothing of them comes.
_FETCH_SECONDS = 30.0
# No more is read from a host while the loop has so much to take.
_MOST_SAID = 10_000
# Beyond that people notice it in logs, and leases of credentials fail.
_CLOCK_SECONDS = 60.0


@dataclass(slots=True)
class Shared:
    """What the loop and the thread hand each other; deques and flags alone."""

    asked: deque[msgspec.Struct] = field(default_factory=deque)
    said: deque[msgspec.Struct] = field(default_factory=deque)
    failure: WatcherError | None = None
    closing: bool = False
    began: bool = False
    resident_bytes: int = 0


class _Lacking(HostTrouble):
    """Raised when a host that is reached has not what an evaluation needs."""


class Talk(threading.Thread):
    """Speaks with one agent until the line ends."""

    def __init__(
        self,
        device: FarDevice,
        process: subprocess.Popen[bytes],
        log: WorkerLog,
        shared: Shared,
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
        self._left_in: str | None = None
        self._greeted = False
        self._connect_by = now + device.table.connect_timeout
        self._waits_told = -BEAT_SECONDS
        # What is asked waits until there is a worker, and then its turn.
        self._asked: deque[msgspec.Struct] = deque()
        self._preparing: Work[None] | None = None
        self._passing: msgspec.Struct | None = None
        self._outgoing: Requests | None = None
        self._moved = self._sent_told = 0
        self._moved_told = 0.0
        # The files of one result, and what waits for them; some may come when nobody does any more.
        self._gave_up = False
        self._fetching: Fetching | None = None
        self._fetched_at = 0.0
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
            case frames.Waits(reason=reason) if self._greeted and not self._outgoing:
                self._tell(frames.Waits(reason=reason and _line(reason)))
            case frames.Began() if self._greeted and not self._outgoing:
                self._shared.began = True
                self._outgoing = Requests(self._device, frame, self._line.send)
                self._left_in = frame.folder
                self._tell(frames.Waits())
            case frames.Line() if self._outgoing:
                self._take_line(body)
            case frames.Want() if self._outgoing:
                self._line.bulk.append(self._outgoing.offers.wanted(frame))
            case frames.Whole() if self._outgoing:
                pass
            case frames.Chunk() | frames.Gone() if self._fetching and self._fetching.awaits(
                frame.sha256
            ):
                self._take_piece(self._fetching, frame, body)
            case frames.Chunk() | frames.Gone() if self._gave_up:
                pass  # the rest of a file that nobody waits for any more
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
        assert self._outgoing
        message = self._read(body)
        if isinstance(message, messages.Result | messages.Failed | wire.WrongResult):
            self._outgoing.drop(message.id)
        elif isinstance(message, messages.Ready):
            self._outgoing.drop("check")
        if self._fetching:
            self._keep_behind(message)
        else:
            self._deliver(message)

    def _keep_behind(self, message: msgspec.Struct) -> None:
        """Keep a message that waits for files; of how far an evaluation is, only the last word."""
        if isinstance(message, messages.Heartbeat):
            return
        if isinstance(message, messages.Progress):
            outdated = (one for one in self._behind if isinstance(one, messages.Progress))
            for one in [one for one in outdated if one.id == message.id]:
                self._behind.remove(one)
        self._behind.append(message)
        while self._fetching and len(self._behind) > _MOST_BEHIND:
            self._give_up(self._fetching, "much else waits behind them")

    def _deliver(self, message: msgspec.Struct) -> None:
        assert self._outgoing
        there, into = self._left_in, self._outgoing.artefacts
        if isinstance(message, messages.Result) and message.artefacts and there and into:
            self._fetched_at = time.monotonic()
            self._fetching = Fetching(message, there, into)
            self._fetch_next(self._fetching)
        else:
            self._tell(_without_paths(message))

    def _take_piece(
        self, fetching: Fetching, piece: frames.Chunk | frames.Gone, body: bytes
    ) -> None:
        self._fetched_at = time.monotonic()
        self._device.fetched_bytes += len(body)
        try:
            if isinstance(piece, frames.Gone):
                fetching.gone(piece.sha256)
            elif not fetching.take(piece, body):
                return
        except OSError as error:
            self._give_up(fetching, f"they cannot be kept here: {error}")
            return
        self._fetch_next(fetching)

    def _give_up(self, fetching: Fetching, reason: str) -> None:
        """Go on without the files of a result that are not there yet."""
        _log.warning("pictures are given up", host=self._device.host, reason=reason)
        self._gave_up = True
        fetching.close()
        self._fetched(fetching)

    def _fetch_next(self, fetching: Fetching) -> None:
        if not fetching.done:
            self._line.send(fetching.ask())
        else:
            self._fetched(fetching)

    def _fetched(self, fetching: Fetching) -> None:
        """Pass the result on with what came of its files, and then what waited behind it."""
        self._fetching = None
        self._device.kept.add(fetching.folders)
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
            if isinstance(request, frames.Calm | messages.Stop) and not self._outgoing:
                continue
            self._asked.append(request)

    def _go_on(self) -> None:
        """Pass on what is asked, in its order; files are read a few MB a turn."""
        if self._outgoing is None:
            return
        if self._preparing is None and self._asked:
            self._passing = self._asked.popleft()
            self._preparing = self._outgoing.passing(self._passing)
        try:
            if self._preparing:
                next(self._preparing)
        except StopIteration:
            self._preparing = None
            os.eventfd_write(self._ask, 1)  # there may be another one
        except OSError as error:
            said = f"a file for {self._device.host} cannot be read here: {error}"
            if not isinstance(self._passing, messages.Evaluate):
                raise HostTrouble(said) from error
            # The host is not at fault, and what it evaluates goes on.
            self._preparing = None
            self._tell(messages.Failed(self._passing.id, "unreadable", said, False))
            os.eventfd_write(self._ask, 1)

    def _tell_moved(self, now: float) -> None:
        """Say now and then that files are read, or go over the line."""
        # Beats, and what the other side says meanwhile, move no file.
        moved = self._line.sent - self._line.beaten + self._device.fetched_bytes
        self._device.sent_bytes += self._line.sent - self._sent_told
        self._sent_told = self._line.sent
        reads = self._preparing is not None
        carries = (
            self._outgoing is not None and self._outgoing.offers.busy
        ) or self._fetching is not None
        if self._fetching and now - self._fetched_at > _FETCH_SECONDS:
            self._give_up(self._fetching, f"nothing came for {_FETCH_SECONDS:g} s")
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
