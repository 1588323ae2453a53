"""Health: whether the daemon is alive and makes progress, and whether it does its work.

`/healthz` fails when a restart would help: the loop or a worker is stuck. `/readyz` fails when
checkpoints cannot be scored now, for whatever reason. Both are answered from memory alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import msgspec

from watcher.heartbeat import Heartbeat, stuck
from watcher.service.http import Answer


class Health:
    """The last turn of the loop, and what follows from it.

    Attributes:
        heartbeat: The last turn; before the loop begins, one that it need not follow.
    """

    def __init__(
        self, patience_seconds: float, *, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._patience = patience_seconds
        self._steady = steady
        self.heartbeat = Heartbeat(turned=steady(), due=math.inf)

    def begin(self) -> None:
        """Expect the loop to turn from now on."""
        steady = self._steady()
        self.heartbeat = Heartbeat(turned=steady, due=steady)

    def show(self, heartbeat: Heartbeat) -> None:
        """Take the loop's latest turn."""
        self.heartbeat = heartbeat

    def stuck(self) -> str | None:
        """Say why there is no progress, None when there is."""
        return stuck(self.heartbeat, self._steady(), self._patience)

    def unready(self) -> str | None:
        """Say why checkpoints cannot be scored now, None when they can."""
        heartbeat = self.heartbeat
        if heartbeat.ready:
            return self.stuck()
        if heartbeat.failure or not heartbeat.status:
            return heartbeat.failure or "starting"
        return heartbeat.status.get("held_back") or f"the worker is {heartbeat.status['worker']}"

    def healthz(self, _accept: str = "") -> Answer:
        """Answer `/healthz`: 200 while there is progress, else 503 and why."""
        return self._answer(self.stuck(), {})

    def readyz(self, _accept: str = "") -> Answer:
        """Answer `/readyz`: 200 while checkpoints are scored as they come, else 503 and why."""
        return self._answer(self.unready(), {"degraded": self.heartbeat.degraded})

    def _answer(self, reason: str | None, more: dict[str, Any]) -> Answer:
        turned = round(self._steady() - self.heartbeat.turned, 1)
        said = {"ok": reason is None, "reason": reason, "seconds_since_turn": turned, **more}
        return Answer(
            200 if reason is None else 503, "application/json", msgspec.json.encode(said) + b"\n"
        )
