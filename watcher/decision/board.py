"""Board: a leaderboard, what it ranks by and which folder shows it. Data only."""

from __future__ import annotations

from pathlib import Path

import msgspec

from watcher.decision.metric import Metric
from watcher.decision.rank import RankPolicy

MAIN_BOARD = "best"
KEPT_BOARD = "kept"
AVERAGES_BOARD = "averages"


class Board(msgspec.Struct, frozen=True):
    """A leaderboard: its folder, its metric, and how it ranks."""

    name: str
    folder: Path
    metric: Metric
    policy: RankPolicy

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Every metric that the board reads, its own first."""
        ties = (metric for metric, _ in self.policy.tie_break)
        return (self.metric, *ties, *(veto.metric for veto in self.policy.veto))

    @property
    def contradiction(self) -> str | None:
        """What a mode that goes against the metric's nature does, None for one that does not."""
        natural = self.metric.natural_mode
        if natural in (None, self.policy.mode):
            return None
        best, less = ("highest", "less") if self.policy.mode == "max" else ("lowest", "more")
        return (
            f"mode {self.policy.mode} takes the {best} {self.metric.text} for the best, of which"
            f" {less} is better"
        )
