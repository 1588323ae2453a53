"""The near side of the evaluation worker: one process, JSON lines both ways.

The far side is `evaluators/worker.py`, run by the training environment's interpreter; its
docstring is the contract of the messages. Nothing here blocks except `stop`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from watcher.errors import WorkerError

PROTOCOL = 1
WORKER_FILE = Path(__file__).resolve().parent.parent / "evaluators" / "worker.py"

_LINE_LIMIT_BYTES = 64 << 20
_READ_BYTES = 1 << 20
_LOG_LIMIT_BYTES = 16 << 20


def device_environment(device: str) -> dict[str, str]:
    """Return the environment variables that show a worker its device and no other.

    Args:
        device: `cpu`, `gpu:N` in the order of nvidia-smi, or a GPU's UUID.
    """
    if device == "cpu":
        visible = "-1"
    elif device.startswith("gpu:"):
        visible = device.removeprefix("gpu:")
    else:
        visible = device
    # Without this CUDA numbers GPUs by speed, and gpu:0 may be the one that trains.
    return {"CUDA_VISIBLE_DEVICES": visible, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


class Worker:
    """A running worker process. It leads a process group of its own."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start the process; what it prints goes to `log`.

        Raises:
            WorkerError: the interpreter could not be started.
        """
        self.log = log
        self._buffer = bytearray()
        try:
            if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
                log.replace(log.with_name(log.name + ".1"))
            with log.open("ab") as errors:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env={"TF_CPP_MIN_LOG_LEVEL": "1", **os.environ, **environment},
                    start_new_session=True,
                )
        except OSError as error:
            raise WorkerError(
                f"cannot start the interpreter {command[0]}: {error.strerror}",
                hint="--python names the interpreter of the training environment,"
                " for example /path/to/env/bin/python",
            ) from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdout.fileno(), False)
        os.set_blocking(self._stdin.fileno(), False)

    @property
    def pid(self) -> int:
        """Process id, which is the process group's id too."""
        return self._process.pid

    def fileno(self) -> int:
        """File descriptor that becomes readable when the worker answers or dies."""
        return self._stdout.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message.

        Raises:
            WorkerError: the worker is gone or does not read.
        """
        line = json.dumps(message).encode() + b"\n"
        try:
            # Messages are far smaller than a pipe, so a short write means that nobody reads.
            if os.write(self._stdin.fileno(), line) != len(line):
                raise WorkerError("the worker does not read its messages")
        except OSError as error:
            raise WorkerError(f"the worker is gone: {self.ending()}") from error

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that have arrived, possibly none.

        Raises:
            WorkerError: it ended, or sent something that is not a message.
        """
        ended = False
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(self._stdout.fileno(), _READ_BYTES)
            self._buffer += chunk
            ended = not chunk
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        if len(rest) > _LINE_LIMIT_BYTES:
            raise WorkerError("the worker sent an endless line")
        messages = [_decode(bytes(line)) for line in lines]
        if ended and not messages:
            raise WorkerError(f"the worker is gone: {self.ending()}")
        return messages

    def kill(self) -> None:
        """End the worker and whatever it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._stdin, self._stdout):
            # Closing flushes, and the reader of this pipe is dead.
            with contextlib.suppress(OSError):
                stream.close()

    def stop(self, timeout_seconds: float) -> None:
        """Ask the worker to end, wait that long, then kill what is left."""
        with contextlib.suppress(WorkerError):
            self.send({"type": "stop"})
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_seconds)
        self.kill()

    def ending(self) -> str:
        """Say how the process ended, in words; its last line of output is part of it."""
        try:
            code = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        if code < 0:
            how = f"killed by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        last = self._last_line()
        return f"{how} ({last})" if last else how

    def _last_line(self) -> str:
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 4096))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1].strip()[:200] if lines else ""


def _decode(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError as error:
        raise WorkerError(f"the worker sent garbage: {line[:80]!r}") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise WorkerError(f"the worker sent garbage: {line[:80]!r}")
    return message
