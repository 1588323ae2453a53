"""Serving: the socket, and the process of Datasette on it for as long as the page is wanted."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from watcher.errors import ListenError, WatcherError, WebError
from watcher.web.plan import Plan

SERVER_FILE = Path(__file__).with_name("datasette_server.py")
_START_SECONDS = 60.0
_END_SECONDS = 5.0
_LOOK_SECONDS = 2.0
INSTALL_HINT = (
    "pip install 'datasette>=0.65.5,<1' 'datasette-dashboards>=0.8,<1', here or in an environment"
    " of its own that --datasette names; --export FILE.html needs neither"
)


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Listen on an address.

    Raises:
        ListenError: it is in use, not one of this machine, or not allowed.
    """
    bound = None
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, proto)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(64)
    except (OSError, OverflowError) as error:
        if bound:
            bound.close()
        hint = "give an address of this machine with --host, and a port above 1023 with --port"
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            hint = "another program uses that port; give another one with --port, or 0 for any"
        said = getattr(error, "strerror", None) or error
        raise ListenError(f"cannot listen on {host}:{port}: {said}", hint=hint) from error
    with bound:
        yield bound


def interpreter_of(program: Path) -> Path:
    """Return the interpreter that `--datasette` means: one itself, or that of a `datasette` script.

    Raises:
        WebError: there is no such file, or it names no interpreter.
    """
    try:
        with program.open("rb") as file:
            head = file.read(400)
    except OSError as error:
        raise WebError(f"--datasette {program}: {error.strerror}", hint=INSTALL_HINT) from error
    if not head.startswith(b"#!"):
        return program.absolute()
    words = head.splitlines()[0][2:].decode(errors="replace").split()
    # Of a long path pip makes a script for sh, that runs the python beside it.
    beside = program.absolute().with_name("python")
    if words and Path(words[0]).name.startswith("python"):
        return Path(words[0])
    if beside.exists():
        return beside
    raise WebError(f"--datasette {program} is no Python script", hint=INSTALL_HINT)


class DatasetteProcess:
    """One serving process; it ends with `end`, or when this process does."""

    def __init__(self, interpreter: Path, plan: Plan, sock: socket.socket, *, local: bool) -> None:
        """Start it and wait until it answers.

        Raises:
            WebError: it cannot be started, or has not what it needs.
        """
        order = {**plan.told, "socket": sock.fileno(), "local": local}
        try:
            self._process = subprocess.Popen(
                [str(interpreter), str(SERVER_FILE)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[sock.fileno()],
                # Ctrl-C is for this process, which then ends that one.
                start_new_session=True,
            )
        except OSError as error:
            message = f"{interpreter} cannot be started: {error.strerror}"
            raise WebError(message, hint=INSTALL_HINT) from error
        try:
            self._tell(order)
            self._wait_until_ready(interpreter)
        except BaseException:
            self.end()
            raise

    def _tell(self, order: dict[str, Any]) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # its answer says why
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def _wait_until_ready(self, interpreter: Path) -> None:
        assert self._process.stdout
        fileno, until, line = self._process.stdout.fileno(), time.monotonic() + _START_SECONDS, b""
        while not line.endswith(b"\n"):
            if not select.select([fileno], [], [], max(until - time.monotonic(), 0))[0]:
                raise WebError(f"Datasette does not answer within {_START_SECONDS:.0f} s")
            more = os.read(fileno, 4096)
            if not more:
                break
            line += more
        try:
            said = json.loads(line)
        except ValueError:
            message = f"{interpreter} ended before it could serve; what it said stands above"
            raise WebError(message, hint=INSTALL_HINT) from None
        if "error" in said:
            raise WebError(f"the web page needs Datasette: {said['error']}", hint=INSTALL_HINT)

    def ended(self) -> int | None:
        """Return its exit code once it has ended."""
        return self._process.poll()

    def end(self) -> None:
        """End it, by force if it takes long."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(
    interpreter: Path,
    sock: socket.socket,
    look: Callable[[], Plan],
    ready: Callable[[Plan], None],
    *,
    local: bool,
) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; a plan that has changed is served anew.

    Args:
        interpreter: One that has Datasette.
        sock: Where it listens.
        look: Returns what is to be served now, or raises WatcherError while it cannot be read.
        ready: Called once, when the page can be asked for.
        local: True when only this machine is to reach it.

    Raises:
        StoreError: nothing can be read at the start.
        WebError: Datasette cannot be started, or ended by itself.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    # What nohup ignores stays ignored.
    heeded = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: None) for number in heeded}
    signal.set_wakeup_fd(writer)
    process = None
    try:
        plan = look()
        process = DatasetteProcess(interpreter, plan, sock, local=local)
        ready(plan)
        while not select.select([reader], [], [], _LOOK_SECONDS)[0]:
            if (code := process.ended()) is not None:
                message = f"Datasette ended with code {code}; what it said stands above"
                raise WebError(message, hint="start the page again")
            served = plan
            with contextlib.suppress(WatcherError):  # locked, or being replaced: the old one stays
                plan = look()
            if plan != served:
                earlier = process
                process = DatasetteProcess(interpreter, plan, sock, local=local)
                # Not before: whoever asks meanwhile is answered.
                earlier.end()
    finally:
        if process:
            process.end()
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
