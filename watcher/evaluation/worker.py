"""Worker: the carrier of this machine, a process of its own with JSON lines both ways.

The far side is `evaluators/worker.py`, run by the training environment's interpreter. Nothing here
blocks for long except `stop`.

Each worker inherits a lock that nobody else holds: as long as one lives, whoever started it, no
other is started in its place, so two of a run never share the device. On a GPU it inherits that
one's lock as well, which keeps the workers of other runs off it (`device_lock.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from watcher.errors import WorkerError, WorkerStillThere
from watcher.evaluation import messages, peace, wire
from watcher.evaluation.device_lock import DeviceLock
from watcher.evaluation.worker_log import WorkerLog
from watcher.files.scratch import Scratch
from watcher.files.scratch import environment as temporary_environment

LOCK_SUFFIX = ".lock"

_LINE_LIMIT_BYTES = 16 << 20
_READ_BYTES = 1 << 20
_ENDING_SECONDS = 2.0


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


def _start(
    command: Sequence[str], variables: Mapping[str, str], folder: Path | None, held: Sequence[int]
) -> subprocess.Popen[bytes]:
    """Start a process that leads a group of its own, and holds the locks it is given."""
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"TF_CPP_MIN_LOG_LEVEL": "1", **os.environ, **variables},
            cwd=folder,
            start_new_session=True,
            pass_fds=held,
        )
    except OSError as error:
        raise WorkerError(
            f"cannot start the interpreter {command[0]}: {error.strerror}",
            hint="--python names the interpreter of the training environment,"
            " for example /path/to/env/bin/python",
        ) from error


class Worker:
    """A running worker process. It leads a process group of its own."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path | None,
        device_lock: DeviceLock | None = None,
        scratch: Scratch | None = None,
        folder: Path | None = None,
    ) -> None:
        """Start the process; what it prints goes to `log`, and its lock lies beside that.

        Without a log it goes where our own errors go, and there is no lock of a run.

        Args:
            command: The interpreter and its program.
            environment: What is added to ours.
            log: Another file for each worker of a run that may live at the same time.
            device_lock: What the worker holds as long as it lives, None where nobody shares.
            scratch: Where its temporary folder lies, None for the system's own.
            folder: Where it is started, None for the current one.

        Raises:
            WorkerStillThere: an earlier worker has not ended yet.
            DeviceTaken: another watcher evaluates on the device.
            WorkerError: the interpreter could not be started.
        """
        self._buffer = bytearray()
        with contextlib.ExitStack() as locks:
            held = []
            if log:
                held.append(locks.enter_context(_inherited_lock(log.with_suffix(LOCK_SUFFIX))))
            taken = locks.enter_context(device_lock.take()) if device_lock else None
            if taken:
                held += taken.descriptors
            self._temporary = scratch.take(log.stem if log else "worker") if scratch else None
            if scratch and scratch.descriptor is not None:
                held.append(scratch.descriptor)
            variables = {**environment, **temporary_environment(self._temporary)}
            self._process = _start(command, variables, folder, held)
            if taken:
                taken.note(self._process.pid)
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._log = WorkerLog(self._process.stderr, log)
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdout.fileno(), False)
        os.set_blocking(self._stdin.fileno(), False)
        self._exit = os.pidfd_open(self._process.pid)

    @property
    def pid(self) -> int:
        """Process id, which is the process group's id too."""
        return self._process.pid

    def filenos(self) -> tuple[int, int]:
        """File descriptors of which one becomes readable when the worker answers or dies."""
        return self._stdout.fileno(), self._exit

    def resident_bytes(self) -> int:
        """Return the memory the worker holds now, 0 where that cannot be told."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def step_back(self) -> None:
        """Let it have what others leave of the CPU and the disk, from now on."""
        peace.step_back(self.pid)

    def send(self, message: msgspec.Struct) -> None:
        """Send one message.

        Raises:
            WorkerError: the worker is gone or does not read.
        """
        self.send_line(wire.write_request(message))

    def send_line(self, line: bytes) -> None:
        """Send a message as it travels, with its end of line; raises WorkerError as `send`."""
        try:
            # Messages are far smaller than a pipe, so a short write means that nobody reads.
            if os.write(self._stdin.fileno(), line) != len(line):
                raise WorkerError("the worker does not read its messages")
        except OSError as error:
            raise WorkerError(f"the worker is gone: {self.ending()}") from error

    def receive(self) -> Iterator[messages.Reply | wire.WrongResult]:
        """Yield the messages that have arrived, possibly none.

        What came before an error is yielded first: it was true when it was said.

        Raises:
            WorkerError: it ended, or sent something that is not a message.
        """
        for line in self.receive_lines():
            yield wire.read_reply(line)

    def receive_lines(self) -> Iterator[bytes]:
        """Yield the messages that have arrived as they are, without their ends of line.

        Raises:
            WorkerError: it ended, or sent an endless line.
        """
        # Asked first: what it wrote before it died is then in the pipe. The end of the pipe is
        # not enough, since a process that it left behind may hold that open.
        dead = self._exited()
        chunk: bytes | None = None
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(self._stdout.fileno(), _READ_BYTES)
        lines = self._lines(chunk or b"")
        yield from lines
        if not lines and (chunk == b"" or (dead and chunk is None)):
            raise WorkerError(f"the worker is gone: {self.ending()}")

    def _lines(self, chunk: bytes) -> list[bytes]:
        if b"\n" not in chunk:
            self._buffer += chunk
            if len(self._buffer) > _LINE_LIMIT_BYTES:
                raise WorkerError("the worker sent an endless line")
            return []
        *lines, rest = (bytes(self._buffer) + chunk).split(b"\n")
        self._buffer = bytearray(rest)
        return lines

    def kill(self) -> None:
        """End the worker and whatever it started, at once, and remove its temporary folder.

        One that the kernel cannot end yet is left behind; it holds the lock, so no other is
        started before it is gone.
        """
        # The process is not waited for before this: as long as it is a zombie its group's number
        # cannot be another group's.
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDING_SECONDS)
        for stream in (self._stdin, self._stdout):
            # Closing flushes, and the reader of this pipe is dead.
            with contextlib.suppress(OSError):
                stream.close()
        os.close(self._exit)
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def stop(self, timeout_seconds: float) -> None:
        """Ask the worker to end, wait that long, then kill what is left."""
        with contextlib.suppress(WorkerError):
            self.send(messages.Stop())
            self._exited(timeout_seconds)
        self.kill()

    def ending(self) -> str:
        """Say how the process ended, in words; its last line of output is part of it."""
        status = self._exited(_ENDING_SECONDS)
        if status is None:
            return "it closed its output"
        if status.si_code == os.CLD_EXITED:
            how = f"ended with exit code {status.si_status}"
        else:
            how = f"killed by {signal.Signals(status.si_status).name}"
        last = self._log.last_line()
        return f"{how} ({last})" if last else how

    def _exited(self, timeout_seconds: float = 0.0) -> os.waitid_result | None:
        """Return how it ended, None if it still runs; leaves the zombie where it is."""
        select.select([self._exit], [], [], timeout_seconds)
        return os.waitid(os.P_PIDFD, self._exit, os.WEXITED | os.WNOHANG | os.WNOWAIT)


@contextlib.contextmanager
def _inherited_lock(path: Path) -> Iterator[int]:
    """Lock a file for the child that inherits the descriptor; the lock ends with the child."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise WorkerError(
            f"cannot open {path}: {error.strerror}",
            hint=f"check free space and permissions of {path.parent}",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkerStillThere(
                "an earlier worker has not ended yet, and two must not share the device",
                hint="it is what holds worker.lock in the state folder; end it if it hangs",
            ) from error
        except OSError as error:
            raise WorkerError(
                f"cannot lock {path}: {error.strerror}",
                hint=f"{path.parent} is on a file system without locks; --state-dir names a folder"
                " on a local disk",
            ) from error
        yield descriptor
    finally:
        os.close(descriptor)
