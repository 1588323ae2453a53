"""Line: frames both ways over two descriptors, without ever waiting for the other side."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator

import msgspec

from watcher.evaluation.frames import Beat, Frame, LineError, Parser, ToAgent, ToHome, encode

_READ_BYTES = 1 << 20
_AHEAD_BYTES = 1 << 20
# More than that is handed over at the next turn: what the other side says is read in between.
_TURN_BYTES = 8 << 20


class Broken(Exception):
    """Raised when the other side has closed the line, or what it says is no frame.

    Attributes:
        closed: It ended, or is about to.
    """

    def __init__(self, message: str, *, closed: bool = True) -> None:
        super().__init__(message)
        self.closed = closed


class FrameLine:
    """One end of a line; used by one thread. Times are steady seconds.

    What is sent lies in a queue until the other side takes it. Behind it are bulky frames, which
    are made only when there is room: so a beat passes between two of them.

    Attributes:
        heard: When anything came last; bytes of a frame that is not whole yet count.
        received: How many bytes came.
        sent: How many bytes the other side took.
        beaten: How many bytes of beats it took, or has before it.
    """

    def __init__(
        self,
        reading: int,
        writing: int,
        decoder: msgspec.json.Decoder[ToAgent] | msgspec.json.Decoder[ToHome],
        now: float,
    ) -> None:
        self.reading, self.writing = reading, writing
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        self.heard = now
        self.received = self.sent = self.beaten = 0
        self.bulk: deque[Iterator[bytes]] = deque()
        self._parser = Parser(decoder)
        self._out: deque[memoryview] = deque()
        self._waiting = 0
        self._beat_at = now

    @property
    def has_output(self) -> bool:
        """True while something waits for the other side to take it."""
        return bool(self._out or self.bulk)

    @property
    def is_full(self) -> bool:
        """True when so much waits that no more should be made."""
        return self._waiting > 2 * _AHEAD_BYTES

    def send(self, frame: Frame, body: bytes = b"") -> None:
        """Queue a frame; it comes before all bulky ones that have not begun."""
        self._queue(encode(frame, body))

    def _queue(self, data: bytes) -> None:
        self._out.append(memoryview(data))
        self._waiting += len(data)

    def beat(self, now: float, every: float, said: Beat) -> None:
        """Say that this side lives, where it is time; not behind what the other has not taken."""
        if now >= self._beat_at:
            self._beat_at = now + every
            if not self.is_full:
                data = encode(said)
                self.beaten += len(data)
                self._queue(data)

    def beat_in(self, now: float) -> float:
        """Return the seconds until the next beat."""
        return max(0.0, self._beat_at - now)

    def read(self, now: float) -> Iterator[tuple[Frame, bytes]]:
        """Yield the frames that are there.

        Raises:
            Broken: the line is closed, or what came is no frame; what came before that first.
        """
        try:
            data = os.read(self.reading, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise Broken(f"it broke: {error.strerror}") from error
        if not data:
            raise Broken("it was closed")
        self.heard = now
        self.received += len(data)
        try:
            yield from self._parser.feed(data)
        except LineError as error:
            raise Broken(f"it said {error}, which is no frame", closed=False) from error

    def write(self) -> None:
        """Hand over what the other side takes now.

        Raises:
            Broken: the line is closed.
        """
        until = self.sent + _TURN_BYTES
        while self.sent < until and (self._out or self._refill()):
            try:
                count = os.write(self.writing, self._out[0][:_AHEAD_BYTES])
            except BlockingIOError:
                return
            except OSError as error:
                raise Broken(f"it broke: {error.strerror}") from error
            self.sent += count
            self._waiting -= count
            rest = self._out[0][count:]
            if rest:
                self._out[0] = rest
            else:
                self._out.popleft()

    def _refill(self) -> bool:
        while self.bulk:
            with contextlib.suppress(StopIteration):
                self._queue(next(self.bulk[0]))
                return True
            self.bulk.popleft()
        return False
