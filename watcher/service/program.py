"""Program: run one to its end with something on its standard input, and never wait for ever."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_TAIL_BYTES = 2048
_READ_BYTES = 1 << 16
_BYTES_PER_SECOND = 8 << 20
_LOOK_SECONDS = 0.2
_LEASH = (sys.executable, "-I", "-S", str(Path(__file__).with_name("leash.py")))
# Who is there to end it in time, and to say so, does that first.
_LEASH_SECONDS = 1.0


def run_program(
    command: Sequence[str], content: bytes, seconds: float, given_up: Callable[[], bool]
) -> str | None:
    """Run a program, in a process group of its own and without a shell; it ends with us, too.

    Args:
        command: The program and its arguments.
        content: Its standard input, less than a pipe holds (64 KiB); it need not read it.
        seconds: After so long the group is killed.
        given_up: Asked now and then; True kills it at once.

    Returns:
        None when it ended with code 0, else what went wrong, with its last line of stderr.
    """
    try:
        process, lifeline = _start(command, seconds)
    except (OSError, ValueError) as error:
        return f"cannot start {command[0]}: {getattr(error, 'strerror', None) or error}"
    assert process.stdin and process.stderr
    os.set_blocking(process.stdin.fileno(), False)
    with contextlib.suppress(OSError):  # it ended already, or does not read
        process.stdin.write(content)
        process.stdin.flush()
    with contextlib.suppress(OSError):
        process.stdin.close()
    with process.stderr:
        deadline = time.monotonic() + seconds
        tail, in_time = _follow(process, deadline, given_up)
        if not in_time:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    os.close(lifeline)
    return _verdict(process.returncode, tail, None if in_time else seconds)


def _start(command: Sequence[str], seconds: float) -> tuple[subprocess.Popen[bytes], int]:
    """Start it on a leash; returns the descriptor, too, that it lives no longer than."""
    reader, lifeline = os.pipe()
    try:
        process = subprocess.Popen(
            (*_LEASH, str(reader), str(seconds + _LEASH_SECONDS), *command),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=[reader],
        )
    except BaseException:
        os.close(lifeline)
        raise
    finally:
        os.close(reader)
    return process, lifeline


def _follow(
    process: subprocess.Popen[bytes], deadline: float, given_up: Callable[[], bool]
) -> tuple[bytes, bool]:
    """Read what it says until it ends; returns the last of that, and False if it did not end."""
    assert process.stderr
    tail = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stderr, selectors.EVENT_READ)
        while process.poll() is None:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or given_up():
                return tail, False
            if not selector.get_map():
                time.sleep(min(remaining, _LOOK_SECONDS))
            elif selector.select(min(remaining, _LOOK_SECONDS)):
                chunk = os.read(process.stderr.fileno(), _READ_BYTES)
                tail = (tail + chunk)[-_TAIL_BYTES:]
                # One that prints without end must not take the loop's time.
                time.sleep(len(chunk) / _BYTES_PER_SECOND)
                if not chunk:
                    selector.unregister(process.stderr)
        # What it said last may still be there; a child of its own may hold the pipe open.
        if selector.get_map() and selector.select(0):
            tail = (tail + os.read(process.stderr.fileno(), _READ_BYTES))[-_TAIL_BYTES:]
    return tail, True


def _verdict(code: int, tail: bytes, limit: float | None) -> str | None:
    if limit is None and code == 0:
        return None
    if limit is not None:
        how = f"it did not end within {limit:g} s"
    elif code < 0:
        how = f"killed by {signal.Signals(-code).name}"
    else:
        how = f"it ended with exit code {code}"
    lines = tail.decode(errors="replace").strip().splitlines()
    return f"{how} ({lines[-1].strip()[:200]})" if lines else how
