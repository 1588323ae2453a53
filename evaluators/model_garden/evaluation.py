"""One evaluation set-up: built once, then asked for one checkpoint after another."""

import itertools
import pathlib
import tempfile
import time

import gin
import numpy as np

from evaluators import coco, device, fingerprint
from evaluators.clock import Clock, throttled
from evaluators.latency import BATCH_BYTES, MOST_BATCHES, Stopwatch
from evaluators.memory import peak_memory_bytes
from evaluators.model_garden.data import EvalSet
from evaluators.model_garden.declared import LATENCY, declare, primary
from evaluators.model_garden.experiment import Experiment
from evaluators.model_garden.identity import identity, text_sha256
from evaluators.model_garden.metrics import DeferredCoco
from evaluators.model_garden.trainer import BUILD_ERRORS, Model, cannot_build
from evaluators.pace import PACE
from evaluators.protocol import Category, CategoryMetric, Failure, Ready, finite
from evaluators.soundness import check_finite

EVAL_NAME = "validation"
# Of the time of an evaluation, for timing the model; and of its batches.
LATENCY_SHARE = 0.1


class Evaluation:
    """Everything that stays the same between two checkpoints: model, eval set, fingerprint.

    Args:
        request: fields and options of `start` in one dict (`protocol.Start.set_up`).
        versions: library versions by name.
        snapshot: the Snapshot of the run's files.
        begin: called with the name of each part of the work as it begins.
    """

    def __init__(self, request, versions, snapshot, begin=lambda phase: None):
        began = time.perf_counter()
        self._snapshot = snapshot
        self._device = device.configure_devices(request)
        begin("reading the parameters")
        self._experiment = Experiment(request, snapshot, self._device != "cpu")
        self._parts = identity(self._experiment, versions)
        self._backend = coco.choose_backend(request.get("coco_backend"))
        self._replicates = request.get("replicates")
        self._naming = lambda identities: [str(identity) for identity in identities]
        self._parts["exact_coco_backend"] = self._backend in coco.EXACT_BACKENDS
        self._files = fingerprint.FileStates(self._experiment.files)
        begin("reading the eval set")
        scratch = pathlib.Path(tempfile.mkdtemp(prefix="model-garden-"))
        self._model = Model(self._experiment, scratch)
        self._eval_set = EvalSet(self._experiment, self._model.task, request.get("cache_bytes"))
        begin("building the model")
        self._model.build(self._eval_set.dataset)
        # What was used, be it said in a file or by default: the trainer writes that file late.
        self._parts["gin"] = text_sha256(gin.operative_config_str())
        if request.get("check"):
            self._model.require_fit(request["check"])
        self._coco = DeferredCoco(self._model.task, self._backend)
        begin("trying the model on a batch")
        self._metric_names = self._dry_run()
        self._stopwatch = self._make_stopwatch(request.get("device_shared"))
        self._build_seconds = time.perf_counter() - began

    def describe(self):
        """Returns the `Ready` message."""
        params = self._experiment.params
        metric, mode = primary(self._metric_names, params)
        return Ready(
            fingerprint=fingerprint.digest(self._parts),
            fingerprint_parts=self._parts,
            images=self._eval_set.images,
            metrics=declare(self._metric_names, params, self._random),
            device=self._device,
            categories=self._categories(),
            taken=self._snapshot.taken,
            warnings=[self._snapshot.named(text) for text in self._experiment.warnings],
            details={
                "experiment": self._experiment.name,
                "primary_metric": metric,
                "primary_mode": mode,
                "eval_name": EVAL_NAME,
                "coco_backend": self._backend if self._coco.is_there else None,
                "own_metrics": [LATENCY],
                "deterministic": not self._random,
                "build_seconds": self._build_seconds,
                "eval_set_kept": self._eval_set.kept,
                "records": self._eval_set.records,
                "leaves_empty_tiles_out": self._model.leaves_empty_tiles_out,
            },
        )

    def forward(self, prefix, on_progress):
        """Restores one checkpoint and runs the eval set through it.

        Args:
            prefix: the checkpoint's prefix.
            on_progress: called with (images done, images in all), at most twice a second.

        Returns:
            A function that times the model. It is to be called in this thread, before the next
            checkpoint and when nothing else of ours runs, and returns a second function: that
            computes the metrics and returns the fields of the `result` reply, and may run in
            another thread while the next checkpoint is being run.

        Raises:
            Failure: there is no true score to give; the functions returned raise it too.
        """
        self._files.require_unchanged()
        report = throttled(on_progress, self._eval_set.images)
        report(0)
        clock = Clock()
        with clock.measure("restore"):
            self._model.restore(prefix)
        step = self._model.global_step
        with clock.measure("forward"):
            values = _scalars(self._whole_pass(clock, report))
        by_category = self._ious()
        compute = self._coco.taken()

        def time_it():
            with clock.measure("latency"):
                latency = self._stopwatch.measure(LATENCY_SHARE * clock.seconds("forward"))
            self._model.forget()
            cost = {**latency, "images_per_second": clock.images_per_second}
            return lambda: self._result(step, values, by_category, compute, clock, cost)

        return time_it

    def _whole_pass(self, clock, report):
        """Runs the eval set through the model and returns what the Trainer gives.

        Raises:
            Failure: not all of its images came through.
        """
        self._model.forget()  # what an evaluation that was given up has left
        done, total = 0, self._eval_set.images

        def on_step(images):
            nonlocal done
            done += images
            clock.count(images)
            report(done)
            PACE.take()

        PACE.begin()
        logs = self._model.evaluate(on_step)
        if done != total:
            message = "{} of {} images were evaluated".format(done, total)
            raise Failure("incomplete", message, permanent=False)
        return logs

    def _result(self, step, values, by_category, compute, clock, cost):
        with clock.measure("metrics"):
            found, coco_by_category, measured = compute()
        values = {**values, **_scalars(found)}
        metric, _ = primary(self._metric_names, self._experiment.params)
        check_finite(values, lambda name: "loss" in name or name == metric)
        values[LATENCY] = cost[LATENCY]
        return {
            "global_step": step,
            "images": self._eval_set.images,
            "metrics": {
                name: None if value is None else finite(value) for name, value in values.items()
            },
            "category_metrics": [
                CategoryMetric(name, category, finite(value))
                for name, category, value in itertools.chain(by_category, coco_by_category)
            ],
            "timings": clock.timings(),
            "cost": cost,
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_gpu_memory_bytes": device.peak_gpu_memory_bytes(),
            "model_variables": self._model.variable_count,
            "replicates": self._resampler(measured),
        }

    def _resampler(self, measured):
        """Returns what computes the replicates; of the first evaluation it names the images too."""
        naming, self._naming = self._naming, None
        return coco.resampler(self._replicates, measured, naming)

    def _dry_run(self):
        """Returns the names of the metrics, from one batch through the untrained model.

        It goes through twice, to see whether this device finds the same again.
        """
        try:
            found, again = self._one_batch(), self._one_batch()
        except BUILD_ERRORS as error:
            raise cannot_build(self._experiment, error) from error
        self._random = {name for name in found if repr(found[name]) != repr(again[name])}
        if self._random:
            self._experiment.warnings.append(
                "one batch run twice gave different {}: two evaluations of one checkpoint may"
                " differ a little".format(", ".join(sorted(self._random)))
            )
        return sorted({*found, LATENCY})

    def _one_batch(self):
        logs = self._model.evaluate(lambda images: None, steps=1)
        return {**_scalars(logs), **_scalars(self._coco.taken()()[0])}

    def _make_stopwatch(self, device_shared):
        """Returns a Stopwatch of the evaluation's own step, over the first batches."""
        eval_set = self._eval_set
        fit = max(1, BATCH_BYTES // max(1, eval_set.batch_bytes))
        part = max(1, int(LATENCY_SHARE * len(eval_set.batch_sizes)))
        count = min(MOST_BATCHES, eval_set.alike, fit, part)
        run = self._model.single_step(eval_set.dataset.take(count).cache())
        passes = [(run, eval_set.batch_sizes[0])] * count
        return Stopwatch(passes, self._device == "cpu", device_shared)

    def _ious(self):
        """Returns (metric, category, value) of each class where the task measures pixels."""
        metric = getattr(self._model.task, "iou_metric", None)
        if metric is None:
            return []
        values = np.asarray(metric.result()).ravel()
        return [("iou", category, float(value)) for category, value in enumerate(values)]

    def _categories(self):
        """Returns the categories that results name; None where the task has none."""
        first = 0 if getattr(self._model.task, "iou_metric", None) is not None else 1
        if first and not hasattr(self._model.task, "coco_metric"):
            return None
        names = self._experiment.category_names()
        count = getattr(self._experiment.params.task.model, "num_classes", 0)
        ids = sorted({*range(first, count), *names, *self._eval_set.category_ids})
        return [Category(number, names.get(number, str(number))) for number in ids]


def _scalars(logs, before=""):
    """Returns {metric: float} of what the Trainer gives, without pictures and the like.

    A metric of several numbers, as YOLO's losses of each level are, has names with a slash.
    """
    found = {}
    for name, value in logs.items():
        if isinstance(value, dict):
            found.update(_scalars(value, "{}{}/".format(before, name)))
        elif np.ndim(value) == 0:
            found[before + name] = float(value)
    return found
