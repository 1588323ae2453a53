"""Acceptance: from when on a start's settings decide, and are remembered as the run's.

A start that is refused leaves everything as it was decided before, so new settings wait until it
is seen that they can be evaluated by. Those that decide the same wait for nothing, nor do any wait
for a device that another watcher has.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

import structlog

from watcher.config import Settings, differences, doubts
from watcher.config.policies import DECIDING, boards
from watcher.store import Ledger

_log = structlog.get_logger(__name__)

_DIFFER = "settings differ from the last start"


class Standing(Enum):
    """What the settings of this start count for."""

    PENDING = auto()  # nothing yet: the folders stay as they are
    DECIDING = auto()  # rank and stop by them; the next start does not go on with them yet
    ACCEPTED = auto()  # they are the run's


def standing_after(standing: Standing, *, able: bool, same: bool) -> Standing:
    """Return what settings count for from now on. Pure.

    Args:
        standing: What they counted for.
        able: They can be evaluated by, or nobody can tell before another watcher lets us.
        same: They count for nothing yet, and decide as those before did.
    """
    if able:
        return Standing.ACCEPTED
    return Standing.DECIDING if same else standing


class Acceptance:
    """The settings of one start on their way into the database."""

    def __init__(self, settings: Settings, given: Mapping[str, str], ledger: Ledger) -> None:
        self._settings = settings
        self._given = given
        self._ledger = ledger
        self._main, *_ = boards(settings.run, settings.ranking)
        self._standing = Standing.PENDING

    @property
    def decides(self) -> bool:
        """True when checkpoints are ranked by these settings."""
        return self._standing is not Standing.PENDING

    @property
    def pending_metric(self) -> str | None:
        """What checkpoints are going to be ranked by, None once they are."""
        if self.decides:
            return None
        return f"{self._main.metric.text} ({self._main.policy.mode})"

    def warn(self) -> None:
        """Say what is doubtful about the settings, and what is not as at the last start."""
        for doubt in doubts(self._settings):
            _log.warning(doubt.message, hint=doubt.hint)
        if changed := self._changes():
            _log.warning(_DIFFER, settings=changed)

    def follow(self, now: float, *, able: bool) -> None:
        """Record what the settings count for by now.

        Args:
            now: Seconds since the epoch.
            able: A worker was ready, or another watcher has the device.

        Raises:
            StoreError: the database cannot be written; call again.
        """
        if self._standing is Standing.ACCEPTED:
            return
        ledger, shown = self._ledger, self._settings.to_show()
        same = not (able or self.decides) and ledger.decided_by(shown, DECIDING | {"run_name"})
        standing = standing_after(self._standing, able=able, same=same)
        if standing is self._standing:
            return
        if able and (changed := self._changes()):
            ledger.add_event(now, "settings", f"{_DIFFER}: {changed}")
        if not self.decides:
            main = self._main
            ledger.set_policy(main.metric, main.policy.mode, now, board=main.name)
        # Whoever asks before a worker is ready needs some; a next start does not.
        if able or not ledger.settings():
            ledger.set_settings(shown, self._given if able else {}, self._settings.run.name)
        self._standing = standing

    def _changes(self) -> str:
        """Return what is set otherwise than when it was decided last, for people."""
        return ", ".join(differences(self._ledger.settings(), self._settings.to_show()))
