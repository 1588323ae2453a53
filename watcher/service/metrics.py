"""Metrics: a run in Prometheus' text format, made from the last turn and one look at the database.

Needs prometheus-client, which is imported only here. Names follow prometheus.io/docs/practices:
base units, `_total` for counters. What is summed over evaluations is read from the database, so it
goes on counting where a restart left off; what concerns workers counts from the daemon's start.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from watcher import __version__
from watcher.config.ranking import RankingSettings
from watcher.config.retention import RetentionSettings
from watcher.config.run import RunSettings
from watcher.errors import StoreError
from watcher.heartbeat import DEGRADATIONS, Heartbeat
from watcher.service.health import Health
from watcher.service.http import Answer
from watcher.store.database_file import DATABASE_NAME
from watcher.store.facts import FactReader, Facts, Totals, unix

_PREFIX = "checkpoint_watcher_"
_STATES = (
    *("pending", "leased", "scored", "untrained"),
    *("corrupt", "skipped", "failed", "missed"),
)
_HELP = {
    "run": "What is watched, and how.",
    "progressing": "1 while the loop and the worker come further.",
    "ready": "1 while checkpoints can be scored.",
    "degraded": "1 for what does not work as it should; the reason is in /readyz.",
    "worker_restarts": "Workers started in place of another since the daemon was.",
    "worker_failures": "Workers that died, hung or spoke nonsense since the daemon started.",
    "evaluation_images": "Images of the running evaluation: all, and those done. 0 when none runs.",
    "patience_left": "What may still pass without improvement before the run stops.",
    "early_stop": "1 when training should stop.",
    "database_readable": "Whether /metrics can read the database.",
    "checkpoints": "Checkpoints ever seen, by the state they are in.",
    "queue_length": "Checkpoints that have no score yet.",
    "lag_steps": "Steps from the checkpoint evaluated last to the newest without a score.",
    "lag_seconds": "How long the oldest checkpoint without a score has been waiting.",
    "pins": "Checkpoints that are pinned.",
    "pinned_bytes": "Size of the pinned checkpoints.",
    "images_per_second": "Images that a worker measures in a second now, by its device.",
    "host_reached": "Whether a device of another host is reached.",
    "host_bytes": "Bytes that went to a device of another host, or of files came from there, in"
    " whole megabytes.",
    "answers_refused": "Answers that came when their lease was lost, since the daemon started.",
    "waiting_bytes": "Size of those without a score.",
    "last_score": "Score recorded last.",
    "last_step": "Its global step.",
    "last_score_timestamp_seconds": "When it was recorded.",
    "best_score": "Score of the best checkpoint.",
    "best_step": "Its global step.",
    "evaluations": "Evaluations recorded.",
    "evaluation_seconds": "Seconds that evaluations took, by phase.",
    "save_to_score_seconds": "From noticing a checkpoint, which is at once while the daemon runs,"
    " to its score.",
    "max_pinned_bytes": "Size that waiting checkpoints may have together.",
    "disk_available_bytes": "Free space where the pins and the database are.",
    "notifications": "Notifications since the daemon started, by channel and outcome.",
}
_LOOK_SECONDS = 1.0
_WAIT_SECONDS = 2.0

Sent = Callable[[], Mapping[tuple[str, str], int]]
"""Returns how many notifications there were: (channel, outcome) to number."""


class Metrics:
    """What `/metrics` answers. Any thread may ask; one at a time looks at the database."""

    def __init__(self, collector: RunCollector) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(collector)
        ProcessCollector(registry=self._registry)
        self._lock = threading.Lock()

    def __call__(self, accept: str) -> Answer:
        """Answer `/metrics`; 503 while another request still waits for the disk."""
        if not self._lock.acquire(timeout=_WAIT_SECONDS):
            return Answer(503, "text/plain; charset=utf-8", b"busy: the disk does not answer\n")
        try:
            encode, content_type = choose_encoder(accept)
            return Answer(200, content_type, encode(self._registry))
        finally:
            self._lock.release()


class RunCollector(Collector):
    """Makes the metrics of one run; each has the label `run`."""

    def __init__(
        self,
        run: RunSettings,
        ranking: RankingSettings,
        retention: RetentionSettings,
        health: Health,
        sent: Sent = dict,
    ) -> None:
        self._run, self._health, self._sent = run.name, health, sent
        self._about = {"metric": ranking.metric, "mode": ranking.better, "version": __version__}
        self._limit = retention.waiting_policy.max_bytes
        self._path = run.state_path / DATABASE_NAME
        self._totals = Totals()
        self._facts: Facts | None = None
        self._looked = -_LOOK_SECONDS

    def collect(self) -> Iterator[Metric]:
        """Yield all that can be told now; what needs the database is left out while it fails."""
        yield from self._of_presence(self._health.heartbeat)
        facts = self._look()
        yield self._gauge("database_readable", facts)
        if facts:
            yield from self._of_facts(facts)
            yield from self._of_totals(self._totals)
        yield from self._of_disk()
        if sent := self._sent():
            yield self._counter("notifications", sent, "channel", "outcome")

    def _look(self) -> Facts | None:
        """Look at the database, at most once a second however often it is asked."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return self._facts
        try:
            with FactReader(self._path) as reader:
                self._facts = reader.facts()
                reader.follow(self._totals)
        except StoreError:
            self._facts = None
        self._looked = time.monotonic()
        return self._facts

    def _gauge(self, name: str, value: Any, *labels: str) -> Metric:
        """Return a gauge: of one value, or with labels of a mapping from theirs to values."""
        return self._family(GaugeMetricFamily, name, value, labels)

    def _counter(self, name: str, value: Any, *labels: str) -> Metric:
        return self._family(CounterMetricFamily, name, value, labels)

    def _family(
        self,
        kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
        name: str,
        value: Any,
        labels: tuple[str, ...],
    ) -> Metric:
        family = kind(_PREFIX + name, _HELP[name], labels=("run", *labels))
        for key, found in value.items() if labels else [((), value)]:
            # What is no number counts as its truth, 0 or 1.
            number = found if isinstance(found, int | float) else bool(found)
            family.add_metric([self._run, *([key] if isinstance(key, str) else key)], float(number))
        return family

    def _of_presence(self, heartbeat: Heartbeat) -> Iterator[Metric]:
        status = heartbeat.status
        info = InfoMetricFamily(_PREFIX + "run", _HELP["run"], labels=("run",))
        info.add_metric([self._run], {**self._about, "device": status.get("device") or ""})
        yield info
        yield self._gauge("progressing", not self._health.stuck())
        yield self._gauge("ready", not self._health.unready())
        degraded = {what: what in heartbeat.degraded for what in DEGRADATIONS}
        yield self._gauge("degraded", degraded, "what")
        yield self._counter("worker_restarts", max(heartbeat.worker_starts - 1, 0))
        yield self._counter("worker_failures", heartbeat.worker_losses)
        images = {"done": status.get("done"), "all": status.get("total")}
        yield self._gauge("evaluation_images", images, "what")
        yield from self._of_hosts(status)
        yield self._gauge("patience_left", status.get("patience_left") or {}, "unit")
        yield self._gauge("early_stop", status.get("stop"))

    def _of_hosts(self, status: Mapping[str, Any]) -> Iterator[Metric]:
        workers = status.get("workers") or [status]
        rates = {
            str(one["on"]): one["images_per_second"]
            for one in workers
            if one.get("images_per_second") is not None
        }
        yield self._gauge("images_per_second", rates, "device")
        hosts = status.get("hosts") or ()
        named = {f"{one['host']}/{one['device']}": one for one in hosts}
        reached = {name: one["state"] == "reached" for name, one in named.items()}
        yield self._gauge("host_reached", reached, "device")
        moved = {
            (name, way): one[f"{way}_mb"] * 1_000_000
            for name, one in named.items()
            for way in ("sent", "fetched")
        }
        yield self._counter("host_bytes", moved, "device", "way")
        yield self._counter("answers_refused", status.get("answers_refused") or 0)

    def _of_facts(self, facts: Facts) -> Iterator[Metric]:
        states = {state: facts.states.get(state, 0) for state in _STATES}
        yield self._gauge("checkpoints", states, "state")
        yield self._gauge("queue_length", facts.queue_length)
        yield self._gauge("lag_steps", facts.lag_steps)
        yield self._gauge("lag_seconds", facts.lag_seconds(time.time()))
        for name in ("pins", "pinned_bytes", "waiting_bytes"):
            yield self._gauge(name, getattr(facts, name))
        if last := facts.last:
            if last["score"] is not None:
                yield self._gauge("last_score", last["score"])
            yield self._gauge("last_step", last["global_step"])
            yield self._gauge("last_score_timestamp_seconds", unix(last["evaluated_at"]))
        if facts.best:
            yield self._gauge("best_score", facts.best["score"])
            yield self._gauge("best_step", facts.best["global_step"])

    def _of_totals(self, totals: Totals) -> Iterator[Metric]:
        yield self._counter("evaluations", totals.evaluations)
        yield self._counter("evaluation_seconds", dict(sorted(totals.seconds.items())), "phase")
        name = "save_to_score_seconds"
        waited = SummaryMetricFamily(_PREFIX + name, _HELP[name], labels=("run",))
        waited.add_metric([self._run], totals.first_scores, totals.waited_seconds)
        yield waited

    def _of_disk(self) -> Iterator[Metric]:
        if self._limit is not None:
            yield self._gauge("max_pinned_bytes", self._limit)
        with contextlib.suppress(OSError):
            yield self._gauge("disk_available_bytes", shutil.disk_usage(self._path.parent).free)
