"""One evaluation set-up: built once, then asked for one checkpoint after another."""

import functools
import itertools
import time

from object_detection.inputs import HASH_KEY

from evaluators import coco, device, fingerprint
from evaluators.clock import Clock, throttled
from evaluators.latency import Stopwatch, first_batches, wanted_batches
from evaluators.memory import peak_memory_bytes
from evaluators.od_api import batch_norm, parts, plugins, randomness, record_checks
from evaluators.od_api.dataset import EvalSet
from evaluators.od_api.declared import LATENCY, declare
from evaluators.od_api.fingerprint import fingerprint_parts
from evaluators.od_api.image_names import ImageNames
from evaluators.od_api.metrics import Metrics, MetricSets
from evaluators.od_api.model import Model
from evaluators.od_api.passes import Passes, passes_at_once
from evaluators.od_api.pipeline import Pipeline
from evaluators.od_api.proof import Batching
from evaluators.od_api.visualize import Visualizer
from evaluators.pace import PACE
from evaluators.protocol import Category, CategoryMetric, Failure, Ready, Refusal, finite
from evaluators.snapshot import Snapshot
from evaluators.soundness import check_finite


class Evaluation:
    """Everything that stays the same between two checkpoints: model, eval set, fingerprint.

    Args:
        request: fields and options of `start` in one dict (`protocol.Start.set_up`).
        versions: library versions by name.
        snapshot: the Snapshot of the run's files, None for none.
        begin: called with the name of each part of the work as it begins.
    """

    def __init__(self, request, versions, snapshot=None, begin=lambda phase: None):
        began = time.perf_counter()
        self._snapshot = snapshot or Snapshot()
        self._device = device.configure_devices(request)
        # After the devices: TensorFlow refuses to configure them once a plugin has used it.
        self._plugins = plugins.load(request.get("metric_plugins") or (), self._snapshot)
        self._pipeline = Pipeline(request, self._snapshot)
        self._backend = coco.choose_backend(request.get("coco_backend"))
        self._replicates = request.get("replicates")
        begin("checking the eval records")
        # Which costs little beside building the model.
        tally = record_checks.require_sound(self._pipeline)
        self._naming = ImageNames(tally.source_ids).of
        self._files = fingerprint.FileStates(
            [*self._pipeline.record_files, self._pipeline.eval_input.label_map_path]
        )
        self._parts = fingerprint_parts(self._pipeline, versions)
        self._parts["exact_coco_backend"] = self._backend in coco.EXACT_BACKENDS
        numbers = device.numbers_of_device()
        if numbers:  # on the CPU nothing is added: fingerprints of before stay valid
            self._parts["device"] = numbers
        if self._plugins:
            self._parts["metric_plugins"] = {p.name: p.identity for p in self._plugins}
        begin("building the model")
        self._model = Model(self._pipeline)
        begin("reading the images of {} eval records".format(tally.records))
        self._eval_set = EvalSet(
            self._pipeline,
            self._model.network,
            request.get("cache_bytes"),
            request.get("cache_on_disk", True),
        )
        if self._eval_set.numbered:
            self._parts["numbered_images"] = self._eval_set.numbered
        begin("tracing the model")
        self._model.trace(self._eval_set.shapes)
        if request.get("check"):
            self._model.require_fit(request["check"])
        at_once = passes_at_once(self._device, request.get("threads"))
        self._passes = Passes(at_once)
        self._batching = Batching(self._model, self._eval_set, self._passes)
        self._sets = MetricSets(
            self._pipeline, self._model.class_agnostic, self._backend, self._plugins
        )
        self._sets.add_ground_truth(self._eval_set)
        begin("trying the model on a batch")
        self._metric_names = self._dry_run(request.get("device_shared"))
        wanted = request.get("visualizations")
        if wanted is None:
            wanted = self._pipeline.configs["eval_config"].num_visualizations
        self._visualizer = Visualizer(
            *(self._pipeline, self._eval_set, self._sets, int(wanted)),
            names=self._naming,
            parent=request.get("artefacts_dir"),
        )
        self._build_seconds = time.perf_counter() - began

    def describe(self):
        """Returns the `Ready` message."""
        unmeasured = self._pipeline.unmeasured
        return Ready(
            fingerprint=fingerprint.digest(self._parts),
            fingerprint_parts=self._parts,
            images=self._eval_set.images,
            metrics=declare(self._metric_names, self._random_metrics),
            device=self._device,
            categories=[Category(int(c["id"]), str(c["name"])) for c in self._sets.categories],
            taken=self._snapshot.taken,
            warnings=[self._snapshot.named(text) for text in self._pipeline.warnings],
            notes=self._batching.notes,
            details={
                "eval_input": self._pipeline.eval_input_name,
                # What the OD API names its folder after: empty where the input has no name.
                "eval_name": self._pipeline.eval_input.name,
                "own_metrics": sorted(self._own_metrics),
                "metrics_sets": self._pipeline.metrics_sets,
                "ground_truth": self._sets.truths[0].describe() if self._sets.truths else None,
                "batches": self._batching.describe(),
                "build_seconds": self._build_seconds,
                "coco_backend": self._backend,
                "eval_set_kept": self._eval_set.kept,
                "deterministic": self._deterministic,
                "unmeasured": unmeasured and self._snapshot.named(unmeasured),
            },
        )

    def forward(self, prefix, on_progress, others=()):
        """Restores one checkpoint and runs the eval set through it.

        Args:
            prefix: the checkpoint's prefix.
            on_progress: called with (images done, images in all), at most twice a second.
            others: for each part of the eval set but the first a function that waits for another
                worker's file of it, and returns its path, None where that does not come.

        Returns:
            A function that times the model. It is to be called in this thread, before the next
            checkpoint and when nothing else of ours runs, and returns a second function: that
            computes the metrics and returns the fields of the `result` reply, and may run in
            another thread while the next checkpoint is being run.

        Raises:
            Failure: there is no true score to give; the functions returned raise it too.
        """
        total = self._eval_set.images
        report = throttled(on_progress, total)
        clock = Clock()
        doubt = self._begin(prefix, clock, report)
        step = self._model.global_step
        shown = []
        metrics = self._run(others, clock, report, shown)
        if metrics.images != total:
            message = "{} of {} images were evaluated".format(metrics.images, total)
            raise Failure("incomplete", message, permanent=False)

        def time_it():
            with clock.measure("latency"):
                latency = self._stopwatch.measure()
            cost = {**latency, "images_per_second": clock.images_per_second}
            return lambda: self._result(step, metrics, clock, cost, shown, doubt)

        return time_it

    def _begin(self, prefix, clock, report):
        """Restores a checkpoint; returns a sentence where it goes through image by image now."""
        self._files.require_unchanged()
        report(0)
        with clock.measure("restore"):
            self._model.restore(prefix)
        with clock.measure("forward"):
            return self._batching.confirm()

    def write_part(self, prefix, part, on_progress):
        """Restores one checkpoint, runs a part of the eval set, and writes what was found.

        Args:
            prefix: the checkpoint's prefix.
            part: the `protocol.Part` that asks for it.
            on_progress: called with (images done, images of the whole set).

        Returns:
            The fields of `PartWritten` but its id.
        """
        clock, images = Clock(), [0]
        report = throttled(on_progress, self._eval_set.images)
        doubt = self._begin(prefix, clock, report)

        def take(batch, one):
            writer.add(*one)
            images[0] += len(batch[0][HASH_KEY])
            report(images[0])

        first, end = parts.bounds(self._eval_set.batches, part.index, part.of)
        with parts.Writer(part.path) as writer:
            self._pass(itertools.islice(iter(self._eval_set), first, end), clock, take)
        return {"images": images[0], "warnings": [doubt] if doubt else []}

    def recompute_batch_norm(self, prefix, images, on_progress):
        """Computes the statistics of batch normalisation anew, see `batch_norm.recompute`."""
        self._model.restore(prefix)
        return batch_norm.recompute(self._model, self._pipeline.configs, images, on_progress)

    def evaluate(self, prefix, on_progress):
        """Scores one checkpoint and returns the fields of the `result` reply."""
        return self.forward(prefix, on_progress)()()

    def _result(self, step, metrics, clock, cost, shown, doubt):
        with clock.measure("metrics"):
            values, by_category = metrics.compute()
        check_finite(values, lambda name: name.startswith("Loss/"))
        with clock.measure("metrics"):
            # Last, with arrays of their own: whatever a plugin does, these values stand.
            custom, plugin_warnings = metrics.compute_plugins()
        with clock.measure("draw"):
            drawn, complaint = self._visualizer.draw(shown)
        values[LATENCY] = cost[LATENCY]
        return {
            "global_step": step,
            "images": metrics.images,
            "metrics": {**{name: finite(value) for name, value in values.items()}, **custom},
            "warnings": [*plugin_warnings, *filter(None, (complaint, doubt))],
            "artefacts": drawn,
            "category_metrics": [
                CategoryMetric(m["name"], m["category"], finite(m["value"])) for m in by_category
            ],
            "timings": clock.timings(),
            "cost": cost,
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_gpu_memory_bytes": device.peak_gpu_memory_bytes(),
            "model_variables": self._model.variable_count,
            "replicates": self._resampler(metrics.to_resample()),
        }

    def _resampler(self, measured):
        """Returns what computes the replicates; of the first evaluation it names the images too."""
        naming, self._naming = self._naming, None
        return coco.resampler(self._replicates, measured, naming)

    def _run(self, others, clock, report, shown):
        """Returns the metrics; the detections to draw are added to `shown`."""
        metrics = Metrics(self._sets)

        def take(batch, found):
            before = metrics.images
            if self._visualizer.wants(before):
                shown.append((found[1], *batch))
            with clock.measure("metrics"):
                metrics.add(*found, *batch)
            report(metrics.images)

        def take_own(batch, found):
            before = metrics.images
            take(batch, found)
            clock.count(metrics.images - before)

        iterator, of = iter(self._eval_set), 1 + len(others)
        for index in range(of):
            first, end = parts.bounds(self._eval_set.batches, index, of)
            batches = itertools.islice(iterator, end - first)
            with clock.measure("input"):
                path = others[index - 1]() if index else None
            # What is read first of the two: of what cannot be read no batch is missing then.
            for found in parts.read(path, end - first):
                take(next(batches), found)
            self._pass(batches, clock, take_own)
        return metrics

    def _pass(self, batches, clock, take):
        """Gives batches and what the model finds in them to `take`."""
        forward = PACE.paced(self._batching.forward)
        self._passes.run(forward, self._batching.groups(batches), clock, take)

    def _dry_run(self, device_shared):
        """Returns the names of the metrics, from one batch through the untrained model."""
        batch = self._eval_set.first_with_boxes()
        found = self._run_twice(batch, device_shared)
        metrics = Metrics(self._sets)
        try:
            metrics.add(*found, *batch)
            names = set(metrics.compute()[0])
        except KeyError as error:
            raise Refusal(
                "bad_pipeline_config",
                "metrics_set ({}) needs {}, which the model or the eval records do not give".format(
                    ", ".join(self._pipeline.metrics_sets), error
                ),
                "choose a metrics_set that fits the model and its records",
            ) from error
        plugins = self._plugin_names(names | {LATENCY})
        self._own_metrics = {LATENCY, *plugins}
        drawn, losses = self._model.random_outputs, found[0].keys()
        computed = set() if drawn <= losses else (names | plugins) - losses
        self._random_metrics = sorted((names & drawn) | computed)
        return sorted(names | self._own_metrics)

    def _run_twice(self, batch, device_shared):
        """Returns what the model finds, and sees whether this device finds the same again."""
        found = self._model.forward(*batch)
        began = time.perf_counter()
        again = self._model.forward(*batch)
        seconds = time.perf_counter() - began
        passes = [
            (functools.partial(self._model.forward, features, labels), images)
            for features, labels, images in first_batches(self._eval_set, wanted_batches(seconds))
        ]
        self._stopwatch = Stopwatch(passes, self._device == "cpu", device_shared)
        differing = randomness.differing(found, again) - self._model.random_outputs
        self._deterministic = not differing
        if differing:
            self._pipeline.warnings.append(randomness.UNSTEADY.format(", ".join(sorted(differing))))
        self._batching.settle(self._pipeline, found, seconds)
        return found

    def _plugin_names(self, taken):
        if self._plugins:
            self._sets.plugin_truths.try_out()
        names = {name for plugin in self._plugins for name in plugin.metric_names}
        if names & taken:
            raise Refusal(
                "bad_metric_plugin",
                "metric_plugin gives {}, which the evaluation has".format(*sorted(names & taken)),
                "metrics are named after their function or entry point: rename it",
            )
        return names
