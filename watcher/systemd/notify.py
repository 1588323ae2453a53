"""What a run tells systemd: that it is ready, how it stands, and that its loop still turns.

The protocol is sd_notify(3): datagrams of `NAME=value` lines to the socket in NOTIFY_SOCKET. There
is no thread here that could go on pinging while the loop hangs: each ping is sent by the loop,
after a turn of it.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Self

from watcher.errors import StoreError
from watcher.heartbeat import Heartbeat, stuck
from watcher.store.database_file import DATABASE_NAME
from watcher.store.reading import Reader

_STATUS_SECONDS = 1.0
_PINGS_A_LIMIT = 10
_TURNS_A_LIMIT = 3


class Notifier:
    """The socket of the service manager; does nothing where systemd did not start this process.

    Attributes:
        watchdog_seconds: Within this time a ping is expected after the last, None for never.
    """

    def __init__(self, address: str | None, watchdog_seconds: float | None = None) -> None:
        self._address = address
        self.watchdog_seconds = watchdog_seconds if address else None

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Notifier:
        """Take the service manager's variables out of the environment.

        They are removed, since the worker that inherits the rest must not speak for the daemon.
        """
        address = environment.pop("NOTIFY_SOCKET", None)
        limit = environment.pop("WATCHDOG_USEC", "")
        process = environment.pop("WATCHDOG_PID", str(os.getpid()))
        if not limit.isdecimal() or int(limit) == 0 or process != str(os.getpid()):
            return cls(address)
        return cls(address, int(limit) / 1e6)

    @property
    def wanted(self) -> bool:
        """True when somebody listens."""
        return self._address is not None

    def send(self, *assignments: str) -> None:
        """Send `NAME=value` assignments as one datagram, or none where it cannot be delivered.

        A service manager that is gone or slow must not end or hold up the run.
        """
        if self._address is None:
            return
        # An abstract socket's name begins with a zero byte, written @ in the variable.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        lines = "\n".join(text.replace("\n", " ") for text in assignments)
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as sender:
            sender.sendto(lines.encode(errors="replace"), address)


class Service:
    """The run as systemd sees it: starting, ready with a status, stopping."""

    def __init__(self, notifier: Notifier, steady: Callable[[], float] = time.monotonic) -> None:
        self._notifier = notifier
        self._steady = steady
        self._database: Path | None = None
        self._reader: Reader | None = None
        self._ready = False
        self._said: str | None = None
        self._key: object = None
        self._next_status = self._next_ping = 0.0

    @property
    def turn_seconds(self) -> float:
        """How often the loop must turn at least for the pings to come in time; may be infinite."""
        return (self._notifier.watchdog_seconds or math.inf) / _TURNS_A_LIMIT

    def waiting(self, what: str) -> None:
        """Tell that the run is up and waits for something outside it."""
        self._tell(what, ping=True, steady=self._steady())

    def watch(self, state_dir: Path) -> None:
        """Take the status from the database in this folder from now on."""
        self._database = state_dir / DATABASE_NAME

    def turned(self, heartbeat: Heartbeat) -> None:
        """Tell of one turn of the loop; a loop that does not do its work gets no ping."""
        if not self._notifier.wanted:
            return
        steady, limit = self._steady(), self._notifier.watchdog_seconds
        moved = {key: heartbeat.status.get(key) for key in ("worker", "checkpoint", "problem")}
        key = (moved, heartbeat.failure)
        if key != self._key or steady >= self._next_status:
            self._key, self._next_status = key, steady + _STATUS_SECONDS
            text = self._describe(heartbeat)
        else:
            text = self._said or ""
        self._tell(text, ping=stuck(heartbeat, steady, limit or 0.0) is None, steady=steady)

    def stopping(self) -> None:
        """Tell that the run ends. Safe in a signal handler, and more than once."""
        self._notifier.send("STOPPING=1", "STATUS=stopping")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._notifier.send("STOPPING=1", f"STATUS={_ending(error)}")
        if self._reader:
            self._reader.close()
            self._reader = None

    def _tell(self, text: str, *, ping: bool, steady: float) -> None:
        assignments = []
        limit = self._notifier.watchdog_seconds
        if limit is not None and ping and steady >= self._next_ping:
            self._next_ping = steady + limit / _PINGS_A_LIMIT
            assignments.append("WATCHDOG=1")
        if not self._ready:
            assignments.append("READY=1")
            self._ready = True
        if text != self._said:
            assignments.append(f"STATUS={text}")
            self._said = text
        if assignments:
            self._notifier.send(*assignments)

    def _describe(self, heartbeat: Heartbeat) -> str:
        if heartbeat.failure:
            return f"cannot go on, trying again: {heartbeat.failure}"
        try:
            if self._reader is None and self._database:
                self._reader = Reader(self._database)
            best = self._reader.best() if self._reader else None
            waiting = self._reader.waiting() if self._reader else 0
        except StoreError as error:
            return f"cannot read the database: {error.message}"
        return _sentence(heartbeat, best, waiting)


def _ending(error: BaseException | None) -> str:
    return f"ended by an error: {error}" if isinstance(error, Exception) else "ended"


def _sentence(heartbeat: Heartbeat, best: dict[str, object] | None, waiting: int) -> str:
    status = heartbeat.status
    doing = " ".join(filter(None, (status.get("worker"), status.get("checkpoint"))))
    score = best["score"] if best else None
    parts = [
        f"best {best['checkpoint']} (step {best['global_step']}, score {score:.4f})"
        if best and isinstance(score, float)
        else "no best yet",
        f"{waiting} waiting",
        f"worker: {doing or 'none'}",
    ]
    if status.get("files"):
        parts.append(status["files"])
    if status.get("waiting_for"):
        parts.append(status["waiting_for"])
    if status.get("stop"):
        parts.append(f"early stop: {status['stop']}")
    if status.get("problem"):
        parts.append(f"problem: {status['problem']}")
    return "; ".join(parts)
