"""The evaluation worker: `PYTHON .../evaluators/worker.py`, one long-lived process a device.

The runtime of every kind of evaluation (`kinds.py`): it speaks the evaluator protocol
(`protocol.py`; docs/reference/protocol.md documents it) as JSON lines, requests on stdin, replies
on what was stdout when it started, and has the kind do the work. `stop` or the end of stdin ends
the process at once with code 0, also in the middle of an evaluation; a set-up that cannot be
evaluated ends it with code 3. On Linux it dies with the thread that started it. Whatever libraries
print goes to stderr. What it leaves in its temporary folder, and in the `artefacts_dir` of
`start`, is removed by whoever started it.
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
import functools  # noqa: E402
import importlib.util  # noqa: E402
import pathlib  # noqa: E402
import queue  # noqa: E402
import signal  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402

REFUSED = 3
PR_SET_PDEATHSIG = 1
WAIT_SECONDS = 0.5


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


class Others:
    """What other workers found in their parts of the eval set, as it is told."""

    def __init__(self):
        self._found = {}
        self._news = threading.Condition()

    def put(self, said):
        """Takes a `PartFound`."""
        with self._news:
            self._found[said.id, said.index] = said.path
            self._news.notify_all()

    def of(self, request, require_wanted):
        """Returns for each part of an `Evaluate` but the first what waits for it.

        Args:
            require_wanted: called again and again meanwhile; it raises where that is given up.
        """

        def wait(index):
            with self._news:
                while (request.id, index) not in self._found:
                    require_wanted()
                    self._news.wait(WAIT_SECONDS)
                return self._found[request.id, index]

        return [functools.partial(wait, index) for index in range(1, request.parts)]

    def forget(self, request):
        """Keeps nothing of an evaluation whose passes are over."""
        with self._news:
            self._found = {key: path for key, path in self._found.items() if key[0] != request.id}


def _jobs(kind):
    """Returns what a kind may be asked for; one that says nothing of it evaluates."""
    return list(getattr(kind, "JOBS", ("evaluate",)))


class Server:
    """Answers requests: metrics of one checkpoint are computed while the next is in the model."""

    def __init__(self, replies):
        self._replies = replies
        self._requests = queue.Queue()
        self._cancelled = set()
        self._others = Others()
        # The thread that computes the metrics of the checkpoint before: replies keep the order.
        self._pending = None

    def read(self):
        """Takes requests; ends the process on `stop` and at the end of stdin."""
        from evaluators import protocol

        for line in os.fdopen(REQUEST_DESCRIPTOR, "rb"):
            if not line.strip():
                continue
            try:
                request = protocol.read_request(line)
            except ValueError as error:
                request = error
            if isinstance(request, protocol.Stop):
                break
            if isinstance(request, protocol.Cancel):
                self._cancelled.add(request.id)
            elif isinstance(request, protocol.PartFound):
                self._others.put(request)
            else:
                self._requests.put(request)
        os._exit(0)

    def serve(self):
        """Answers requests until the process ends; returns an exit code when it cannot go on."""
        from evaluators import protocol

        try:
            kind = self._start(self._requests.get())
            while True:
                request = self._requests.get()
                if isinstance(request, protocol.Evaluate):
                    self._evaluate(request, kind)
                elif isinstance(request, protocol.Average) and "average" in _jobs(kind):
                    self._average(request, kind)
                elif isinstance(request, protocol.Part) and "part" in _jobs(kind):
                    self._write_part(request, kind)
                else:
                    expected = " or ".join(_jobs(kind))
                    raise protocol.Refusal(
                        "protocol", "{} is expected: {}".format(expected, request)
                    )
        except protocol.Refusal as refusal:
            self._replies.refuse(refusal, protocol.last_traceback())
        except Exception as error:
            text = "{}: {}".format(type(error).__name__, error)
            hint = "see the detail: this is a fault of the evaluator or of the training environment"
            self._replies.refuse(
                protocol.Refusal("internal", text, hint), protocol.last_traceback()
            )
        return REFUSED

    def _start(self, request):
        """Makes the kind ready for checkpoints, says so and returns it."""
        from evaluators import kinds, protocol
        from evaluators.snapshot import Snapshot

        spoken = getattr(request, "protocol", request)
        if not isinstance(request, protocol.Start) or spoken != protocol.PROTOCOL:
            raise protocol.Refusal(
                "protocol",
                "this worker speaks protocol {}, and the first request must be a start of it,"
                " not of {!r:.200}".format(protocol.PROTOCOL, spoken),
                "daemon and evaluators must come from the same installation",
            )
        if request.heartbeat_seconds:
            self._run(self._beat, request.heartbeat_seconds)
        kind = kinds.make(request.kind)

        def begin(phase):
            self._replies.send(protocol.Phase(phase))

        versions = kind.prepare(request, begin)
        self._replies.send(protocol.Hello(protocol.PROTOCOL, os.getpid(), versions))
        snapshot = Snapshot(request.snapshot)
        self._replies.named = snapshot.named
        kind.build(request, snapshot, begin)
        ready = kind.describe()
        ready.capabilities = protocol.Capabilities(overlap=True, cancel=True, jobs=_jobs(kind))
        self._replies.send(ready)
        return kind

    def _beat(self, seconds):
        from evaluators import protocol

        while True:
            time.sleep(seconds)
            self._replies.send(protocol.Heartbeat())

    def _evaluate(self, request, kind):
        """Runs one checkpoint and leaves its metrics to a thread, which sends the reply."""
        from evaluators import protocol
        from evaluators.pace import PACE

        def forward():
            PACE.rest = request.rest
            on_progress = self._progress(request)
            others = self._others.of(request, lambda: self._require_wanted(request))
            # A kind whose workers share no evaluation need not know of it.
            time_it = kind.forward(request.prefix, on_progress, *([others] if others else ()))
            self._replies.send(protocol.Free(request.id))
            return time_it

        time_it = self._attempt(forward, request)
        self._others.forget(request)
        self._wait()
        # Now nothing of ours runs, neither passes nor metrics.
        finish = time_it and self._attempt(time_it, request)
        if finish:
            self._pending = self._run(self._finish, finish, request)

    def _write_part(self, request, kind):
        from evaluators import protocol
        from evaluators.pace import PACE

        PACE.rest = request.rest
        on_progress = self._progress(request)
        fields = self._attempt(lambda: kind.write_part(request, on_progress), request, wait=False)
        if fields is not None:
            self._replies.send(protocol.PartWritten(request.id, **fields))

    def _progress(self, request):
        """Returns what tells how far a request is, and gives up one that was cancelled."""
        from evaluators import protocol

        def on_progress(done, total):
            self._require_wanted(request)
            self._replies.send(protocol.Progress(request.id, done, total))

        return on_progress

    def _require_wanted(self, request):
        from evaluators import protocol

        if request.id in self._cancelled:
            raise protocol.Failure("cancelled", "as it was asked to be", permanent=False)

    def _finish(self, finish, request):
        from evaluators import protocol

        result = self._attempt(finish, request, wait=False)
        if result is None:
            return
        resampler = result.pop("replicates", None)
        follow = resampler is not None
        self._replies.send(protocol.Result(id=request.id, replicates_follow=follow, **result))
        if follow:
            self._resample(resampler, request)

    def _resample(self, resampler, request):
        """Computes what no score waits for; where that fails the score stands without it."""
        from evaluators import protocol

        try:
            said = resampler.compute()
        except Exception:
            print(protocol.last_traceback(), file=sys.stderr, flush=True)
            said = {"scheme": "", "images": 0, "count": 0, "level": 0.0}
        self._replies.send(protocol.Replicates(id=request.id, **said))

    def _average(self, request, kind):
        """Writes an average of checkpoints, when nothing else of ours runs."""
        from evaluators import protocol

        self._wait()
        on_progress = self._progress(request)
        fields = self._attempt(lambda: kind.average(request, on_progress), request)
        if fields is not None:
            self._replies.send(protocol.Averaged(request.id, **fields))

    def _attempt(self, work, request, wait=True):
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
        if wait:
            self._wait()
        self._replies.fail(request.id, failure, detail)
        return None

    def _wait(self):
        """Waits until the checkpoint before is answered."""
        if self._pending:
            self._pending.join()
            self._pending = None

    @staticmethod
    def _run(work, *arguments):
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        thread.start()
        return thread


def main():
    """Runs the worker."""
    leave_signals_to_the_parent()
    die_with_parent()
    load_package()
    from evaluators import protocol

    server = Server(protocol.Replies(REPLY_DESCRIPTOR))
    threading.Thread(target=server.read, daemon=True).start()
    code = server.serve()
    sys.stderr.flush()
    os._exit(code)  # TensorFlow's own shutdown can hang and has nothing of ours to save


if __name__ == "__main__":
    main()
