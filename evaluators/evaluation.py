"""One evaluation set-up: built once, then asked for one checkpoint after another."""

import math
import resource
import sys
import time

from evaluators import compat, fingerprint
from evaluators.dataset import EvalSet
from evaluators.metrics import Metrics
from evaluators.model import Model, image_hashes, prepare_eval_dict
from evaluators.pipeline import Pipeline
from evaluators.protocol import Failure, finite

PROGRESS_SECONDS = 0.5


class Evaluation:
    """Everything that stays the same between two checkpoints: model, eval set, fingerprint.

    Args:
        request: the `start` request.
        versions: library versions by name.
    """

    def __init__(self, request, versions):
        began = time.perf_counter()
        self._device = compat.configure_devices(request.get("threads"))
        self._pipeline = Pipeline(request)
        self._files = fingerprint.FileStates(
            [*self._pipeline.record_files, self._pipeline.eval_input.label_map_path]
        )
        self._parts = fingerprint.fingerprint_parts(self._pipeline, versions)
        self._model = Model(self._pipeline)
        self._eval_set = EvalSet(self._pipeline, self._model.network)
        shapes = self._eval_set.first_of_each_shape()
        self._model.trace(shapes)
        self._metric_names = sorted(self._run(shapes[:1], Clock(), lambda done: None).compute())
        self._build_seconds = time.perf_counter() - began

    def describe(self):
        """Returns the fields of the `ready` reply."""
        return {
            "fingerprint": fingerprint.digest(self._parts),
            "fingerprint_parts": self._parts,
            "images": self._eval_set.images,
            "eval_input": self._pipeline.eval_input_name,
            "metrics_sets": self._pipeline.metrics_sets,
            "metric_names": self._metric_names,
            "device": self._device,
            "categories": [
                {"id": int(c["id"]), "name": str(c["name"])} for c in self._pipeline.categories
            ],
            "build_seconds": self._build_seconds,
            "warnings": self._pipeline.warnings,
        }

    def evaluate(self, prefix, on_progress):
        """Scores one checkpoint and returns the fields of the `result` reply.

        Args:
            prefix: the checkpoint's prefix.
            on_progress: called with (images done, images in all), at most twice a second.

        Raises:
            Failure: there is no true score to give.
        """
        self._check_files()
        total = self._eval_set.images
        report = throttled(on_progress, total)
        report(0)
        clock = Clock()
        with clock.measure("restore"):
            self._model.restore(prefix)
        metrics = self._run(self._eval_set, clock, report)
        if metrics.images != total:
            message = "{} of {} images were evaluated".format(metrics.images, total)
            raise Failure("incomplete", message, permanent=False)
        with clock.measure("metrics"):
            values = metrics.compute()
        check_finite(values)
        return {
            "global_step": int(self._model.global_step.numpy()),
            "images": metrics.images,
            "metrics": {name: finite(value) for name, value in values.items()},
            "category_metrics": [],
            "timings": clock.timings(),
            "peak_memory_bytes": peak_memory_bytes(),
            "model_variables": self._model.variables,
        }

    def _run(self, batches, clock, report):
        metrics = Metrics(self._pipeline)
        for features, labels in batches:
            with clock.measure("forward"):
                losses, detections = self._model.forward(features, labels)
            with clock.measure("metrics"):
                eval_dict, agnostic = prepare_eval_dict(detections, labels, features)
                metrics.add(losses, eval_dict, agnostic, len(image_hashes(features)))
            report(metrics.images)
        return metrics

    def _check_files(self):
        changed = self._files.changed()
        if changed:
            raise Failure(
                "dataset_changed",
                "changed since the evaluator started: " + ", ".join(changed),
                permanent=False,
            )


class Clock:
    """Adds up the seconds spent in each part of an evaluation."""

    def __init__(self):
        self._began = time.perf_counter()
        self._seconds = {"restore": 0.0, "input": 0.0, "forward": 0.0, "metrics": 0.0}

    def measure(self, part):
        """Returns a context that adds its duration to `part`."""
        return _Measure(self._seconds, part)

    def timings(self):
        """Returns {PART_seconds: float}, with `total_seconds` since the clock was made."""
        found = {part + "_seconds": seconds for part, seconds in self._seconds.items()}
        found["total_seconds"] = time.perf_counter() - self._began
        return found


class _Measure:
    def __init__(self, seconds, part):
        self._seconds = seconds
        self._part = part

    def __enter__(self):
        self._began = time.perf_counter()

    def __exit__(self, *exc):
        self._seconds[self._part] += time.perf_counter() - self._began


def throttled(on_progress, total):
    """Returns a function of the images done that calls on_progress at most twice a second."""
    last = [-math.inf]

    def report(done):
        now = time.monotonic()
        if now - last[0] >= PROGRESS_SECONDS:
            last[0] = now
            on_progress(done, total)

    return report


def check_finite(metrics):
    """Refuses metrics that no sound evaluation gives.

    A category without ground truth has the AP NaN in the pascal VOC and open images sets: that is
    their word for "none". A loss has no such excuse, and nothing is ever infinite.
    """
    bad = [
        name
        for name, value in sorted(metrics.items())
        if math.isinf(value) or (math.isnan(value) and name.startswith("Loss/"))
    ]
    if bad:
        raise Failure("not_finite", "NaN or infinity in " + ", ".join(bad), permanent=True)


def peak_memory_bytes():
    """Returns the most memory this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
