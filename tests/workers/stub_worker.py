#!/usr/bin/env python3
"""A small evaluation worker without TensorFlow, given to the daemon as its `--python`.

It speaks the protocol of `evaluators/worker.py` and misbehaves as the environment asks:
STUB_SCORES (JSON, name to score; else step/1000 by the name's number), STUB_CRASH, STUB_HANG,
STUB_GARBAGE, STUB_SHORT, STUB_REJECT (names of checkpoints, comma-separated), STUB_SECONDS (each
evaluation lasts so long), STUB_REFUSE (message of a refusal at the start), STUB_DIE (exit code at
the start), STUB_FINGERPRINT, STUB_LOG (a file that gets a line for each evaluation).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

IMAGES = 8


def reply(kind, **fields):
    sys.stdout.write(json.dumps({"type": kind, **fields}) + "\n")
    sys.stdout.flush()


def asked(what, name):
    return name in os.environ.get(what, "").split(",")


def misbehave(name, token):
    if asked("STUB_CRASH", name):
        os.kill(os.getpid(), signal.SIGSEGV)
    if asked("STUB_HANG", name):
        os.kill(os.getpid(), signal.SIGSTOP)
    if asked("STUB_GARBAGE", name):
        print("Accumulating evaluation results...", flush=True)
    if asked("STUB_REJECT", name):
        reply(
            "failed",
            id=token,
            code="unmatched_variables",
            message="model/head/kernel is not in the checkpoint",
            permanent=True,
        )
        return True
    return False


def evaluate(request):
    name, token = Path(request["prefix"]).name, request["id"]
    if "STUB_LOG" in os.environ:
        with open(os.environ["STUB_LOG"], "a") as log:
            log.write(name + "\n")
    reply("progress", id=token, done=0, total=IMAGES)
    if misbehave(name, token):
        return
    seconds = float(os.environ.get("STUB_SECONDS", "0"))
    for done in range(1, IMAGES + 1):
        time.sleep(seconds / IMAGES)
        reply("progress", id=token, done=done, total=IMAGES)
    scores = json.loads(os.environ.get("STUB_SCORES", "{}"))
    score = scores.get(name, int(name.split("-")[1]) / 1000)
    reply(
        "result",
        id=token,
        global_step=0,
        images=IMAGES - 1 if asked("STUB_SHORT", name) else IMAGES,
        metrics={"DetectionBoxes_Precision/mAP": score, "Loss/total_loss": 1 - (score or 0)},
        category_metrics=[{"name": "AP", "category": "rectangle", "value": score}],
        timings={"total_seconds": 0.1},
    )


def main():
    if "STUB_DIE" in os.environ:
        print("ImportError: libcuda.so.1", file=sys.stderr, flush=True)
        os._exit(int(os.environ["STUB_DIE"]))
    json.loads(sys.stdin.readline())
    if "STUB_REFUSE" in os.environ:
        reply("error", code="missing_file", message=os.environ["STUB_REFUSE"], hint="look there")
        sys.exit(3)
    reply("hello", protocol=1, pid=os.getpid(), versions={"python": "stub"})
    reply(
        "ready",
        fingerprint=os.environ.get("STUB_FINGERPRINT", "f" * 64),
        images=IMAGES,
        metric_names=["DetectionBoxes_Precision/mAP", "Loss/total_loss"],
        device="cpu",
        eval_input="val",
    )
    for line in sys.stdin:
        request = json.loads(line)
        if request["type"] == "stop":
            break
        evaluate(request)


main()
