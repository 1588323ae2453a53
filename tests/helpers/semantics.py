"""The rows of `semantics_stopping` and `semantics_keeping`: another tool and we, side by side.

A row: shown these scores, their published rule gives `theirs` and ours gives `ours`, and `why` says
in what the rules differ. Evaluations come every 100 steps, so 300 is the third one. With `restart`
both sides end and begin again on the same folder after so many evaluations; a stop before that is
taken to have been overruled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from other_keepers import Keeper
from other_stoppers import Stopper

from watcher.decision.rank import RankPolicy
from watcher.decision.stop import StopPolicy

NAN, INF = math.nan, math.inf
SAME = "the same"
Scores = Sequence[float | None]


@dataclass(frozen=True)
class Stops:
    """One row: the step of the evaluation after which each side stops, None for not at all."""

    case: str
    tool: Callable[..., Stopper]
    settings: dict[str, Any]
    scores: Scores
    theirs: int | None
    ours: int | None
    policy: StopPolicy
    why: str = SAME
    restart: int = 0


@dataclass(frozen=True)
class Keeps:
    """One row: the steps each side holds in the end, best first."""

    case: str
    tool: Callable[..., Keeper]
    settings: dict[str, Any]
    scores: Scores
    theirs: list[int]
    ours: list[int]
    policy: RankPolicy = field(default_factory=lambda: RankPolicy(top_k=1))
    why: str = SAME
    restart: int = 0


NOT_FINITE = "a score that is not finite measured nothing: it neither uses up patience nor ranks"
UNRANKABLE = "COCO's -1 means that there was nothing to measure: it neither ranks nor counts"
LEDGER = "decided from all rows in the ledger, so a restart forgets nothing"
LAST_ROW = "nothing latches: the decision is that of the last row"
REACHED = "a target is reached by what equals it; theirs has to be beyond"
WARM_UP = "min_steps only forbids to stop; what came before is a score like any other"
OLDER = "of equal scores the older stays, unless asked otherwise"
