"""Folder: one board's rows become the files in its folder, and the promotions in the database.

Wires `promote`, which changes files, and `store.promotions`, in the order that a crash survives:
names are noted before a file gets one and forgotten after the last file is gone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from watcher.checkpoints.pin import Verified
from watcher.data import Leader, ScoredCheckpoint
from watcher.decision.rank import name_leaders
from watcher.promotion import promote
from watcher.store import Store

_log = structlog.get_logger(__name__)


class BoardFolder:
    """The folder of one board, and what is about to leave it.

    Attributes:
        name: The board's name.
        path: Its folder.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        store: Store,
        *,
        evict_seconds: float,
        verified: Verified,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.path = path
        self._store = store
        self._evict_seconds = evict_seconds
        self._verified = verified
        self._steady = steady
        self._left: dict[str, float] = {}
        self._said = ""

    @property
    def evict_at(self) -> float:
        """Steady time at which files are due to be evicted, infinite when none are."""
        return min(self._left.values(), default=math.inf) + self._evict_seconds

    def leave_alone(self) -> None:
        """Change nothing for now; what was about to leave stays too."""
        self._left.clear()

    def show(
        self, ranked: Sequence[ScoredCheckpoint], text: promote.BoardText, now: float
    ) -> tuple[list[Leader], bool]:
        """Make the folder and the promotions show `ranked`.

        Returns:
            The leaders, and whether anything changed.

        Raises:
            LeaderLost: the files of one are damaged, here and in the pins; show the others.
            PinError: a leader could not be put in place; what was named before still stands.
            OSError: a state file could not be written; likewise.
        """
        promotions = self._store.promotions
        placed = promotions.placements(self.name)
        foreign = promote.foreign_names(self.path, placed.values())
        leaders = name_leaders(ranked, placed, foreign)
        if any(leader.row.sha256 not in placed for leader in leaders):
            promotions.place(self.name, leaders)
            placed = promotions.placements(self.name)
        done = self._project(leaders, set(placed.values()), text)
        self._tell_unknown(done.unknown)
        changed = promotions.record(self.name, leaders, done.paths, text.metric, now)
        if done.evicted:
            promotions.unplace(self.name, done.evicted)
        return leaders, changed

    def _project(
        self, leaders: list[Leader], placed: set[str], text: promote.BoardText
    ) -> promote.Projection:
        """Change the files. Who has read a name before it left has `evict_seconds` to open it."""
        oldest = self._steady() - self._evict_seconds
        done = promote.project(
            self.path,
            leaders,
            placed,
            text,
            self._store.ledger.metrics(leader.row.evaluation_id for leader in leaders),
            evict={name for name, left in self._left.items() if left <= oldest},
            verified=self._verified,
        )
        # Counted from now on: a moment ago the state files may still have named them.
        present = self._steady()
        self._left = {name: self._left.get(name, present) for name in done.leaving}
        return done

    def _tell_unknown(self, unknown: Sequence[str]) -> None:
        files = ", ".join(unknown)
        if files and files != self._said:
            _log.warning(f"{self.path.name}/ holds files that are not ours", files=files)
        self._said = files
