"""Processes that start at once: forked from a server that has the libraries imported already.

The test process has threads, and a fork of it could inherit a lock that nobody lets go of. The
server has none. It runs as a program of its own, one for each test process, and ends with it:

    python tests/helpers/forks.py
"""

from __future__ import annotations

import atexit
import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SAID_BYTES = 4096


class Fork:
    """A child of the server that does `what`, a key of `WORK`, with these arguments."""

    _server: subprocess.Popen[str] | None = None

    def __init__(self, what: str, **arguments: Any) -> None:
        """Fork; the child begins when `go` is called."""
        self._code: int | None = None
        self.pid = int(self._ask("fork", [what, arguments]))

    def go(self) -> None:
        """Let it begin."""
        self._ask("go", self.pid)

    def poll(self) -> int | None:
        """Return how it ended, as subprocess does, or None while it runs."""
        if self._code is None:
            self._code = self._ask("poll", self.pid)
        return self._code

    def wait(self) -> int:
        """Wait for its end."""
        if self._code is None:
            self._code = int(self._ask("wait", self.pid))
        return self._code

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    @classmethod
    def _ask(cls, verb: str, about: Any) -> Any:
        if cls._server is None or cls._server.poll() is not None:
            cls._server = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            atexit.register(cls._end)
        assert cls._server.stdin and cls._server.stdout
        try:
            cls._server.stdin.write(json.dumps([verb, about]) + "\n")
            cls._server.stdin.flush()
            return json.loads(cls._server.stdout.readline())
        except BaseException:
            # A test that ran out of time: its answer is not to be taken for that of the next one.
            cls._server.kill()
            cls._server.communicate()
            raise

    @classmethod
    def _end(cls) -> None:
        if cls._server:
            cls._server.communicate()


class Said:
    """A few words in memory that a process and a fork share: to write there is no system call."""

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(SAID_BYTES)
            self._memory = mmap.mmap(file.fileno(), SAID_BYTES)

    def note(self, text: str) -> None:
        """Replace what is said."""
        self._memory[:] = text.encode()[:SAID_BYTES].ljust(SAID_BYTES, b"\0")

    def __str__(self) -> str:
        return self._memory[:].rstrip(b"\0").decode(errors="replace")


# -- the server: each function prepares, and returns what is done after `go`


def _round(folder: str, **options: float) -> Callable[[], object]:
    from faults import Rounds

    return Rounds(Path(folder), **options).whole_round


def _stubborn_round(folder: str, said: str, **options: float) -> Callable[[], object]:
    from faults import Rounds

    rounds, words = Rounds(Path(folder), **options), Said(Path(said))
    return lambda: rounds.stubborn_round(words)


def _daemon(
    command: list[str], log: str, environment: dict[str, str], chunk_bytes: int
) -> Callable[[], object]:
    from watcher.checkpoints import bundle, pin
    from watcher.cli import main
    from watcher.files import slices

    if chunk_bytes:  # a turn of the loop reads or copies so much and no more
        slices.SLICE_SECONDS = 0.0
        bundle.CHUNK_BYTES = pin.COPY_BYTES = chunk_bytes
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1)
    sys.argv = command
    os.environ.update(environment)
    return main


def _event_files(state_dir: str, eval_dir: str, temporary: str) -> Callable[[], object]:
    import tempfile

    import watcher.tensorboard.event_file  # noqa: F401
    from watcher.tensorboard.__main__ import update

    tempfile.tempdir = temporary  # the server's own may be older than the test

    return lambda: update(Path(state_dir), Path(eval_dir))


WORK = {
    "round": _round,
    "stubborn round": _stubborn_round,
    "daemon": _daemon,
    "event files": _event_files,
}


def _fork(what: str, arguments: dict[str, Any]) -> tuple[int, int]:
    """Return the child's process id once it is prepared, and the pipe that lets it go."""
    go_reader, go_writer = os.pipe()
    ready_reader, ready_writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(go_reader)
        os.close(ready_writer)
        os.read(ready_reader, 1)
        os.close(ready_reader)
        return pid, go_writer
    os.close(go_writer)
    code = 1
    try:
        os.dup2(2, 1)  # fd 1 is the server's
        work = WORK[what](**arguments)
        os.close(ready_writer)
        os.read(go_reader, 1)
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def serve() -> None:
    """Answer requests, a JSON line each, until the input ends; then end all that still runs."""
    import faults  # noqa: F401

    import watcher.runtime.app
    import watcher.store.migrations  # noqa: F401  which opening a store imports

    begin: dict[int, int] = {}
    for line in sys.stdin:
        verb, about = json.loads(line)
        answer = None
        if verb == "fork":
            answer, begin[answer] = _fork(*about)  # type: ignore[index]
        elif verb == "go":
            os.write(begin[about], b".")
        else:
            found, status = os.waitpid(about, os.WNOHANG if verb == "poll" else 0)
            if found:
                os.close(begin.pop(about))
                answer = os.waitstatus_to_exitcode(status)
        print(json.dumps(answer), flush=True)
    for pid in begin:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    serve()
