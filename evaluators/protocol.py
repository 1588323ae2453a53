"""The worker's side of the line protocol: replies, and the errors that travel as fields."""

import json
import math
import os
import re
import sys
import threading
import traceback

PROTOCOL = 1
# A message is read in a table or a line of a log; what is longer goes to stderr as well.
LONGEST_MESSAGE = 400


class Refusal(Exception):
    """Raised at start-up when this set-up cannot be evaluated; ends the worker."""

    def __init__(self, code, message, hint=""):
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class Failure(Exception):
    """Raised when one checkpoint gets no score; the worker lives on.

    `permanent` says that another attempt at the same checkpoint would end the same way.
    """

    def __init__(self, code, message, permanent):
        super().__init__(message)
        self.code = code
        self.message = message
        self.permanent = permanent


# What TensorFlow puts around its messages: its own nodes, devices and operations.
_NODES = re.compile(r"\[\[\s*\{\{[^\]]*\]\]|\{\{[^{}]*\}\}|\[Op:\w+\]( name:)?")


def one_line(text):
    """Returns the text in one line, without the names of TensorFlow's own nodes."""
    return " ".join(_NODES.sub(" ", str(text)).split())


def brief(text):
    """Returns the text in one line of bounded length; of a longer one stderr gets all."""
    line = one_line(text)
    if len(line) <= LONGEST_MESSAGE:
        return line
    print(text, file=sys.stderr, flush=True)
    return line[: LONGEST_MESSAGE - 4].rsplit(" ", 1)[0] + " ..."


def finite(value):
    """Returns the value as a float, or None where it is not finite and JSON has no word for it."""
    number = float(value)
    return number if math.isfinite(number) else None


def last_traceback():
    """Returns the traceback of the exception being handled."""
    return traceback.format_exc()


class Replies:
    """Writes reply lines to the pipe the daemon reads; safe from several threads."""

    def __init__(self, descriptor):
        self._descriptor = descriptor
        # Makes a text about copies of the run's files one about the user's own.
        self.named = str
        self._lock = threading.Lock()

    def send(self, kind, **fields):
        """Sends one reply of the type `kind`."""
        line = json.dumps(dict(type=kind, **fields), allow_nan=False, ensure_ascii=False) + "\n"
        # An error's text may hold half a surrogate pair, which is no text to the reader.
        data = line.encode("utf-8", "replace")
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]

    def refuse(self, refusal, detail=None):
        """Sends a start-up error."""
        self.send(
            "error",
            code=refusal.code,
            message=one_line(self.named(refusal.message)),
            hint=one_line(self.named(refusal.hint)),
            detail=detail,
        )

    def fail(self, request_id, failure, detail=None):
        """Sends the news that one checkpoint got no score."""
        self.send(
            "failed",
            id=request_id,
            code=failure.code,
            message=brief(self.named(failure.message)),
            permanent=failure.permanent,
            detail=detail,
        )
