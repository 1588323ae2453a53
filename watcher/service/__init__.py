"""What tells others of a run: health and metrics over HTTP, notifications, best/ in a bucket.

None of it can disturb the loop: each part has threads of its own, keeps the last `Heartbeat` that
the loop showed, and reads the database as any reader does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from watcher.config import Settings
from watcher.heartbeat import Heartbeat
from watcher.store.reading import open_reader

if TYPE_CHECKING:
    from watcher.service.endpoints import Endpoints

# Imported where it is asked for: the libraries take memory that others have no use for.


def listen(settings: Settings, stack: ExitStack) -> Endpoints | None:
    """Serve what `--listen` asks for until `stack` is closed; raises ListenError if it cannot."""
    if settings.service.listen_address is None:
        return None
    from watcher.service.endpoints import Endpoints

    return stack.enter_context(Endpoints(settings))


def told_of(
    settings: Settings, stack: ExitStack, endpoints: Endpoints | None
) -> list[Callable[[Heartbeat], None]]:
    """Begin to tell of the loop, until `stack` is closed.

    Args:
        settings: What is asked for.
        stack: Ends what is started.
        endpoints: What `listen` returned.

    Returns:
        What to show each turn of the loop to.

    Raises:
        ConfigError, StoreError: what is asked for cannot be done.
    """
    run, service = settings.run, settings.service
    audience: list[Callable[[Heartbeat], None]] = []
    if place := settings.exports.published_to:
        from watcher.service.publish import Publication

        with open_reader(run.state_path) as reader:
            run_uuid = str(reader.recorded()["uuid"])
        evict_seconds = settings.retention.evict_seconds
        stack.enter_context(Publication(place, run, run_uuid, settings.source, evict_seconds))
    if service.notify or service.notify_command:
        from watcher.service.notify import Notifications

        notifications = stack.enter_context(Notifications(run, service))
        audience.append(notifications.show)
        if endpoints:
            endpoints.sent = notifications.counts
    if endpoints:
        endpoints.begin()
        audience.append(endpoints.show)
    return audience
