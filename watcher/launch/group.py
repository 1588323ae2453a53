"""A process in a process group of its own, and the group as a whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from watcher.errors import ConfigError

_HOLD_SECONDS = 1.0
_LOOK_SECONDS = 0.002


class Processes:
    """Some processes that are signalled, held and waited for as one."""

    def members(self) -> Iterator[int]:
        """Yield those that have not ended."""
        raise NotImplementedError

    def send(self, number: int) -> None:
        """Send a signal to each of them."""
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def is_empty(self) -> bool:
        """Return whether none of them runs any more."""
        return not any(self.members())

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Stop them for the moment; gives whether all have really stopped.

        What they were writing stays as it is meanwhile. A process that waits for a disk cannot be
        stopped at once.
        """
        self.send(signal.SIGSTOP)
        try:
            deadline = time.monotonic() + _HOLD_SECONDS
            while not (stopped := self._all_stopped()) and time.monotonic() < deadline:
                time.sleep(_LOOK_SECONDS)
            yield stopped
        finally:
            self.send(signal.SIGCONT)

    def _all_stopped(self) -> bool:
        return all(state in "TtZX" for pid in self.members() for state in _thread_states(pid))


class Group(Processes):
    """A started command. Until `reap` its number cannot become another group's."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        keep_open: Sequence[int] = (),
        output: IO[bytes] | None = None,
        stdin: int | None = None,
    ) -> None:
        """Start it with our environment, folder and, unless told otherwise, open files.

        Args:
            command: Program and arguments; the program is looked for in PATH.
            keep_open: Descriptors that it inherits beside the three standard ones.
            output: Where its stdout and stderr go; else where ours go.
            stdin: As for `subprocess.Popen`.

        Raises:
            ConfigError: the program does not exist or cannot be executed.
        """
        try:
            self._process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=output,
                stderr=output,
                pass_fds=keep_open,
                process_group=0,
            )
        except OSError as error:
            raise ConfigError(
                f"cannot start {command[0]}: {error.strerror}",
                hint="the trainer's command comes after --, as in"
                " `checkpoint-watcher train -- python -m object_detection.model_main_tf2 ...`",
            ) from error
        self.returncode: int | None = None

    @property
    def pid(self) -> int:
        """Process id of the first process, and number of the group."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code of the first process, -N after signal N; None while it runs."""
        if self.returncode is None:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                exited = ended.si_code == os.CLD_EXITED
                self.returncode = ended.si_status if exited else -ended.si_status
        return self.returncode

    def stopped_by(self) -> int | None:
        """Return the signal that stopped the first process since the last call, if one did."""
        if self.poll() is not None:
            return None
        with contextlib.suppress(ChildProcessError):
            stopped = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG)
            return stopped.si_status if stopped else None
        return None

    def members(self) -> Iterator[int]:
        """Yield the processes of the group that have not ended."""
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            fields = _stat(folder)
            if len(fields) > 2 and fields[2] == str(self.pid) and fields[0] not in "ZX":
                yield int(folder.name)

    def send(self, number: int) -> None:
        """Send a signal to every process of the group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def is_empty(self) -> bool:
        """Return whether no process of the group runs any more."""
        return self.poll() is not None and super().is_empty()

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Stop the group for the moment; see `Processes.held`."""
        try:
            with super().held() as stopped:
                yield stopped
        finally:
            self.stopped_by()  # that was us

    def reap(self) -> None:
        """Give the number back; call it when no signal is to be sent any more."""
        self._process.wait()


def _thread_states(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for folder in Path(f"/proc/{pid}/task").iterdir():
            yield (_stat(folder) or ["X"])[0]


def _stat(folder: Path) -> list[str]:
    """Return the fields of a `stat` file after the name: state, parent, group and so on."""
    try:
        return (folder / "stat").read_text(errors="replace").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return []


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Return whether a condition holds within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True
