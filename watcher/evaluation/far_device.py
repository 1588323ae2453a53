"""A device of another host: how it is reached, and what is known of it beyond one worker's life."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from watcher.config.devices import DeviceTable
from watcher.evaluation.carriage import Kept


@dataclass(slots=True)
class FarDevice:
    """A device of another host, and what is known of it beyond one worker's life.

    Attributes:
        table: How it is reached.
        python: The training environment's interpreter there.
        run: What others who want the device are told.
        wanted: Another watcher there waits for it.
        sent_bytes: How much went over its lines, and `fetched_bytes` of files how much came.
        kept: The files that came and are still here.
        state: `connecting`, `reached` or `unreachable`, and `since` when, in ISO 8601.
        reason: Why it is not reached.
    """

    table: DeviceTable
    python: str
    run: str
    wanted: bool = False
    sent_bytes: int = 0
    fetched_bytes: int = 0
    kept: Kept = field(default_factory=Kept)
    state: str = "connecting"
    since: str = field(default_factory=lambda: _now())
    reason: str | None = None

    def became(self, state: str, reason: str | None = None) -> None:
        """Take note of whether it is reached."""
        if state != self.state:
            self.state, self.since = state, _now()
        self.reason = reason

    def status(self) -> dict[str, Any]:
        """Return what `status` shows of the host; sizes in MB, to be told anew not too often."""
        return {
            "host": self.host,
            "device": self.table.device,
            "state": self.state,
            "since": self.since,
            "reason": self.reason,
            "sent_mb": self.sent_bytes // 1_000_000,
            "fetched_mb": self.fetched_bytes // 1_000_000,
        }

    @property
    def host(self) -> str:
        """What to call the host."""
        return str(self.table.host)

    def is_wanted(self) -> bool:
        """Return whether another watcher there waits for the device."""
        return self.wanted

    def withdraw(self) -> None:
        """Do nothing: an agent that waits is ended, and with it its claim."""

    def command(self) -> list[str]:
        """Return the command that starts the agent there.

        A launcher with a shell there, as ssh has, gets it as one argument that is quoted for it.
        """
        table = self.table
        if table.has_shell:
            return [*table.launching, f"exec {shlex.join(table.agent)}"]
        return [*table.launching, *table.agent]

    def is_shared(self, path: str) -> bool:
        """Tell whether the other host sees a file of this machine, by what it calls it."""
        return any(Path(path).is_relative_to(folder) for folder in self.table.path_map)

    def theirs(self, path: str) -> str:
        """Return what a path of this machine is there."""
        return mapped(path, self.table.path_map)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def mapped(path: str, folders: Mapping[str, str]) -> str:
    """Return a path with the folder that it lies in as another one, the longest that is named."""
    for folder in sorted(folders, key=len, reverse=True):
        base = folder.rstrip("/")
        if path == base or path.startswith(base + "/"):
            return folders[folder].rstrip("/") + path[len(base) :]
    return path
