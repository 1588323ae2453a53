"""The worker's runtime with a kind of evaluation that needs no library: `plain_kind.py`.

A checkpoint's prefix says what becomes of it: `slow` goes on with its images until it is cancelled,
`late` has metrics that take long, `bad` and `broken` get no score. Anything else is scored; its
`parts` are the paths that were told of what others ran.
"""

import importlib.util
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGES = 3


class Plain:
    """A kind as `kinds.py` says."""

    JOBS = ("evaluate", "part")

    def prepare(self, start, begin):
        begin("importing nothing")
        return {"plain": "1"}

    def build(self, start, snapshot, begin):
        begin("building nothing")
        if start.options.get("refuse"):
            raise protocol.Refusal("unsupported", "of no use", "choose another")
        self._images = start.options.get("images", IMAGES)

    def describe(self):
        metrics = [protocol.DeclaredMetric("size", direction="min", unit="bytes", short=["s"])]
        return protocol.Ready("f", self._images, metrics, categories=[protocol.Category(1, "a")])

    def write_part(self, request, on_progress):
        on_progress(1, self._images)
        if request.prefix == "bad":
            raise protocol.Failure("not_finite", "NaN in a", permanent=True)
        pathlib.Path(request.path).write_text(f"{request.index} of {request.of}")
        return {"images": 1}

    def forward(self, prefix, on_progress, others=()):
        if prefix == "bad":
            raise protocol.Failure("not_finite", "NaN in a", permanent=True)
        if prefix == "broken":
            raise KeyError("a")
        on_progress(0, self._images)
        while prefix == "slow":
            time.sleep(0.01)
            on_progress(1, self._images)
        parts = [str(wait()) for wait in others]
        on_progress(self._images, self._images)

        def finish():
            time.sleep(0.5 if prefix == "late" else 0)
            return {"images": self._images, "metrics": {"size": 1.0}, "warnings": parts}

        return lambda: finish


if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location("worker", ROOT / "evaluators" / "worker.py")
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    worker.load_package()
    from evaluators import kinds, protocol

    sys.modules["plain_kind"] = sys.modules["__main__"]
    kinds.KINDS["plain"] = "plain_kind:Plain"
    worker.main()
