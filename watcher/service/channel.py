"""Channel: one way to tell others, in a thread of its own.

A channel that fails or hangs holds up neither the loop nor another channel. It tries a notice a few
times; what is news by then is told with it, and after that it is given up.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import msgspec
import structlog

from watcher.service.notices import Notice, Situation, Told, news

_log = structlog.get_logger(__name__)

_ATTEMPTS = 4
_RETRY_SECONDS = 5.0
_LOOK_SECONDS = 1.0

Deliver = Callable[[Notice, Callable[[], bool]], str | None]
"""Delivers a notice unless the second argument says to give up; returns why it could not."""


class Channel(threading.Thread):
    """Tells what is new since it was told last, whenever it is woken.

    Attributes:
        name: `apprise` or `command`, a label of the metrics.
        key: Identity of the channel in the file of what was told.
        counts: Outcome (`sent`, `failed` attempts, `dropped`) to number.
    """

    def __init__(
        self,
        name: str,
        key: str,
        deliver: Deliver,
        told: Told,
        look: Callable[[Told], Situation],
        keep: Callable[[str, Told], None],
        *,
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        """Prepare it; `start` begins.

        Args:
            name: `apprise` or `command`.
            key: Identity of the channel in the file of what was told.
            deliver: Delivers one notice.
            told: What it was told before.
            look: Returns how the run stands, beside what was told.
            keep: Keeps what was told, by `key`.
            retry_seconds: First delay after a failure; it doubles.
        """
        super().__init__(name=name, daemon=True)
        self.key = key
        self.counts: Counter[str] = Counter(sent=0, failed=0, dropped=0)
        self._deliver, self._told, self._look, self._keep = deliver, told, look, keep
        self._retry_seconds = retry_seconds
        self._wake, self._closing = threading.Event(), threading.Event()
        self._given_up = threading.Event()
        self._attempts, self._retry_at = 0, 0.0
        self._last: Notice | None = None
        self._complained = False

    def wake(self) -> None:
        """Make it look; returns at once."""
        self._wake.set()

    def close(self, last: Notice | None) -> None:
        """Make it look a last time, tell `last`, and end; returns at once."""
        self._last = last
        self._closing.set()
        self._wake.set()

    def give_up(self) -> None:
        """Make it leave what it is delivering; returns at once."""
        self._given_up.set()

    def run(self) -> None:
        """Look whenever it is woken, or a failed notice is due again, until it is closed."""
        while not self._closing.is_set():
            waiting = self._retry_at - time.monotonic() if self._attempts else None
            self._wake.wait(None if waiting is None else max(waiting, 0.0))
            self._wake.clear()
            if not self._closing.is_set() and time.monotonic() >= self._retry_at:
                self._tell_news()
            self._closing.wait(_LOOK_SECONDS)
        self._tell_news()
        if self._last:
            self._tell(self._last)

    def _tell_news(self) -> None:
        for notice, told in news(self._told, self._look(self._told)):
            if notice and not self._tell(notice):
                return  # in order: the others wait for this one
            # An event that is no failure is not worth a write: it is only looked at again.
            changed = notice or msgspec.structs.replace(told, event=self._told.event) != self._told
            self._told = told
            if changed:
                self._keep(self.key, told)

    def _tell(self, notice: Notice) -> bool:
        """Deliver a notice; True when it was delivered, or failed so often that it is dropped."""
        reason = self._deliver(notice, self._given_up.is_set)
        if reason is None:
            if self._complained:
                _log.info("notifications go on", channel=self.name)
            self._complained, self._attempts = False, 0
            self.counts["sent"] += 1
            return True
        self.counts["failed"] += 1
        if not self._complained:
            self._complained = True
            _log.warning("notification failed", channel=self.name, about=notice.title, why=reason)
        self._attempts += 1
        if self._attempts >= _ATTEMPTS:
            self._attempts = 0
            self.counts["dropped"] += 1
            return True
        self._retry_at = time.monotonic() + self._retry_seconds * 2 ** (self._attempts - 1)
        return False
