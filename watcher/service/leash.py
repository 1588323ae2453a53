"""Leash: runs a program that ends with its watcher, `python leash.py FD SECONDS PROGRAM ...`.

A watcher that is killed ends nothing, and what hangs would stay for good, one more at each kill. FD
is a pipe whose other end the watcher holds: at its end, or after SECONDS, the process group is
killed, this process and the program with all that it started. Else it ends as the program did; 127,
and the reason on standard error, where that cannot be started. It imports nothing of ours, to be as
small as a Python can be.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys

_CANNOT_START = 127
# A batch system sends these to all processes of a job; it is the program that heeds them.
_THE_PROGRAMS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def start(command: list[str]) -> int:
    """Start the program in our group with the signals as we found them; returns its process id."""
    defaults = {signal.SIGPIPE, signal.SIGXFSZ}  # which Python itself ignores
    for number in _THE_PROGRAMS:
        if signal.signal(number, signal.SIG_IGN) != signal.SIG_IGN:
            defaults.add(number)
    return os.posix_spawnp(command[0], command, os.environ, setsigdef=defaults)


def main() -> int:
    """Run the program to its end."""
    lifeline, seconds, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    os.set_inheritable(lifeline, False)
    try:
        pid = start(command)
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr)
        return _CANNOT_START
    ended = os.pidfd_open(pid)
    if ended not in select.select([ended, lifeline], [], [], seconds)[0]:
        os.killpg(0, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        end_by(-code)
    return code


def end_by(number: int) -> None:
    """End as the program was ended, without another core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:  # which has no handler to be taken away
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    sys.exit(main())
