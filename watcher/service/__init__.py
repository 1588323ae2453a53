"""What tells others of a run: health and metrics over HTTP, and notifications.

None of it can disturb the loop: each part has threads of its own, keeps the last `Heartbeat` that
the loop showed, and reads the database as any reader does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from watcher.config import Settings
from watcher.config.run import RunSettings
from watcher.config.service import ServiceSettings
from watcher.heartbeat import Heartbeat

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
    run: RunSettings,
    service: ServiceSettings,
    stack: ExitStack,
    endpoints: Endpoints | None,
) -> list[Callable[[Heartbeat], None]]:
    """Begin to tell of the loop, until `stack` is closed.

    Args:
        run: What it is called, and where it lies.
        service: What is asked for.
        stack: Ends what is started.
        endpoints: What `listen` returned.

    Returns:
        What to show each turn of the loop to.

    Raises:
        ConfigError, StoreError: the notifications that are asked for cannot be sent.
    """
    audience: list[Callable[[Heartbeat], None]] = []
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
