"""Metrics: a run in Prometheus' text format, made from the last turn and one look at the database.

Needs prometheus-client, which is imported only here. Names follow prometheus.io/docs/practices:
base units, `_total` for counters. What is summed over evaluations is read from the database, so it
goes on counting where a restart left off; what concerns workers counts from the daemon's start.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
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
        yield self._gauge("database_readable", "Whether /metrics can read the database.", facts)
        if facts:
            yield from self._of_facts(facts)
            yield from self._of_totals(self._totals)
        yield from self._of_disk()
        yield from self._of_notifications()

    def _look(self) -> Facts | None:
        """Look at the database, at most once a second however often it is asked."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return self._facts
        try:
            reader = FactReader(self._path)
            try:
                self._facts = reader.facts()
                reader.follow(self._totals)
            finally:
                reader.close()
        except StoreError:
            self._facts = None
        self._looked = time.monotonic()
        return self._facts

    def _gauge(self, name: str, text: str, value: Any) -> Metric:
        """Return a gauge; a value that is no number counts as its truth, 0 or 1."""
        number = value if isinstance(value, (int, float)) else bool(value)
        return self._family(GaugeMetricFamily, name, text, (), [((), float(number))])

    def _counter(self, name: str, text: str, value: float) -> Metric:
        return self._family(CounterMetricFamily, name, text, (), [((), value)])

    def _family(
        self,
        kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
        name: str,
        text: str,
        labels: tuple[str, ...],
        values: Iterable[tuple[tuple[str, ...], float]],
    ) -> Metric:
        family = kind(_PREFIX + name, text, labels=("run", *labels))
        for key, value in values:
            family.add_metric([self._run, *key], value)
        return family

    def _of_presence(self, heartbeat: Heartbeat) -> Iterator[Metric]:
        status, degraded = heartbeat.status, heartbeat.degraded
        info = InfoMetricFamily(_PREFIX + "run", "What is watched, and how.", labels=("run",))
        info.add_metric([self._run], {**self._about, "device": status.get("device") or ""})
        yield info
        yield self._gauge(
            "progressing", "1 while the loop and the worker come further.", not self._health.stuck()
        )
        yield self._gauge("ready", "1 while checkpoints can be scored.", not self._health.unready())
        yield self._family(
            GaugeMetricFamily,
            "degraded",
            "1 for what does not work as it should; the reason is in /readyz.",
            ("what",),
            [((what,), what in degraded) for what in DEGRADATIONS],
        )
        yield self._counter(
            "worker_restarts",
            "Workers started in place of another since the daemon was.",
            max(heartbeat.worker_starts - 1, 0),
        )
        yield self._counter(
            "worker_failures",
            "Workers that died, hung or spoke nonsense since the daemon started.",
            heartbeat.worker_losses,
        )
        yield self._family(
            GaugeMetricFamily,
            "evaluation_images",
            "Images of the running evaluation: all, and those done. 0 when none runs.",
            ("what",),
            [((what,), status.get(key) or 0) for what, key in (("done", "done"), ("all", "total"))],
        )
        patience = status.get("patience_left") or {}
        yield self._family(
            GaugeMetricFamily,
            "patience_left",
            "What may still pass without improvement before the run stops.",
            ("unit",),
            [((unit,), left) for unit, left in patience.items()],
        )
        yield self._gauge("early_stop", "1 when training should stop.", status.get("stop"))

    def _of_facts(self, facts: Facts) -> Iterator[Metric]:
        gauge = self._gauge
        yield self._family(
            GaugeMetricFamily,
            "checkpoints",
            "Checkpoints ever seen, by the state they are in.",
            ("state",),
            [((state,), facts.states.get(state, 0)) for state in _STATES],
        )
        yield gauge("queue_length", "Checkpoints that have no score yet.", facts.queue_length)
        yield gauge(
            "lag_steps",
            "Steps from the checkpoint evaluated last to the newest without a score.",
            facts.lag_steps,
        )
        yield gauge(
            "lag_seconds",
            "How long the oldest checkpoint without a score has been waiting.",
            facts.lag_seconds(time.time()),
        )
        yield gauge("pins", "Checkpoints that are pinned.", facts.pins)
        yield gauge("pinned_bytes", "Size of the pinned checkpoints.", facts.pinned_bytes)
        yield gauge("waiting_bytes", "Size of those without a score.", facts.waiting_bytes)
        if facts.last:
            if facts.last["score"] is not None:
                yield gauge("last_score", "Score recorded last.", facts.last["score"])
            yield gauge("last_step", "Its global step.", facts.last["global_step"])
            yield gauge(
                "last_score_timestamp_seconds",
                "When it was recorded.",
                unix(facts.last["evaluated_at"]),
            )
        if facts.best:
            yield gauge("best_score", "Score of the best checkpoint.", facts.best["score"])
            yield gauge("best_step", "Its global step.", facts.best["global_step"])

    def _of_totals(self, totals: Totals) -> Iterator[Metric]:
        yield self._counter("evaluations", "Evaluations recorded.", totals.evaluations)
        yield self._family(
            CounterMetricFamily,
            "evaluation_seconds",
            "Seconds that evaluations took, by phase.",
            ("phase",),
            [((phase,), seconds) for phase, seconds in sorted(totals.seconds.items())],
        )
        waited = SummaryMetricFamily(
            _PREFIX + "save_to_score_seconds",
            "From noticing a checkpoint, which is at once while the daemon runs, to its score.",
            labels=("run",),
        )
        waited.add_metric([self._run], totals.first_scores, totals.waited_seconds)
        yield waited

    def _of_disk(self) -> Iterator[Metric]:
        if self._limit is not None:
            text = "Size that waiting checkpoints may have together."
            yield self._gauge("max_pinned_bytes", text, self._limit)
        free = _available_bytes(self._path.parent)
        if free is not None:
            yield self._gauge(
                "disk_available_bytes", "Free space where the pins and the database are.", free
            )

    def _of_notifications(self) -> Iterator[Metric]:
        sent = self._sent()
        if sent:
            yield self._family(
                CounterMetricFamily,
                "notifications",
                "Notifications since the daemon started, by channel and outcome.",
                ("channel", "outcome"),
                sent.items(),
            )


def _available_bytes(folder: Path) -> int | None:
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize
