"""The leases that workers hold: how long each lasts, and what goes back into the queue."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterable

from watcher.config.carrier import LocalSettings
from watcher.evaluation.averages import AverageWriting
from watcher.evaluation.events import Evaluated, Progressed, Resampled, Unusable, WorkerEvent
from watcher.evaluation.machines import Machines
from watcher.evaluation.peace import SLOWER
from watcher.evaluation.shards import Shards
from watcher.store import LeaseLost, Store
from watcher.types import Lease

_RENEW_SECONDS = 20.0
_LEASE_MARGIN_SECONDS = 60.0


class GivenOut:
    """What the workers were given, from the queue and beside it.

    Attributes:
        seconds: How long a lease lasts that nobody renews.
        averages: The averages to be written.
        machines: Which workers may evaluate, by the machine that they run on.
        trials: Tokens of what is evaluated only to see whether a device works.
    """

    def __init__(
        self,
        store: Store,
        carrier: LocalSettings,
        averages: AverageWriting,
        machines: Machines,
        shards: Shards,
    ) -> None:
        self._queue = store.queue
        self.averages, self.machines, self._shards = averages, machines, shards
        self.trials: set[str] = set()
        # The supervisor gives a silent worker up before its lease runs out.
        slower = 1 if carrier.peace == "off" else SLOWER
        self.seconds = slower * carrier.stall_timeout + _LEASE_MARGIN_SECONDS
        self._renewed: dict[str, float] = {}
        self._returning: deque[Lease] = deque()

    def began(self, lease: Lease, steady: float) -> None:
        """Note when a lease of the queue was taken."""
        self._renewed[lease.token] = steady

    def renew(self, lease: Lease, now: float, steady: float) -> None:
        """Let a lease last on, now and then; its worker works.

        Raises:
            LeaseLost: it had run out.
        """
        if steady - self._renewed.get(lease.token, -math.inf) > _RENEW_SECONDS:
            self._renewed[lease.token] = steady
            self._queue.renew(lease, now, self.seconds)

    def keep(self, held: Iterable[Lease]) -> None:
        """Forget the times of all leases but these."""
        tokens = {lease.token for lease in held}
        self._renewed = {token: at for token, at in self._renewed.items() if token in tokens}

    def take_aside(self, event: WorkerEvent, now: float) -> bool:
        """Take what is said of anything but a checkpoint's turn; False for any other event."""
        match event:
            case Progressed(lease) | Evaluated(lease) | Resampled(lease) | Unusable(lease) if (
                lease.token in self.trials
            ):
                return True
        return self.averages.take(event, now) or self.machines.take(event, now)

    def give_back(self, leases: Iterable[Lease], now: float) -> None:
        """Return what workers did not end, to no fault of its own, to where it came from.

        Raises:
            StoreError: the database cannot be written; the next call goes on with what is left.
        """
        self._returning += (one for one in leases if not self._shards.drop(one))
        while self._returning:
            lease = self._returning[0]
            if not (self.averages.give_back(lease) or self.machines.give_back(lease)):
                with contextlib.suppress(LeaseLost):  # it expired, and is back already
                    self._queue.give_back(lease, now)
            self._returning.popleft()
