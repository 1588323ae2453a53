#!/usr/bin/env python3
"""An evaluation worker in sixty lines: `checkpoint-watcher run ... --python THIS_FILE`.

It looks scores up, in a file of lines `ckpt-1 0.25` that is given as --pipeline-config, and shows
what a worker says, and when: docs/reference/protocol.md. A real one measures instead.
"""

import hashlib
import json
import os
import pathlib
import signal
import sys

REPLIES = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print goes to worker.log, and not between the messages


def say(kind, **fields):
    """Sends a message."""
    print(json.dumps({"type": kind, **fields}, allow_nan=False), file=REPLIES, flush=True)


def start(request):
    """Gets ready and returns the scores; ends the worker where that can never work."""
    code, scores = "protocol", {}
    try:
        if request["protocol"] != 2:
            raise ValueError("this worker speaks protocol 2")
        say("hello", protocol=2, pid=os.getpid(), versions={"python": sys.version.split()[0]})
        code = "missing_file"
        text = pathlib.Path(request["options"]["pipeline_config"]).read_text()
        scores = {name: float(score) for name, score in map(str.split, text.splitlines())}
    except (OSError, ValueError) as error:
        say("error", code=code, message=str(error), hint="give a file of names and scores")
        sys.exit(3)
    # Other scores are another evaluation: its checkpoints are not ranked against these.
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    metrics = [{"name": "score", "direction": "max"}]
    say("ready", fingerprint=fingerprint, images=1, device="cpu", metrics=metrics)
    return scores


def evaluate(token, name, scores):
    """Answers with a result, or with why there is none."""
    say("progress", id=token, done=0, total=1)
    if name in scores:
        say("result", id=token, images=1, metrics={"score": scores[name]})
    else:
        say("failed", id=token, code="no_score", message=name + " has no line", permanent=True)


for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)  # meant for the watcher, which ends this in time
known = start(json.loads(sys.stdin.readline()))
for asked in map(json.loads, sys.stdin):  # until the watcher closes it
    if asked["type"] == "stop":
        break
    evaluate(asked["id"], pathlib.Path(asked["prefix"]).name, known)
