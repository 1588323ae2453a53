"""FarWorker: the carrier of another host, behind whatever starts a program there.

A launcher, ssh say, starts `checkpoint-watcher agent` there and joins its input and output; frames
(`frames.py`) go over those. A thread speaks with the agent (`talk.py`), so that neither a slow line
nor a silent host holds up the loop, which takes what has arrived.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from watcher.errors import HostTrouble
from watcher.evaluation import frames, messages
from watcher.evaluation.far_device import FarDevice
from watcher.evaluation.talk import Shared, Talk
from watcher.evaluation.worker_log import WorkerLog

_ENDING_SECONDS = 2.0
_LAUNCHER_SECONDS = 5.0


class FarWorker:
    """A worker on another host, from the start of its launcher to the end of that.

    Attributes:
        ending: After `kill`, what waits for the end of the launcher.
    """

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
        self.ending: threading.Thread | None = None
        self._shared = Shared()
        self._news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ask = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        log_thread = WorkerLog(self._process.stderr, log)
        self._thread = Talk(device, self._process, log_thread, self._shared, self._news, self._ask)
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
        """End the line at once; the agent there ends the worker and what that started.

        The launcher gets some seconds for that, which a thread waits: of srun, killed, the job goes
        on without a step, and keeps its GPU.
        """
        self._shared.closing = True
        os.eventfd_write(self._ask, 1)
        self.ending = threading.Thread(target=_let_end, args=(self._process,), name="launcher")
        self.ending.start()
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


def _let_end(launcher: subprocess.Popen[bytes]) -> None:
    """Ask a launcher and what it started to end, and kill in the end what has not.

    Where it is a script, the program that it started may need longer than the script.
    """
    until = time.monotonic() + _LAUNCHER_SECONDS
    with contextlib.suppress(ProcessLookupError):  # all of it has ended
        os.killpg(launcher.pid, signal.SIGTERM)
        while time.monotonic() < until:
            launcher.poll()  # else it would be one of its group for ever
            os.killpg(launcher.pid, 0)
            time.sleep(0.05)
        os.killpg(launcher.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        launcher.wait(_ENDING_SECONDS)
