"""What tells others of a run: health and metrics over HTTP, and notifications.

None of it can disturb the loop: each part has threads of its own, keeps the last `Presence` that
the loop showed, and reads the database as any reader does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

from watcher.config import Settings
from watcher.presence import Presence


def told_of(settings: Settings, run: str, stack: ExitStack) -> list[Callable[[Presence], None]]:
    """Start what the settings ask for, until `stack` is closed.

    Args:
        settings: Those of the run.
        run: Its name.
        stack: Ends what is started.

    Returns:
        What to show each turn of the loop to.

    Raises:
        ConfigError, ListenError, StoreError: what is asked for cannot be done.
    """
    audience: list[Callable[[Presence], None]] = []
    counts: Callable[[], Mapping[tuple[str, str], int]] = dict
    # Imported where it is asked for: the libraries take memory that others have no use for.
    if settings.notify or settings.notify_command:
        from watcher.service.notify import Notifications

        notifications = stack.enter_context(Notifications(settings, run))
        audience.append(notifications.show)
        counts = notifications.counts
    if settings.listen_address:
        from watcher.service.endpoints import endpoints

        audience.append(stack.enter_context(endpoints(settings, run, counts)))
    return audience
