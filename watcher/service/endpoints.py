"""Endpoints: what `--listen` serves, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import structlog

from watcher.config import Settings
from watcher.presence import Presence
from watcher.service.health import Health
from watcher.service.http import Answer, HttpServer, Respond

Sent = Callable[[], Mapping[tuple[str, str], int]]

_log = structlog.get_logger(__name__)

_NO_METRICS = (
    "prometheus-client is not installed where the watcher runs:"
    " pip install 'checkpoint-watcher[metrics]'"
)


@contextmanager
def endpoints(
    settings: Settings, run: str, sent: Sent = dict
) -> Iterator[Callable[[Presence], None]]:
    """Serve /healthz, /readyz and /metrics while inside.

    Args:
        settings: With `listen` set.
        run: Name of the run, a label of the metrics.
        sent: Returns how many notifications there were, (channel, outcome) to number.

    Yields:
        What to show each turn of the loop to.

    Raises:
        ListenError: the address cannot be listened on.
    """
    assert settings.listen_address is not None
    health = Health(settings.health_seconds)
    paths: dict[str, Respond] = {
        "/healthz": health.healthz,
        "/readyz": health.readyz,
        "/metrics": _metrics(settings, run, health, sent),
    }
    with HttpServer(*settings.listen_address, paths) as server:
        _log.info("listening", url=server.url)
        yield health.show


def _metrics(settings: Settings, run: str, health: Health, sent: Sent) -> Respond:
    try:
        from watcher.service.metrics import Metrics
    except ImportError:
        _log.warning("/metrics is off", reason=_NO_METRICS)
        return lambda _: Answer(501, "text/plain; charset=utf-8", _NO_METRICS.encode() + b"\n")
    return Metrics(settings, run, health, sent)
