"""Keeper: the daemon's side, which has event files written and never waits for it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import structlog

from watcher.decision.retry import Retry

_log = structlog.get_logger(__name__)

_COMMAND = (sys.executable, "-P", "-m", "watcher.tensorboard")
_LIMIT_SECONDS = 120.0
_RETRY_SECONDS = 5.0
_LONGEST_RETRY_SECONDS = 300.0
_READ_BYTES = 1 << 16


class EventFiles:
    """Starts the writing process when something was recorded, one at a time.

    Attributes:
        problem: Why the last one failed, None when it did not.
    """

    def __init__(
        self, state_dir: Path, eval_dir: Path, *, enabled: bool = True, categories: bool = False
    ) -> None:
        self.problem: str | None = None
        self._command = (*_COMMAND, str(state_dir), str(eval_dir), *["categories"] * categories)
        self._enabled = enabled
        self._wanted = False
        self._process: subprocess.Popen[bytes] | None = None
        self._exit = -1
        self._deadline = -math.inf
        self._retry = Retry(_RETRY_SECONDS, _LONGEST_RETRY_SECONDS)

    def want(self) -> None:
        """Take note that something was recorded."""
        self._wanted = self._enabled

    @property
    def busy(self) -> bool:
        """True while it is worth waiting for: at work, or about to be for the first time."""
        return self._process is not None or (self._wanted and self.problem is None)

    def filenos(self) -> list[int]:
        """File descriptors of which one becomes readable when the process ends."""
        return [self._exit] if self._process else []

    def due(self) -> float:
        """Return the steady time by which to call `tick` again, infinite when there is none."""
        if self._process:
            return self._deadline
        return self._retry.at if self._wanted else math.inf

    def tick(self, steady: float) -> None:
        """Take the answer of a process that has ended, and start the next one if it is wanted."""
        if self._process and (steady >= self._deadline or self._ended(0)):
            self._finish(steady)
        if self._wanted and self._process is None and steady >= self._retry.at:
            self._start(steady)

    def close(self, seconds: float) -> None:
        """Give a process that is at work so long to end; what it left undone is done next time."""
        if self._process:
            self._ended(seconds)
            self._reap()

    def _start(self, steady: float) -> None:
        self._wanted = False
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._exit = os.pidfd_open(self._process.pid)
        except OSError as error:
            if self._process:
                self._reap()
            self._fail(f"cannot start {self._command[0]}: {error.strerror}", steady)
            return
        self._deadline = steady + _LIMIT_SECONDS

    def _ended(self, seconds: float) -> bool:
        return bool(select.select([self._exit], [], [], seconds)[0])

    def _finish(self, steady: float) -> None:
        in_time = self._ended(0)
        code, said = self._reap()
        try:
            answer = json.loads(said.splitlines()[-1])
            problem = answer.get("problem")
        except (IndexError, ValueError, AttributeError):
            last = said.decode(errors="replace").strip().splitlines()[-1:]
            problem = " ".join([f"the writer ended with exit code {code}", *last])
        if not in_time:
            problem = f"the writer did not end within {_LIMIT_SECONDS:g} s"
        if problem:
            self._fail(problem, steady)
            return
        if self.problem:
            _log.info("TensorBoard's event files are written again")
        self.problem = None
        self._retry.worked()

    def _fail(self, problem: str, steady: float) -> None:
        if problem != self.problem:
            _log.warning("no event files for TensorBoard, trying again", reason=problem)
        self.problem, self._wanted = problem, True
        self._retry.failed(steady)

    def _reap(self) -> tuple[int, bytes]:
        """End the process if it still runs; returns its code and what it said last."""
        process, self._process = self._process, None
        assert process and process.stdout
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        os.set_blocking(process.stdout.fileno(), False)
        said = b""
        with contextlib.suppress(OSError), process.stdout:
            said = os.read(process.stdout.fileno(), _READ_BYTES)
        if self._exit >= 0:
            os.close(self._exit)
            self._exit = -1
        return process.wait(), said
