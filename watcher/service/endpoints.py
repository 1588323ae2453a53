"""Endpoints: what `--listen` serves, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog

from watcher.config import Settings
from watcher.heartbeat import Heartbeat
from watcher.service.health import Health
from watcher.service.http import Answer, HttpServer, Respond

_log = structlog.get_logger(__name__)

_NO_METRICS = (
    "prometheus-client is not installed where the watcher runs:"
    " pip install 'checkpoint-watcher[metrics]'"
)

Sent = Callable[[], Mapping[tuple[str, str], int]]


class Endpoints(HttpServer):
    """/healthz, /readyz and /metrics of one run; a context manager.

    It may be entered before there is anything to tell: a run that waits for its MODEL_DIR is alive.

    Attributes:
        sent: Returns how many notifications there were, (channel, outcome) to number.
    """

    def __init__(self, settings: Settings) -> None:
        """Take the address.

        Args:
            settings: With `listen` set. The metrics are of four sections.

        Raises:
            ListenError: the address cannot be listened on.
        """
        service = settings.service
        assert service.listen_address is not None
        self.sent: Sent = dict
        self._health = Health(service.health_seconds)
        self._metrics = self._make_metrics(settings)
        paths: dict[str, Respond] = {
            "/healthz": self._health.healthz,
            "/readyz": self._health.readyz,
            "/metrics": self._metrics or _without_metrics,
        }
        super().__init__(*service.listen_address, paths)

    def _make_metrics(self, settings: Settings) -> Respond | None:
        try:
            from watcher.service.metrics import Metrics, RunCollector
        except ImportError:
            return None
        parts = settings.run, settings.ranking, settings.retention
        return Metrics(RunCollector(*parts, self._health, lambda: self.sent()))

    def begin(self) -> None:
        """Say where it listens, and expect the loop to turn from now on."""
        _log.info("listening", url=self.url)
        if self._metrics is None:
            _log.warning("/metrics is off", reason=_NO_METRICS)
        self._health.begin()

    def show(self, heartbeat: Heartbeat) -> None:
        """Take one turn of the loop; returns at once."""
        self._health.show(heartbeat)


def _without_metrics(_accept: str) -> Answer:
    return Answer(501, "text/plain; charset=utf-8", _NO_METRICS.encode() + b"\n")
