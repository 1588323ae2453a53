"""Time limits: a check that hangs or fails is a finding like any other."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from watcher.doctor.finding import Finding
from watcher.errors import WatcherError

_TURN_SECONDS = 0.2


class Check(msgspec.Struct, frozen=True):
    """A function to call, what to call it, and how long it may take."""

    name: str
    look: Callable[[], list[Finding]]
    seconds: float = 10.0


def look_at(checks: Sequence[Check]) -> list[Finding]:
    """Run all checks at the same time, and return their findings in the order of the checks.

    Returns after the longest limit at the latest: a thread that hangs, in a file system say, is
    left behind.
    """
    answers: list[queue.SimpleQueue[list[Finding]]] = [queue.SimpleQueue() for _ in checks]
    began = time.monotonic()
    for check, answer in zip(checks, answers, strict=True):
        threading.Thread(target=_run, args=(check, answer), name=check.name, daemon=True).start()
    found: list[Finding] = []
    for check, answer in zip(checks, answers, strict=True):
        given = _await(answer, began + check.seconds)
        if given is not None:
            found += given
        else:
            said = f"no answer within {check.seconds:g} s"
            remedy = "a disk, a mount or a program that it asks hangs, or the machine is very busy"
            found.append(_failed(check, said, remedy))
    return found


def _await(answer: queue.SimpleQueue[list[Finding]], deadline: float) -> list[Finding] | None:
    """Return what comes until the deadline, None for nothing.

    In turns: a Ctrl-C that comes in the instant before a wait is seen only after it.
    """
    while True:
        left = deadline - time.monotonic()
        with contextlib.suppress(queue.Empty):
            return answer.get(timeout=max(0.0, min(left, _TURN_SECONDS)))
        if left <= _TURN_SECONDS:
            return None


def _run(check: Check, answer: queue.SimpleQueue[list[Finding]]) -> None:
    try:
        answer.put(check.look())
    except WatcherError as error:
        answer.put([_failed(check, error.message, error.hint)])
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        answer.put([_failed(check, text, None)])


def _failed(check: Check, why: str, remedy: str | None) -> Finding:
    return Finding(check.name, "warning", f"this could not be checked: {why}", remedy)
