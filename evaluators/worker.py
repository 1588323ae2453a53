"""The evaluation worker: `PYTHON .../evaluators/worker.py`, one long-lived process a device.

Speaks JSON lines: requests on stdin, replies on what was stdout when it started (`protocol.py`;
`PROTOCOL` is its version). The first request must be `start`; the answers are `hello` once the
libraries are imported, then `ready` once the model is built and traced, or `error` and exit code
3. Each `evaluate` is answered with `progress` lines and one `result` or `failed`, in the order
asked. A `start` whose `check` is the prefix of a checkpoint is refused where that is of another
model; one with `phases` is answered with a `phase`, its `name`, as each part of the start begins.
`stop` or the end of stdin ends the process at once with code 0, also in the middle of an
evaluation. On Linux it dies with the thread that started it. Whatever libraries print goes to
stderr. The next `evaluate` may be sent before the last is answered: then the metrics of one
checkpoint are computed while the next goes through the model. What it leaves in its temporary
folder, and in the `pictures_dir` of `start`, is removed by whoever started it.
"""

import os
import sys

# pycocotools and others print to stdout, and a metric plugin may start programs that read stdin:
# both pipes must be out of their reach before any of them is imported.
REQUEST_DESCRIPTOR = os.dup(0)
REPLY_DESCRIPTOR = os.dup(1)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(2, 1)

import ctypes  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import pathlib  # noqa: E402
import queue  # noqa: E402
import signal  # noqa: E402
import threading  # noqa: E402

REFUSED = 3
PR_SET_PDEATHSIG = 1


def die_with_parent():
    """Asks Linux to kill this process when its parent dies; does nothing elsewhere."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request took hold
        os._exit(0)


def leave_signals_to_the_parent():
    """Ignores the signals that a batch system sends to all processes of a job and not just to one.

    They ask the daemon to end or to finish; it ends this process when it is time.
    """
    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def is_inside(path, folder):
    """Tells whether a path is a folder or lies in it."""
    resolved = path.resolve()
    return resolved == folder or folder in resolved.parents


def load_package():
    """Makes the package `evaluators` importable from this file's own folder and from there alone.

    The folder and those in it leave `sys.path`: their module names must not shadow anything, and
    the parent, which may be the daemon's site-packages, never enters.
    """
    here = pathlib.Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if not is_inside(pathlib.Path(entry), here)]
    spec = importlib.util.spec_from_file_location(
        "evaluators", here / "__init__.py", submodule_search_locations=[str(here)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["evaluators"] = package
    spec.loader.exec_module(package)


def read_requests(requests):
    """Puts each request into the queue; ends the process on `stop` and at the end of stdin."""
    for line in os.fdopen(REQUEST_DESCRIPTOR, "rb"):
        if not line.strip():
            continue
        try:
            request = json.loads(line.decode("utf-8"))
        except ValueError:
            request = {}
        if not isinstance(request, dict):
            request = {}
        if request.get("type") == "stop":
            break
        requests.put(request)
    os._exit(0)


def serve(requests, replies):
    """Answers requests until the process ends; returns an exit code when it cannot start."""
    from evaluators import protocol

    try:
        evaluation = start(requests.get(), replies)
    except protocol.Refusal as refusal:
        replies.refuse(refusal, protocol.last_traceback())
        return REFUSED
    except Exception as error:
        text = "{}: {}".format(type(error).__name__, error)
        hint = "see the detail: this is a fault of the evaluator or of the training environment"
        replies.refuse(protocol.Refusal("internal", text, hint), protocol.last_traceback())
        return REFUSED
    pending = []
    while True:
        answer(requests.get(), evaluation, replies, pending)


def start(request, replies):
    """Imports TensorFlow, says hello, builds the evaluation and says ready; returns it."""
    from evaluators import protocol
    from evaluators.od_api import compat

    if request.get("type") != "start" or request.get("protocol") != protocol.PROTOCOL:
        raise protocol.Refusal(
            "protocol",
            "the first request must be start with protocol {}, got type {!r}, protocol {!r}".format(
                protocol.PROTOCOL, request.get("type"), request.get("protocol")
            ),
            "daemon and evaluators must come from the same installation",
        )

    def begin(phase):
        if request.get("phases"):
            replies.send("phase", name=phase)

    begin("importing TensorFlow")
    compat.prepare_process(request)
    versions = compat.import_libraries()
    replies.send("hello", protocol=protocol.PROTOCOL, pid=os.getpid(), versions=versions)
    from evaluators.od_api import evaluation
    from evaluators.snapshot import Snapshot

    snapshot = Snapshot(request.get("snapshot"))
    replies.named = snapshot.named
    built = evaluation.Evaluation(request, versions, snapshot, begin)
    replies.send("ready", **built.describe())
    return built


def answer(request, evaluation, replies, pending):
    """Runs one checkpoint and leaves its metrics to a thread, which sends the reply.

    So the metrics of one checkpoint are computed while the next goes through the model, if it was
    asked for meanwhile. `pending` holds the last such thread: replies keep the order of requests.
    """
    request_id = request.get("id")

    def on_progress(done, total):
        replies.send("progress", id=request_id, done=done, total=total)

    def forward():
        if request.get("type") != "evaluate" or not isinstance(request.get("prefix"), str):
            from evaluators import protocol

            message = "expected evaluate with a prefix, got {!r}".format(request)
            raise protocol.Failure("internal", message, permanent=True)
        return evaluation.forward(request["prefix"], on_progress)

    time_it = attempt(forward, replies, request_id, pending)
    wait_for(pending)
    # Now nothing of ours runs, neither passes nor metrics.
    finish = time_it and attempt(time_it, replies, request_id, [])
    if finish is None:
        return

    def send_result():
        result = attempt(finish, replies, request_id, [])
        if result is not None:
            replies.send("result", id=request_id, **result)

    thread = threading.Thread(target=send_result, daemon=True)
    thread.start()
    pending.append(thread)


def wait_for(pending):
    """Waits until the metrics of the checkpoint before are sent."""
    while pending:
        pending.pop().join()


def attempt(work, replies, request_id, pending):
    """Returns what `work` returns, or sends why there is no score and returns None."""
    from evaluators import protocol

    try:
        return work()
    except protocol.Failure as error:
        failure, detail = error, protocol.last_traceback()
    except Exception as error:
        text = "{}: {}".format(type(error).__name__, error)
        failure = protocol.Failure("internal", text, permanent=False)
        detail = protocol.last_traceback()
    wait_for(pending)
    replies.fail(request_id, failure, detail)
    return None


def main():
    """Runs the worker."""
    leave_signals_to_the_parent()
    die_with_parent()
    load_package()
    from evaluators import protocol

    requests = queue.Queue()
    threading.Thread(target=read_requests, args=(requests,), daemon=True).start()
    code = serve(requests, protocol.Replies(REPLY_DESCRIPTOR))
    sys.stderr.flush()
    os._exit(code)  # TensorFlow's own shutdown can hang and has nothing of ours to save


if __name__ == "__main__":
    main()
