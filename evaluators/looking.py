"""What the programs that look at a training environment for `checkpoint-watcher doctor` share.

They write JSON lines: `fact` (a name and a value), `finding` (check, severity, message, remedy),
`progress`, and at the end `done`. What was found before a crash or a time limit has been said.
"""

import contextlib
import json
import os
import sys
import time

from evaluators import protocol

SUPPORTED = "see 'Environments that were run' in the documentation of checkpoint-watcher"


class Findings:
    """What is said on the pipe.

    Attributes:
        facts: what was told by name.
    """

    def __init__(self, replies):
        self._replies = replies
        self._told = 0.0
        self.facts = {}

    def fact(self, name, value):
        """Tells a value by name, and keeps it."""
        self.facts[name] = value
        self._replies.write("fact", name=name, value=value)

    def say(self, check, severity, message, remedy=None):
        """Tells a finding."""
        text = protocol.one_line(message)
        self._replies.write("finding", check=check, severity=severity, message=text, remedy=remedy)

    def begin(self, text):
        """Tells what takes its time now."""
        self._replies.write("progress", text=text)

    def progress(self, count):
        """Tells how many records were read, at most once a second."""
        if time.monotonic() > self._told + 1:
            self._told = time.monotonic()
            self._replies.write("progress", text="{} eval records were read".format(count))


def answer(request_descriptor, reply_descriptor, check, examine):
    """Answers one request, and ends the process.

    Args:
        request_descriptor: where the request is read from.
        reply_descriptor: where the answer goes.
        check: what is looked at, for a fault of `examine` itself.
        examine: called with the request and the Findings.
    """
    with os.fdopen(request_descriptor, "rb") as file:
        request = json.loads(file.read().decode("utf-8"))
    replies = protocol.Replies(reply_descriptor)
    findings = Findings(replies)
    try:
        examine(request, findings)
    except Exception as error:
        sys.stderr.write(protocol.last_traceback())
        text = "this could not be checked: {}: {}".format(type(error).__name__, error)
        findings.say(check, "warning", text, "a fault of doctor's or of that environment")
    replies.write("done")
    sys.stderr.flush()
    os._exit(0)  # TensorFlow's own shutdown can hang and has nothing of ours to save


def check_device(request, findings):
    """Says whether TensorFlow sees the GPU that was asked for. Computes nothing on it."""
    import tensorflow as tf

    wanted = request.get("device") or "cpu"
    if wanted != "cpu" and not tf.config.list_physical_devices("GPU"):
        findings.say(
            "device",
            "error",
            "device ({}) is not visible to TensorFlow in this environment".format(wanted),
            "check nvidia-smi and the CUDA libraries of that environment, or choose cpu",
        )


def compute_on_the_cpu():
    """Takes the GPUs out of TensorFlow's sight, before anything is computed."""
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # something was computed already
        tf.config.set_visible_devices([], "GPU")
