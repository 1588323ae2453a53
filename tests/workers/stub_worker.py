#!/usr/bin/env python3
"""A small evaluation worker without TensorFlow, given to the daemon as its `--python`.

It speaks the evaluator protocol as `evaluators/worker.py` does, dies with its parent and ignores
signals as that does, and misbehaves as the environment asks. With names of checkpoints,
comma-separated, or * for all:

STUB_CRASH (a segmentation fault), STUB_KILL (SIGKILL), STUB_EXIT (code 0, no answer), STUB_MEMORY
(out of memory under RLIMIT_AS), STUB_HANG (SIGSTOP), STUB_GARBAGE, STUB_NOISE (an endless line),
STUB_CHATTER (the same progress for ever), STUB_WAIT (goes on once the file STUB_WAIT_FOR is there),
STUB_MISFIT (of another model than pipeline.config says, so that a start which is told to check it
is refused), STUB_TORN (an average that is not whole), STUB_ODD (an answer of odd values),
STUB_WRONG (a text for a number), STUB_SHORT (one image less), STUB_REJECT (for what another set-up
may mend), STUB_NAN (for ever), STUB_EXHAUSTED (fails for a reason that may pass), STUB_CHANGED (the
eval data changed), STUB_REASON (why it fails, in place of the stub's own words), STUB_ORPHAN (dies,
and a child holds its pipe open), STUB_LOUD (endless lines to stderr while it evaluates). STUB_ONCE
is a folder: each fault happens once a checkpoint. STUB_BREAKS_IF: it dies at each evaluation while
this file exists.

Else: STUB_SCORES (JSON, name to score; else number/1000), STUB_SECONDS (each evaluation lasts so
long), STUB_REFUSE (message of a refusal at the start), STUB_DIE (exit code at the start),
STUB_DIE_IF (the same, while this file exists), STUB_MUTE (starts and says nothing),
STUB_METRICS_SECONDS (metrics take so long, while the next checkpoint may run), STUB_LITTER (it
leaves a file in its temporary folder), STUB_PHASES (JSON, what it does before it is ready, each
with its seconds), STUB_METRIC_WARNINGS (JSON, sentences that come with each result), STUB_NOTES
(the same, of the start), STUB_METRICS (JSON, the names of all overall metrics), STUB_RANDOM (JSON,
those of them that are drawn at random), STUB_DETAILS (JSON, the details of `ready`), STUB_PROTOCOL
(the number that it says it speaks), STUB_LATENCIES (JSON, name to [latency_ms, its spread]),
STUB_REPLICATES (JSON, name to the replicates of its score), STUB_REPLICATES_SECONDS (they take so
long), STUB_CATEGORIES (JSON, the names of the categories), STUB_MACHINE (JSON, the parts of its
machine), STUB_DEVIATION (JSON, metric to what is added to it, null for no number),
STUB_CATEGORY_METRIC (the metric that there is of each), STUB_FINGERPRINT, STUB_EVAL_NAME,
STUB_PICTURES (a folder that is copied for each evaluation, and given as its pictures), STUB_LOG and
STUB_STARTS (files that get a line for each evaluation, and one with the process id for each
worker), STUB_CHILD (it starts a process that outlives it, if nobody ends its group), STUB_JOBS
(JSON, what it may be asked for; an average has weights that come of the names of its parents and of
how many images its batch norm is recomputed of, and is written by STUB_PYTHON), STUB_PLAIN (it
recomputes none), STUB_PARTS (a file that gets a line for each evaluation of which others ran parts:
its name, and of each part what its file says, or that there is none), STUB_PART_SECONDS (a part
takes so long).
STUB_READ is a file that gets, for each worker, a JSON list of the texts that its pipeline.config
and metric plugins hold; STUB_TAKE a label map, which it copies where the daemon wants it, and whose
text comes last in that list. STUB_ON is a JSON object of what differs on a device: its name in
CUDA_VISIBLE_DEVICES to an object of these variables.
"""

import array
import base64
import ctypes
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
IMAGES = 8


def die_with_parent():
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def reply(kind, **fields):
    sys.stdout.write(json.dumps({"type": kind, **fields}) + "\n")
    sys.stdout.flush()


def asked(what, name):
    names = os.environ.get(what, "").split(",")
    if name not in names and "*" not in names:
        return False
    if "STUB_ONCE" in os.environ:
        mark = Path(os.environ["STUB_ONCE"]) / f"{what}-{name}"
        if mark.exists():
            return False
        mark.touch()
    return True


def run_out_of_memory():
    resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20))
    kept = []
    while True:
        kept.append(bytearray(16 << 20))


def leave_an_orphan():
    """Dies; a child in its process group lives on and holds the reply pipe open."""
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)
        time.sleep(600)
    os._exit(1)


def make_noise():
    while True:
        os.write(1, b"loss " * 20_000)


def chatter(token):
    while True:
        reply("progress", id=token, done=0, total=IMAGES)
        time.sleep(0.05)


def be_loud():
    while True:
        os.write(2, b"W tensorflow/core/framework/op_kernel.cc: this is a warning\n" * 1000)


FAULTS = {
    "STUB_CRASH": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "STUB_KILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "STUB_EXIT": lambda: os._exit(0),
    "STUB_MEMORY": run_out_of_memory,
    "STUB_HANG": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "STUB_GARBAGE": lambda: print("Accumulating evaluation results...", flush=True),
    "STUB_NOISE": make_noise,
    "STUB_ORPHAN": leave_an_orphan,
    "STUB_LOUD": lambda: threading.Thread(target=be_loud, daemon=True).start(),
}


MISFIT = "has 2 classes, pipeline.config says 5"
FAILURES = [
    ("STUB_MISFIT", "unmatched_variables", "the checkpoint " + MISFIT, True),
    ("STUB_REJECT", "unmatched_variables", "model/head/kernel is not in the checkpoint", True),
    ("STUB_NAN", "not_finite", "2 variables hold NaN or infinity: a; b", True),
    ("STUB_EXHAUSTED", "internal", "ResourceExhaustedError: out of memory", False),
    ("STUB_CHANGED", "dataset_changed", "val.record has another size", False),
]


def misbehave(name, token):
    if Path(os.environ.get("STUB_BREAKS_IF", "/none")).exists():
        os._exit(134)
    for fault, happen in FAULTS.items():
        if asked(fault, name):
            happen()
    if asked("STUB_CHATTER", name):
        chatter(token)
    while asked("STUB_WAIT", name) and not Path(os.environ["STUB_WAIT_FOR"]).exists():
        time.sleep(0.02)
    if asked("STUB_ODD", name):
        odd = {"DetectionBoxes_Precision/mAP": float("inf"), "\ud800": 0.5}
        reply("result", id=token, images=IMAGES, metrics=odd, timings={})
        return True
    if asked("STUB_WRONG", name):
        wrong = {"DetectionBoxes_Precision/mAP": "high"}
        reply("result", id=token, images=IMAGES, metrics=wrong)
        return True
    for fault, code, message, permanent in FAILURES:
        if asked(fault, name):
            message = os.environ.get("STUB_REASON", message)
            reply("failed", id=token, code=code, message=message, permanent=permanent)
            return True
    return False


def evaluate(request):
    name, token = Path(request["prefix"]).name, request["id"]
    if "STUB_LOG" in os.environ:
        with Path(os.environ["STUB_LOG"]).open("a") as log:
            log.write(name + "\n")
    reply("progress", id=token, done=0, total=IMAGES)
    if misbehave(name, token):
        return
    seconds = float(os.environ.get("STUB_SECONDS", "0"))
    for done in range(1, IMAGES + 1):
        time.sleep(seconds / IMAGES)
        reply("progress", id=token, done=done, total=IMAGES)
    others(request)
    reply("free", id=token)
    metrics = threading.Thread(target=answer, args=(name, token, list(COMPUTING)), daemon=True)
    COMPUTING[:] = [metrics]
    metrics.start()
    if "STUB_METRICS_SECONDS" not in os.environ:
        metrics.join()


def others(request):
    """Waits for the parts that others run, and notes what was in their files."""
    found = {}
    while len(found) < request.get("parts", 1) - 1:
        said = json.loads(sys.stdin.readline())
        assert said["type"] == "part_found" and said["id"] == request["id"], said
        path = said.get("path")
        found[said["index"]] = Path(path).read_text() if path else "none"
    if found:
        with Path(os.environ["STUB_PARTS"]).open("a") as log:
            words = [found[index] for index in sorted(found)]
            log.write(" ".join([Path(request["prefix"]).name, *words]) + "\n")


def part(request):
    name, token = Path(request["prefix"]).name, request["id"]
    reply("progress", id=token, done=0, total=IMAGES)
    if misbehave(name, token):
        return
    time.sleep(float(os.environ.get("STUB_PART_SECONDS", "0")))
    Path(request["path"]).write_text("{}/{}".format(request["index"], request["of"]))
    reply("part_written", id=token, images=IMAGES // request["of"])


def average(request):
    name, token = Path(request["prefix"]).name, request["id"]
    if misbehave(name, token):
        return
    parents = [Path(prefix).name for prefix in request["prefixes"]]
    for prefix in request["prefixes"]:
        Path(prefix + ".index").read_bytes()
    step = 100 * int(parents[-1].split("-")[1])
    folder = Path(request["prefix"]).parent
    program = "import sys, pathlib, fake_trainer as t; folder, name, step, of = sys.argv[1:]; "
    program += "t.write_checkpoint(pathlib.Path(folder), name, int(step), t.model_tensors(999, of))"
    images = request.get("recompute_batch_norm")
    told = f"{parents} {images}"
    words = [os.environ["STUB_PYTHON"], "-c", program, str(folder), name, str(step), told]
    tests = Path(__file__).resolve().parents[1]
    path = f"{tests.parent}:{tests / 'helpers'}"
    subprocess.run(words, check=True, env={**os.environ, "PYTHONPATH": path})
    if asked("STUB_TORN", name):
        (folder / (name + ".data-00000-of-00001")).write_bytes(b"torn")
    made = {"images": images, "batch_size": 8, "layers": 3, "frozen": 0} if images else None
    if "STUB_PLAIN" in os.environ:
        made = None
    reply("averaged", id=token, variables=len(parents), batch_norm=made)


def categories():
    names = json.loads(os.environ.get("STUB_CATEGORIES", '["rectangle"]'))
    return [{"id": number, "name": name} for number, name in enumerate(names, 1)]


COMPUTING = []
START = {}


def answer(name, token, before):
    """Computes the metrics, which in the real worker happens beside the next checkpoint."""
    for thread in before:
        thread.join()
    time.sleep(float(os.environ.get("STUB_METRICS_SECONDS", "0")))
    scores = json.loads(os.environ.get("STUB_SCORES", "{}"))
    score = scores.get(name, int(name.split("-")[1]) / 1000)
    metrics = {"DetectionBoxes_Precision/mAP": score, "Loss/total_loss": 1 - (score or 0)}
    for metric, more in json.loads(os.environ.get("STUB_DEVIATION", "{}")).items():
        metrics[metric] = None if more is None else metrics[metric] + more
    drawn = json.loads(os.environ.get("STUB_REPLICATES", "{}")).get(name)
    cost = None
    if "STUB_LATENCIES" in os.environ:
        metrics["latency_ms"], spread = json.loads(os.environ["STUB_LATENCIES"])[name]
        cost = {"latency_ms_spread": spread, "latency_passes": 9, "latency_shared": True}
    reply(
        "result",
        id=token,
        global_step=0,
        images=IMAGES - 1 if asked("STUB_SHORT", name) else IMAGES,
        metrics=metrics,
        cost=cost,
        category_metrics=[
            {
                "name": os.environ.get("STUB_CATEGORY_METRIC", "AP"),
                "category": category["id"],
                "value": score,
            }
            for category in categories()
        ],
        timings={"total_seconds": 0.1},
        artefacts=pictures(),
        warnings=json.loads(os.environ.get("STUB_METRIC_WARNINGS", "[]")),
        replicates_follow=drawn is not None,
    )
    if drawn is not None:
        resample(token, drawn)


def packed(numbers):
    return base64.b64encode(array.array("f", numbers).tobytes()).decode()


def resample(token, drawn):
    """Gives replicates of the score, the same for each category."""
    time.sleep(float(os.environ.get("STUB_REPLICATES_SECONDS", "0")))
    values = packed(drawn)
    said = {"objects": 9, "low": min(drawn), "high": max(drawn), "values": values}
    of = [None, *(category["id"] for category in categories())]
    rows = [{"name": "DetectionBoxes_Precision/mAP", "category": one, **said} for one in of]
    influences = packed(range(IMAGES))
    fields = {"scheme": "images-1", "images": IMAGES, "count": len(drawn), "level": 0.95}
    names = [f"image {number}" for number in range(IMAGES)]
    more = {"influences": influences, "image_names": names}
    reply("replicates", id=token, metrics=rows, **more, **fields)


def pictures():
    if "STUB_PICTURES" not in os.environ:
        return []
    folder = tempfile.mkdtemp(prefix="pictures-", dir=START["artefacts_dir"])
    copied = Path(shutil.copytree(os.environ["STUB_PICTURES"], folder + "/1"))
    return [
        {
            "kind": "picture",
            "name": path.stem,
            "path": str(path),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "image": f"image {place}",
        }
        for place, path in enumerate(sorted(copied.iterdir()))
    ]


def note_start():
    if "STUB_STARTS" in os.environ:
        with Path(os.environ["STUB_STARTS"]).open("a") as log:
            log.write(f"{os.getpid()}\n")


def read(start):
    """Reads what an evaluation is set up from; returns what it copied, as the real worker does."""
    taken = {}
    if "STUB_TAKE" in os.environ:
        label_map = os.environ["STUB_TAKE"]
        taken[label_map] = start["snapshot"]["folder"] + "/label_map.pbtxt"
        if not Path(taken[label_map]).exists():
            shutil.copyfile(label_map, taken[label_map])
    if "STUB_READ" in os.environ:
        options = start["options"]
        plugins = [text.rpartition(":")[0] for text in options["metric_plugins"]]
        files = [options["pipeline_config"], *plugins, *taken.values()]
        with Path(os.environ["STUB_READ"]).open("a") as log:
            log.write(json.dumps([Path(file).read_text() for file in files]) + "\n")
    return taken


def main():
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()
    of_devices = json.loads(os.environ.get("STUB_ON", "{}"))
    os.environ.update(of_devices.get(os.environ.get("CUDA_VISIBLE_DEVICES"), {}))
    note_start()
    if "STUB_DIE" in os.environ or Path(os.environ.get("STUB_DIE_IF", "/none")).exists():
        print("ImportError: libcuda.so.1", file=sys.stderr, flush=True)
        os._exit(int(os.environ.get("STUB_DIE", "1")))
    if "STUB_CHILD" in os.environ:
        subprocess.Popen(["sh", "-c", "while :; do sleep 1; done", "stub-child", f"{os.getpid()};"])
    if "STUB_MUTE" in os.environ:
        time.sleep(600)
    START.update(json.loads(sys.stdin.readline()))
    taken = read(START)
    if "STUB_LITTER" in os.environ:
        tempfile.mkstemp(prefix="__autograph_generated_file")
    if "STUB_REFUSE" in os.environ:
        reply("error", code="missing_file", message=os.environ["STUB_REFUSE"], hint="look there")
        sys.exit(3)
    for phase, seconds in json.loads(os.environ.get("STUB_PHASES", "[]")):
        reply("phase", name=phase)
        time.sleep(seconds)
    protocol = int(os.environ.get("STUB_PROTOCOL", "2"))
    reply("hello", protocol=protocol, pid=os.getpid(), versions={"python": "stub"})
    checked = Path(START.get("check") or "none").name
    if asked("STUB_MISFIT", checked) and START.get("check"):
        said = "checkpoint " + checked + " " + MISFIT
        reply("error", code="unmatched_variables", message=said, hint="give the right one")
        sys.exit(3)
    names = ["DetectionBoxes_Precision/mAP", "Loss/total_loss"]
    drawn = json.loads(os.environ.get("STUB_RANDOM", "[]"))
    jobs = json.loads(os.environ.get("STUB_JOBS", '["evaluate", "average"]'))
    details = {"eval_input": "val", "eval_name": os.environ.get("STUB_EVAL_NAME", "val")}
    reply(
        "ready",
        fingerprint=os.environ.get("STUB_FINGERPRINT", "f" * 64),
        images=IMAGES,
        metrics=[
            {"name": name, "reproducible": name not in drawn}
            for name in json.loads(os.environ.get("STUB_METRICS", json.dumps(names)))
        ],
        device="cpu",
        machine=json.loads(os.environ.get("STUB_MACHINE", "null")),
        categories=categories(),
        capabilities={"overlap": True, "jobs": jobs},
        notes=json.loads(os.environ.get("STUB_NOTES", "[]")),
        taken=taken,
        details={**details, **json.loads(os.environ.get("STUB_DETAILS", "{}"))},
    )
    for line in sys.stdin:
        request = json.loads(line)
        if request["type"] == "stop":
            break
        {"average": average, "part": part, "evaluate": evaluate}[request["type"]](request)


main()
